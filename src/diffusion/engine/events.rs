//! What goes into an engine and what comes out.

use std::sync::Arc;

use super::parking::ParkedJob;
use crate::diffusion::pipelines::Pipeline;
use crate::domain::{DrawnBy, ErrorCode, ForwardReport, GenerationRequest, JobId, ModelId, QueuePlace, SizeKey};
use crate::images::{Canvas, ControlPicture, RgbImage};

/// A job for the engine.
#[derive(Clone)]
pub struct EngineJob {
    /// Whose pictures.
    pub id: JobId,
    /// What to draw.
    pub request: Arc<GenerationRequest>,
    /// The request's pictures to start from, where it has any.
    pub canvas: Option<Arc<Canvas>>,
    /// The pictures of the request's controls, as many as it has.
    pub controls: Vec<ControlPicture>,
    /// Its place in the queue.
    pub place: QueuePlace,
    /// The models it is drawn with. The engine lets go of them before it tells of the job's end.
    pub pipelines: Vec<Arc<dyn Pipeline>>,
    /// Where it stood when it was taken off an engine. Not used, with a word in the log, where it is not this job's state to
    /// the bit.
    pub parked: Option<Box<ParkedJob>>,
}

impl std::fmt::Debug for EngineJob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineJob").field("id", &self.id).field("place", &self.place).finish_non_exhaustive()
    }
}

/// What the engine tells while it draws; each job's last one is `Finished`, `Failed`, `Cancelled` or `Parked`.
#[derive(Debug)]
pub enum EngineEvent {
    /// The job's samples are aboard.
    Started {
        /// Whose.
        job: JobId,
        /// What the client should know, such as a prompt that was cut.
        warnings: Vec<String>,
        /// By which files its pictures are drawn.
        drawn_by: DrawnBy,
        /// Whether it goes on where it was parked.
        is_resumed: bool,
    },
    /// One picture took a step.
    Progress {
        /// Whose.
        job: JobId,
        /// Which picture.
        image: u32,
        /// Steps taken.
        step: u32,
        /// Steps in all.
        total: u32,
    },
    /// How one picture looks now.
    Preview {
        /// Whose.
        job: JobId,
        /// Which picture.
        image: u32,
        /// Steps taken.
        step: u32,
        /// Small: one pixel a latent pixel, or up to 512 pixels wide or high.
        picture: RgbImage,
    },
    /// One picture is drawn.
    Image {
        /// Whose.
        job: JobId,
        /// Which picture.
        image: u32,
        /// Full size.
        picture: RgbImage,
    },
    /// All of the job's pictures were told.
    Finished {
        /// Whose.
        job: JobId,
        /// Where the time went.
        timings: EngineTimings,
    },
    /// The job cannot be drawn.
    Failed {
        /// Whose.
        job: JobId,
        /// In a word.
        code: ErrorCode,
        /// As a sentence.
        message: String,
    },
    /// The job was left as asked.
    Cancelled {
        /// Whose.
        job: JobId,
    },
    /// The job was taken off as asked.
    Parked {
        /// Whose.
        job: JobId,
        /// Where it stands; `None` where that cannot be kept.
        parked: Option<Box<ParkedJob>>,
    },
    /// One forward ran.
    Batch(BatchReport),
    /// One forward was learnt from.
    Forward(ForwardReport),
    /// Under the policy `continuous`, before each forward: what the next could take besides.
    Demand(EngineDemand),
}

/// What an engine could use at its next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineDemand {
    /// Whose turn it is.
    pub size: SizeKey,
    /// The likes of these are preferred.
    pub steps: u32,
    /// Rows for which there will be room.
    pub rows: u32,
    /// Where there is no room: a job of this size that stands before this would get the place of another.
    pub displaces: Option<QueuePlace>,
    /// Rows that a batch of this size should have at present.
    pub target: u32,
    /// Jobs of another size that stand before this would have the next turn; `None`: any would.
    pub before: Option<QueuePlace>,
    /// Jobs that the engine had taken by then, since it started: who sent more has news that this does not know.
    pub admitted: u64,
}

/// Where a job's time went on the device, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineTimings {
    /// Prompt encoding.
    pub encode_ms: u64,
    /// First step to last.
    pub denoise_ms: u64,
    /// VAE decoding.
    pub decode_ms: u64,
}

/// One forward, for metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchReport {
    /// Whose network.
    pub model: ModelId,
    /// Rows of the batch (a guided sample has two): of one forward, or of the smaller ones that it was halved into.
    pub rows: u32,
    /// Rows that ControlNets evaluated for it, all of them together.
    pub control_rows: u32,
    /// Samples aboard.
    pub samples: u32,
    /// Jobs they belong to.
    pub jobs: u32,
    /// Pictures' width, in pixels.
    pub width: u32,
    /// Pictures' height, in pixels.
    pub height: u32,
    /// The step count the samples share, when they do.
    pub steps: Option<u32>,
    /// How long the forward, or those it was halved into, and the update took.
    pub micros: u64,
    /// Memory that it took above what was there before, in bytes; `None` where it is not measured (on a GPU) or had to be halved.
    pub bytes: Option<u64>,
    /// How long after the end of the one before it began; `None` where nothing was aboard in between.
    pub gap_micros: Option<u64>,
}

/// Where an engine's events go, from its loop and from its finisher. `Progress`, `Preview`, `Batch`, `Forward` and `Demand` may be dropped by
/// a full receiver; the others must not.
pub type EventSink = Arc<dyn Fn(EngineEvent) + Send + Sync>;
