//! How an idle worker asks the busy ones of its process for a job that waits with them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::domain::{DeviceSpec, ModelId};

/// What a worker that finds nothing in the queue could draw.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Its own: a job moves between devices of one kind only.
    pub device: DeviceSpec,
    /// Those that it has loaded.
    pub models: Vec<ModelId>,
    is_answered: Arc<AtomicBool>,
}

impl Ask {
    /// Of a worker of this device, with these models.
    pub fn new(device: DeviceSpec, models: Vec<ModelId>) -> Self {
        Self { device, models, is_answered: Arc::default() }
    }

    /// Whether it is the caller who answers: the first who says so does.
    pub fn answer(&self) -> bool {
        !self.is_answered.swap(true, Ordering::Relaxed)
    }
}
