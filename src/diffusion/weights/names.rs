//! From the names networks ask for (diffusers' and transformers') to those a file has.

use std::collections::BTreeMap;

/// How a stored tensor becomes the one asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// As it is.
    Whole,
    /// The k-th third of its rows: q, k and v in one matrix.
    Third(usize),
    /// Rows for columns.
    Transposed,
    /// A convolution over one pixel is a matrix.
    Matrix,
}

impl View {
    /// The shape seen; `None` where a tensor of this shape cannot be seen so.
    pub(super) fn shape(self, stored: &[usize]) -> Option<Vec<usize>> {
        match (self, stored) {
            (Self::Whole, _) => Some(stored.to_vec()),
            (Self::Third(_), [rows, rest @ ..]) if rows % 3 == 0 => Some([&[rows / 3], rest].concat()),
            (Self::Transposed, [rows, columns]) => Some(vec![*columns, *rows]),
            (Self::Matrix, [rows, columns, rest @ ..]) if rest.iter().all(|side| *side == 1) => {
                Some(vec![*rows, *columns])
            }
            (Self::Matrix, [count]) => Some(vec![*count]),
            _ => None,
        }
    }
}

impl View {
    /// The shape a tensor must have to be seen in this one; for messages.
    pub(super) fn stored(self, seen: &[usize]) -> Vec<usize> {
        match (self, seen) {
            (Self::Third(_), [rows, rest @ ..]) => [&[rows * 3], rest].concat(),
            (Self::Transposed, [rows, columns]) => vec![*columns, *rows],
            _ => seen.to_vec(),
        }
    }
}

/// A row of a module's table: the name asked for, the name in the file, and how it is seen. Names of modules, or of tensors.
pub(super) type Row = (&'static str, &'static str, View);

/// Which names in a file stand for the names asked for: by module, and within modules by their tables.
#[derive(Clone, Debug, Default)]
pub struct NameMap {
    /// Module asked for -> module in the file, and the table of what is within.
    modules: BTreeMap<String, (String, &'static [Row])>,
}

impl NameMap {
    /// Says where a module stands, and how what is within is called. An empty name is the whole file.
    pub(super) fn module(&mut self, asked: impl Into<String>, stored: impl Into<String>, within: &'static [Row]) {
        self.modules.insert(asked.into(), (stored.into(), within));
    }

    /// The name in the file, and how the tensor there is seen; `None` for a name outside all modules.
    pub fn find(&self, asked: &str) -> Option<(String, View)> {
        let ends = asked.match_indices('.').map(|(end, _)| end).chain([asked.len()]);
        let mut ends: Vec<usize> = ends.collect();
        ends.push(0);
        ends.sort_unstable();
        let module = |end: &usize| self.modules.get(&asked[..*end]).map(|found| (*end, found));
        let (end, (stored, rows)) = ends.iter().rev().find_map(module)?;
        let rest = asked[end..].trim_start_matches('.');
        for (ours, theirs, view) in *rows {
            if let Some(tail) = rest.strip_prefix(ours)
                && (tail.is_empty() || tail.starts_with('.'))
            {
                return Some((joined(stored, &format!("{theirs}{tail}")), *view));
            }
        }
        Some((joined(stored, rest), View::Whole))
    }

    /// Whether the tensor of this name in the file is within a module.
    pub(super) fn holds(&self, stored: &str) -> bool {
        let within = |module: &str| match stored.strip_prefix(module) {
            Some(rest) => module.is_empty() || rest.is_empty() || rest.starts_with('.'),
            None => false,
        };
        self.modules.values().any(|(module, _)| within(module))
    }

    /// Every module asked for, with its name in the file.
    pub fn modules(&self) -> impl Iterator<Item = (&str, &str)> {
        self.modules.iter().map(|(asked, (stored, _))| (asked.as_str(), stored.as_str()))
    }
}

fn joined(module: &str, rest: &str) -> String {
    match (module.is_empty(), rest.is_empty()) {
        (true, _) => rest.to_owned(),
        (_, true) => module.to_owned(),
        _ => format!("{module}.{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INNER: &[Row] = &[
        ("norm1", "in_layers.0", View::Whole),
        ("attn.q.weight", "in_proj", View::Third(0)),
        ("proj", "proj.0", View::Matrix),
    ];

    #[test]
    fn the_longest_module_and_its_table_decide() {
        let mut names = NameMap::default();
        names.module("", "model", &[]);
        names.module("down.0", "model.input.1", INNER);
        names.module("embed.weight", "positional", &[]);
        for (asked, stored, view) in [
            ("conv.weight", "model.conv.weight", View::Whole),
            ("down.0.norm1.weight", "model.input.1.in_layers.0.weight", View::Whole),
            ("down.0.norm11.weight", "model.input.1.norm11.weight", View::Whole),
            ("down.0.attn.q.weight", "model.input.1.in_proj", View::Third(0)),
            ("down.0.proj.bias", "model.input.1.proj.0.bias", View::Matrix),
            ("down.01.norm1", "model.down.01.norm1", View::Whole),
            ("embed.weight", "positional", View::Whole),
        ] {
            assert_eq!(names.find(asked), Some((stored.to_owned(), view)), "{asked}");
        }
        assert_eq!(NameMap::default().find("a.b"), None);
        let held = ["model.conv.weight", "positional", "positions", "modeller.conv"].map(|stored| names.holds(stored));
        assert_eq!(held, [true, true, false, false]);
    }

    #[test]
    fn a_view_knows_its_shape() {
        assert_eq!(View::Third(1).shape(&[6, 4]), Some(vec![2, 4]));
        assert_eq!(View::Third(1).shape(&[7, 4]), None);
        assert_eq!(View::Transposed.shape(&[2, 3]), Some(vec![3, 2]));
        assert_eq!(View::Matrix.shape(&[2, 3, 1, 1]), Some(vec![2, 3]));
        assert_eq!(View::Matrix.shape(&[2, 3, 3, 3]), None);
        assert_eq!(View::Matrix.shape(&[2]), Some(vec![2]));
    }
}
