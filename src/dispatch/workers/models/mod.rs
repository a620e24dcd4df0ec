//! The models of each device: loaded at the start or when a job wants one, dropped when another needs the room.
//!
//! `shelf` decides, `collection` does. Knows no job: what waits is told by the workers, which also take no job whose models
//! are not here.

mod collection;
mod shelf;

use std::sync::Arc;

pub(super) use collection::{Collection, Held};

use crate::diffusion::pipelines::{Introduced, Pipeline};
use crate::domain::{DeviceSpec, ModelId};

/// A model that workers may draw with.
#[derive(Clone, Debug)]
pub struct ServedModel {
    /// The name clients use.
    pub id: ModelId,
    /// When it is loaded.
    pub loads: Loads,
}

/// When a model is loaded, and what is known of it before.
#[derive(Clone, Debug)]
pub enum Loads {
    /// Before the server answers: it tells of itself then.
    AtStart,
    /// When a job wants it.
    AtFirstUse(Box<Introduced>),
}

/// Loads a served model onto a device; runs on a thread that may block.
pub type Loader = Arc<dyn Fn(&ModelId, DeviceSpec) -> Result<Arc<dyn Pipeline>, LoadFailure> + Send + Sync>;

/// Why a model cannot be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadFailure {
    /// For the operator, naming files and tensors.
    pub told: String,
    /// The same without the folders that the files lie in, for clients.
    pub public: String,
}
