//! Named points where tests can make the engine fail, since real failures do not come when called.

use std::sync::Arc;

use crate::domain::JobId;

/// Where the engine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultPoint {
    /// A job's prompts are about to be encoded.
    Encode,
    /// One of the job's samples is about to be evaluated for this step.
    Evaluate {
        /// Steps taken before.
        step: u32,
        /// Samples in the same forward.
        samples: usize,
    },
    /// One of its samples is about to be decoded.
    Decode,
}

/// What is to happen there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The operation returns an error.
    Error,
    /// The device has no memory left.
    OutOfMemory,
    /// The device fails, and whatever it is asked from then on.
    Device,
    /// The thread panics.
    Panic,
    /// The sample's numbers become NaN.
    NotANumber,
}

/// Asked at every point. One that does not return is a hang.
pub type FaultHook = Arc<dyn Fn(JobId, FaultPoint) -> Fault + Send + Sync>;
