//! Plain data that crosses rooms: requests, jobs, events, artifacts, model info and error codes.
//!
//! Does no I/O, holds no tensors and knows no async: every other room may import this one, and it imports none.

mod artifact;
mod batching;
mod controls;
mod cost;
mod device;
mod dtype;
mod error;
mod event;
mod hex;
mod hires;
mod ids;
mod image_inputs;
mod job;
mod limits;
mod loras;
mod model;
mod prompt_syntax;
mod refiner;
mod request;
mod request_faults;
mod sampling;
mod size_conditioning;
mod timestamp;

pub use artifact::{Artifact, ImageFormat};
pub use batching::{ALIKE_WITHIN_MS, BatchingPolicy, SizeKey};
pub use controls::{ControlDraft, ControlInput, ControlNetInfo};
pub use cost::{Cost, ForwardReport, MemoryCost};
pub use device::DeviceSpec;
pub use dtype::{ComputeDtype, DtypeSpec};
pub use error::{ErrorCode, ErrorKind, FieldError, JobError};
pub use event::{EventId, JobEvent, JobEventKind};
pub use hex::hex;
pub use hires::{Hires, HiresDraft, Upscaler};
pub use ids::{JobId, ModelId, OwnerId, ParseIdError, WorkerId};
pub use image_inputs::{ImageInputs, ImageInputsDraft, InpaintArea, InputImage, InputName};
pub use job::{
    BULK_DELAY_MS, GroupKey, INTERACTIVE_LEAD_MS, ImageProgress, Job, JobStatus, JobTimings, QueuePlace, Transition,
};
pub use limits::Limits;
pub use loras::{Lora, LoraDraft, LoraInfo};
pub use model::{
    DrawnBy, DrawnByModel, LatentRgb, LatentSpace, ModelDefaults, ModelInfo, ModelLoad, ModelState, ModelStatus,
};
pub use prompt_syntax::{Fragment, MAX_WEIGHT, PromptSyntax, SyntaxError, parse_a1111};
pub use refiner::{Refiner, RefinerDraft};
pub use request::{GenerationRequest, MAX_SEED, OutputOptions, Priority, RequestDraft};
pub use sampling::{NamedSampler, NoiseSource, SamplerKind, SigmaSchedule};
pub use size_conditioning::{SizeConditioning, SizeConditioningDraft};
pub use timestamp::{Clock, ManualClock, SystemClock, Timestamp};
