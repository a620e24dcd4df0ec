//! The tensors of a file by name, for questions about its structure.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::diffusion::weights::Header;

/// Names and shapes.
pub(in crate::diffusion::weights) struct Keys<'a>(BTreeMap<&'a str, &'a [usize]>);

impl<'a> Keys<'a> {
    pub(in crate::diffusion::weights) fn of(header: &'a Header) -> Self {
        Self(header.tensors.iter().map(|tensor| (tensor.name.as_str(), &tensor.shape[..])).collect())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Whether any name begins so.
    pub(super) fn any(&self, beginning: &str) -> bool {
        self.below(beginning).next().is_some()
    }

    pub(super) fn shape(&self, name: &str) -> Option<&'a [usize]> {
        self.0.get(name).copied()
    }

    /// One side of a tensor that the structure needs.
    pub(super) fn side(&self, name: &str, axis: usize) -> Result<usize, String> {
        let shape = self.shape(name).ok_or_else(|| format!("it has no tensor `{name}`"))?;
        shape.get(axis).copied().ok_or_else(|| format!("tensor `{name}` has shape {shape:?}"))
    }

    /// How many numbered modules stand below `module`, as in `module.0.weight`.
    ///
    /// # Errors
    /// A number is left out.
    pub(super) fn count(&self, module: &str) -> Result<usize, String> {
        let beginning = format!("{module}.");
        let number = |name: &str| name[beginning.len()..].split('.').next().and_then(|part| part.parse::<usize>().ok());
        let numbers: BTreeSet<usize> = self.below(&beginning).filter_map(number).collect();
        match numbers.iter().enumerate().find(|(expected, number)| expected != *number) {
            Some((expected, _)) => Err(format!("it has no tensors of `{module}.{expected}`, but of higher numbers")),
            None => Ok(numbers.len()),
        }
    }

    fn below<'b>(&self, beginning: &'b str) -> impl Iterator<Item = &'a str> + use<'a, 'b, '_> {
        let from = (Bound::Included(beginning), Bound::Unbounded);
        self.0.range::<str, _>(from).map(|(name, _)| *name).take_while(move |name| name.starts_with(beginning))
    }
}
