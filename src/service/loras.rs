//! LoRAs: which there are, and the hashes of those a request names.

use std::sync::Arc;

use super::GenerationService;
use crate::domain::{FieldError, GenerationRequest, Limits, LoraInfo, RequestDraft};

/// Where LoRAs are. Its methods may read files; they are called where that holds nobody up.
pub trait LoraShelf: Send + Sync {
    /// Which there are, by name.
    fn list(&self) -> Vec<LoraInfo>;

    /// A LoRA's hash (`LoraInfo::hash`).
    ///
    /// # Errors
    /// A file that cannot be read, as a sentence.
    fn hash(&self, name: &str) -> Result<String, String>;
}

/// No LoRAs at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct EmptyShelf;

impl LoraShelf for EmptyShelf {
    fn list(&self) -> Vec<LoraInfo> {
        Vec::new()
    }

    fn hash(&self, name: &str) -> Result<String, String> {
        Err(format!("there is no LoRA `{name}`"))
    }
}

/// Brings the hashes of a request's LoRAs into it, so that it means these files wherever it is drawn.
///
/// # Errors
/// Files that cannot be read, or are others than the request says, by their fields.
pub fn hash_loras(shelf: &dyn LoraShelf, request: &mut GenerationRequest) -> Result<(), Vec<FieldError>> {
    let mut faults = Vec::new();
    for (at, lora) in request.loras_mut().iter_mut().enumerate() {
        match (shelf.hash(&lora.name), &lora.hash) {
            (Err(reason), _) => {
                faults.push(FieldError::new(
                    format!("loras[{at}].name"),
                    lora.name.as_str(),
                    format!("cannot be used: {reason}"),
                ));
            }
            (Ok(found), Some(asked)) if *asked != found => {
                let message = format!("is not the hash of `{}`, which is {found}", lora.name);
                faults.push(FieldError::new(format!("loras[{at}].hash"), asked.as_str(), message));
            }
            (Ok(found), _) => lora.hash = Some(found),
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

impl GenerationService {
    /// Which LoRAs there are, by name.
    pub async fn loras(&self) -> Vec<LoraInfo> {
        let shelf = self.parts.loras.clone();
        tokio::task::spawn_blocking(move || shelf.list()).await.unwrap_or_default()
    }

    /// The limits, with the names of the LoRAs where the request may name some.
    pub(super) async fn limits_for(&self, draft: &RequestDraft) -> Limits {
        let prompt = draft.prompt.as_deref().unwrap_or_default();
        let may_name = !draft.loras.is_empty() || prompt.contains('<');
        let loras = if may_name { self.loras().await } else { Vec::new() };
        Limits { loras: loras.into_iter().map(|lora| lora.name).collect(), ..self.options.limits.clone() }
    }

    /// The request with its LoRAs' hashes. Reading a file for the first time takes its time.
    pub(super) async fn with_hashes(
        &self,
        mut request: GenerationRequest,
    ) -> Result<GenerationRequest, Vec<FieldError>> {
        if request.loras().is_empty() {
            return Ok(request);
        }
        let shelf: Arc<dyn LoraShelf> = self.parts.loras.clone();
        let hashed = tokio::task::spawn_blocking(move || hash_loras(shelf.as_ref(), &mut request).map(|()| request));
        hashed.await.unwrap_or_else(|error| {
            Err(vec![FieldError::new("loras", serde_json::Value::Null, format!("could not be read: {error}"))])
        })
    }
}
