//! Which files the served models are loaded from.

use std::collections::HashMap;

use crate::diffusion::pipelines::ModelSource;
use crate::domain::ModelId;
use crate::service::ModelFiles;

/// The served models' sources as the service sees them.
#[derive(Clone, Debug)]
pub struct Files(HashMap<ModelId, ModelSource>);

impl Files {
    /// Of these models.
    pub fn of(sources: &[ModelSource]) -> Self {
        Self(sources.iter().map(|source| (source.id.clone(), source.clone())).collect())
    }
}

impl ModelFiles for Files {
    fn files(&self, model: &ModelId) -> Option<String> {
        self.0.get(model)?.files()
    }
}
