//! WorkerPool: claims jobs, feeds engines, heartbeats, cancels, drains, parks, survives panics, hangs and devices that fail.
//!
//! One task a device (`worker`), which owns one engine and has jobs made ready for it on threads that may block; one collection
//! of models and the thread that loads them for all workers of a device (`models`); and three loops for the whole process
//! (`upkeep`): rescue of jobs whose worker was lost, the end of jobs past their deadline, and removal of what has expired. A picture is stored before its job says that it succeeded.

mod filling;
mod inputs;
mod job_run;
mod models;
mod parked;
mod pool;
mod reusing;
mod upkeep;
mod worker;

pub use models::{LoadFailure, Loader, Loads, ServedModel};
pub use pool::{PoolParts, WorkerOptions, WorkerPool};

/// Longest time that what lies in the artifact store may take to come.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// Why a pool cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A model cannot be loaded onto a device.
    #[error("cannot load a model for device `{device}`: {reason}")]
    Load {
        /// Which device.
        device: crate::domain::DeviceSpec,
        /// What is wrong, with file and tensor.
        reason: String,
    },
    /// The system gives no thread.
    #[error("cannot start an engine: {0}")]
    Thread(#[from] std::io::Error),
    /// The loading thread panicked.
    #[error("loading a model failed unexpectedly")]
    Panicked,
}
