//! The one way in: submit, get, cancel, subscribe, artifact. Every front door goes through it.
//!
//! Speaks no HTTP and touches no device. Answers from the job store, so any replica answers for any job; what is only
//! known here (live progress, what forwards cost) decorates the answer.

mod caller;
mod error;
mod eta;
mod images;
mod inputs;
mod loras;
mod queries;
mod reuse;
mod stats;
mod stream;
mod submit;
mod view;

pub use caller::Caller;
pub use error::{Error, Result};
pub use images::StoredImage;
pub use inputs::{GivenPicture, PictureSource};
pub use loras::{EmptyShelf, LoraShelf, hash_loras};
pub use queries::{ModelStanding, OwnerShare, Page, Readiness};
pub use reuse::{ModelFiles, UnknownFiles};
pub use stats::Stats;
pub use stream::JobStream;
pub use submit::{Submission, Submitted};
pub use view::JobView;

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::dispatch::artifacts::ArtifactStore;
use crate::dispatch::events::EventBus;
use crate::dispatch::hub::WorkerHub;
use crate::dispatch::jobs::JobStore;
use crate::domain::{Clock, Limits, ModelInfo};
use crate::telemetry::Metrics;

/// How the service works.
#[derive(Clone, Debug)]
pub struct ServiceOptions {
    /// What one request may ask for.
    pub limits: Limits,
    /// Most jobs that may wait: told in stats, enforced by the store.
    pub max_queued: u64,
    /// Most open event streams and waiting requests together.
    pub max_watchers: usize,
    /// Whether a request is answered with the pictures of an identical one.
    pub reuse: bool,
}

/// What the service works with.
#[derive(Clone)]
pub struct ServiceParts {
    /// The queue.
    pub jobs: Arc<dyn JobStore>,
    /// Who watches.
    pub events: Arc<dyn EventBus>,
    /// The pictures.
    pub artifacts: ArtifactStore,
    /// Shared with the workers.
    pub hub: Arc<WorkerHub>,
    /// Shared with everyone.
    pub metrics: Arc<Metrics>,
    /// The present time.
    pub clock: Arc<dyn Clock>,
    /// What is served; the first is the default.
    pub models: Vec<ModelInfo>,
    /// What requests may name.
    pub loras: Arc<dyn LoraShelf>,
    /// What the models are loaded from.
    pub files: Arc<dyn ModelFiles>,
}

/// The one way in.
pub struct GenerationService {
    parts: ServiceParts,
    options: ServiceOptions,
    watchers: Arc<Semaphore>,
    looks: Arc<Semaphore>,
}

impl std::fmt::Debug for GenerationService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GenerationService").field("options", &self.options).finish_non_exhaustive()
    }
}

impl GenerationService {
    /// A service over these parts.
    pub fn new(parts: ServiceParts, options: ServiceOptions) -> Self {
        let watchers = Arc::new(Semaphore::new(options.max_watchers));
        Self { parts, options, watchers, looks: Arc::new(Semaphore::new(inputs::LOOKS)) }
    }

    /// What is served; the first is the default.
    pub fn models(&self) -> &[ModelInfo] {
        &self.parts.models
    }

    /// What one request may ask for.
    pub fn limits(&self) -> &Limits {
        &self.options.limits
    }
}
