//! LoRAs on a pipeline: another one with adapted networks, over the same weights. Those lately used are kept.

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Device;

use super::{Error, Extra, Pipeline, Released, Result};
use crate::diffusion::models::adapters::{Adaptable, adapt};
use crate::diffusion::weights::{self, LoraFile, LoraLibrary, LoraTarget};
use crate::domain::{Lora, ModelId};

/// Sets of LoRAs that are kept for a model, and how much their tensors may take together; the set in use may be larger.
const KEPT_SETS: usize = 16;
const KEPT_BYTES: usize = 1 << 30;

/// A pipeline with LoRAs.
#[derive(Clone)]
pub struct Adapted {
    /// Draws with them.
    pub pipeline: Arc<dyn Pipeline>,
    /// Tells sets apart: LoRAs by name and hash, their scales, and their order. Empty where there are none.
    pub key: Arc<str>,
    /// What the client should know, such as layers that the model does not have.
    pub warnings: Vec<String>,
}

impl Adapted {
    /// A pipeline as it is.
    pub fn plain(pipeline: Arc<dyn Pipeline>) -> Self {
        Self { pipeline, key: "".into(), warnings: Vec::new() }
    }
}

/// Where a pipeline's LoRAs come from, and what became of those lately used.
pub(super) struct Adapters {
    library: LoraLibrary,
    /// The latest last.
    kept: Mutex<Vec<(Adapted, usize)>>,
}

impl Adapters {
    pub(super) fn of(library: LoraLibrary) -> Arc<Self> {
        Arc::new(Self { library, kept: Mutex::default() })
    }

    /// For a pipeline with LoRAs already, on which others would come.
    pub(super) fn afresh(&self) -> Arc<Self> {
        Self::of(self.library.clone())
    }

    /// What `make` makes of a pipeline of this model, or made of it before.
    pub(super) fn adapted(
        &self,
        loras: &[Lora],
        (model, device): (&ModelId, &Device),
        make: impl FnOnce(&mut Adapting<'_>) -> Result<Arc<dyn Pipeline>>,
    ) -> Result<Adapted> {
        let loras: Vec<Lora> = loras.iter().map(|lora| self.known(lora)).collect::<Result<_>>()?;
        let key = key(&loras);
        if let Some(found) = self.used(&key) {
            return Ok(found);
        }
        // Without the lock: others go on meanwhile. Two that make the same at once make it twice.
        let open = |lora: Lora| match self.library.open(&lora.name, lora.hash.as_deref().unwrap_or_default()) {
            Ok(file) => Ok(Opened { lora, file, applied: BTreeSet::new() }),
            Err(error) => Err(refused(&lora.name, error)),
        };
        let mut adapting = Adapting { loras: loras.into_iter().map(open).collect::<Result<_>>()?, device, bytes: 0 };
        let pipeline = make(&mut adapting)?;
        let warnings = adapting.loras.iter().map(|opened| opened.left_out(model)).collect::<Result<Vec<_>>>()?;
        let adapted = Adapted { pipeline, key: key.into(), warnings: warnings.into_iter().flatten().collect() };
        self.keep(adapted.clone(), adapting.bytes);
        Ok(adapted)
    }

    /// With its hash, which tells a replaced file.
    fn known(&self, lora: &Lora) -> Result<Lora> {
        let hash = match &lora.hash {
            Some(hash) => hash.clone(),
            None => self.library.hash(&lora.name).map_err(|error| refused(&lora.name, error))?,
        };
        Ok(Lora { hash: Some(hash), ..lora.clone() })
    }

    fn used(&self, key: &str) -> Option<Adapted> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(adapted, _)| &*adapted.key == key)?;
        let found = kept.remove(at);
        kept.push(found.clone());
        Some(found.0)
    }

    /// What those that are kept take.
    pub(super) fn bytes(&self) -> Extra {
        let (kept, mut extra) = (self.kept.lock().unwrap_or_else(PoisonError::into_inner), Extra::default());
        kept.iter().for_each(|(adapted, bytes)| extra.count(*bytes as u64, is_used(adapted)));
        extra
    }

    /// Lets go of those that no job uses.
    pub(super) fn release(&self) -> Released {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let unused = kept.extract_if(.., |(adapted, _)| !is_used(adapted));
        unused.map(|(adapted, _)| Arc::new(adapted) as Arc<dyn Any + Send + Sync>).collect()
    }

    fn keep(&self, adapted: Adapted, bytes: usize) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(other, _)| other.key != adapted.key);
        kept.push((adapted, bytes));
        let total = |kept: &[(Adapted, usize)]| kept.iter().map(|(_, bytes)| bytes).sum::<usize>();
        while kept.len() > 1 && (kept.len() > KEPT_SETS || total(&kept[..]) > KEPT_BYTES) {
            kept.remove(0);
        }
    }
}

/// Whether anybody has it beside the list of those that are kept.
fn is_used(adapted: &Adapted) -> bool {
    Arc::strong_count(&adapted.pipeline) > 1
}

fn key(loras: &[Lora]) -> String {
    let each = loras.iter().map(|Lora { name, scale, text_encoder_scale, hash }| {
        format!("{name:?}@{}*{scale:e}/{text_encoder_scale:e}", hash.as_deref().unwrap_or_default())
    });
    each.collect::<Vec<_>>().join("+")
}

fn refused(name: &str, error: impl std::fmt::Display) -> Error {
    Error::Lora { name: name.to_owned(), reason: error.to_string() }
}

/// LoRAs on their way into a pipeline's networks.
pub(super) struct Adapting<'a> {
    loras: Vec<Opened>,
    device: &'a Device,
    bytes: usize,
}

struct Opened {
    lora: Lora,
    file: LoraFile,
    applied: BTreeSet<(LoraTarget, String)>,
}

impl Adapting<'_> {
    /// A copy of the network with what the LoRAs have for it.
    pub(super) fn network<N: Adaptable>(&mut self, network: &N, target: LoraTarget) -> Result<N> {
        let mut network = network.clone();
        for Opened { lora, file, applied } in &mut self.loras {
            let scale = if target == LoraTarget::UNet { lora.scale } else { lora.text_encoder_scale };
            let tensors = file.tensors(self.device).map_err(|error: weights::Error| refused(&lora.name, error))?;
            let added = adapt(&mut network, (&tensors, target), scale, self.device);
            let added = added.map_err(|error| refused(&lora.name, error))?;
            applied.extend(added.layers);
            self.bytes += added.bytes;
        }
        Ok(network)
    }
}

impl Opened {
    /// What of it found no layer in the model, for the client to know; all of it is an error.
    fn left_out(&self, model: &ModelId) -> Result<Option<String>> {
        let is_left =
            |(target, layer, _): &(LoraTarget, &str, &str)| !self.applied.contains(&(*target, (*layer).to_owned()));
        let left: Vec<&str> = self.file.layers().filter(is_left).map(|(_, _, tensor)| tensor).collect();
        let name = &self.lora.name;
        let embeddings =
            if self.file.has_embeddings() { "textual inversion embeddings within it are not read" } else { "" };
        match left.first() {
            Some(first) if self.applied.is_empty() => Err(refused(
                name,
                format!("none of its layers is one of model `{model}`; the first is that of tensor `{first}`"),
            )),
            Some(first) => Ok(Some(format!(
                "LoRA `{name}`: {} of its layers are none of model `{model}` and were left out, such as that of tensor `{first}`",
                left.len()
            ))),
            None if embeddings.is_empty() => Ok(None),
            None => Ok(Some(format!("LoRA `{name}`: {embeddings}"))),
        }
    }
}
