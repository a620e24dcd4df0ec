//! Latents to pictures and previews: on a thread beside the loop, or at once where the loop is driven by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use candle_core::Tensor;

use super::EngineOptions;
use super::busy::Busy;
use super::events::{EngineEvent, EventSink};
use super::fault::FaultPoint;
use super::ledger::Ledger;
use super::refusal::{Refusal, caught};
use super::sample::{NextPass, SampleState, Told};
use crate::domain::JobId;
use crate::images::RgbImage;

/// Pieces that may wait; the loop waits for room before it hands over another picture, since each holds its latents.
const WAITING: usize = 32;
/// A preview is not made where so many wait: it would come late, and hold up pictures.
const PREVIEWS_UP_TO: usize = 16;

/// What is to be made.
enum Piece {
    /// Of a sample that has taken all its steps.
    Picture(Box<SampleState>),
    /// A sample between two passes, as the next begins it.
    Enlarged(Box<SampleState>, NextPass),
    Preview(Look),
}

/// How one sample looks on its way.
pub(super) struct Look {
    pub job: JobId,
    pub image: u32,
    /// Steps taken.
    pub step: u32,
    /// Whose pipeline makes it.
    pub told: Arc<Told>,
    /// (1, C, h, w) f32.
    pub latents: Tensor,
}

/// Makes pieces and tells of them.
pub(super) struct Desk {
    pub ledger: Arc<Ledger>,
    pub sink: EventSink,
    pub options: EngineOptions,
}

/// Where pieces are made.
pub(super) enum Finisher {
    /// On the caller's thread.
    AtOnce(Desk),
    /// On a thread of its own, in the order in which they come. Dropping it ends the thread, once all that waits is made.
    Beside(Beside),
}

pub(super) struct Beside {
    desk: Arc<Desk>,
    /// Taken when it is dropped.
    pieces: Option<SyncSender<Piece>>,
    waiting: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Finisher {
    /// On a thread of its own.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn beside(desk: Desk, busy: Arc<Busy>) -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel(WAITING);
        let (desk, waiting) = (Arc::new(desk), Arc::<AtomicUsize>::default());
        let (own, ours) = (desk.clone(), waiting.clone());
        let run = move || work(&receiver, &own, (&ours, &busy));
        let thread = std::thread::Builder::new().name("darkroom-finisher".to_owned()).spawn(run)?;
        Ok(Self::Beside(Beside { desk, pieces: Some(sender), waiting, thread: Some(thread) }))
    }

    pub(super) fn desk(&self) -> &Desk {
        match self {
            Self::AtOnce(desk) => desk,
            Self::Beside(beside) => &beside.desk,
        }
    }

    /// Has a sample's picture made; waits while too many wait.
    pub(super) fn picture(&self, sample: SampleState) {
        self.desk().ledger.hand_over(sample.job);
        self.send(Piece::Picture(Box::new(sample)));
    }

    /// Has a sample taken over by its next pass, and brought back to the loop; waits like a picture.
    pub(super) fn enlarge(&self, sample: SampleState, next: NextPass) {
        self.desk().ledger.hand_over_between(sample.job);
        self.send(Piece::Enlarged(Box::new(sample), next));
    }

    /// Has a preview made, unless too much waits.
    pub(super) fn preview(&self, look: Look) {
        if let Self::Beside(Beside { waiting, .. }) = self
            && waiting.load(Ordering::Relaxed) >= PREVIEWS_UP_TO
        {
            return;
        }
        self.desk().ledger.lend(look.job);
        self.send(Piece::Preview(look));
    }

    fn send(&self, piece: Piece) {
        let left = match self {
            Self::AtOnce(_) => Some(piece),
            Self::Beside(Beside { pieces, waiting, .. }) => {
                waiting.fetch_add(1, Ordering::Relaxed);
                match pieces {
                    Some(pieces) => pieces.send(piece).err().map(|refused| refused.0),
                    None => Some(piece),
                }
            }
        };
        // A thread that has ended against all expectation leaves its work to the caller.
        if let Some(piece) = left {
            self.desk().make(piece);
        }
    }
}

fn work(pieces: &Receiver<Piece>, desk: &Desk, (waiting, busy): (&AtomicUsize, &Busy)) {
    for piece in pieces {
        waiting.fetch_sub(1, Ordering::Relaxed);
        busy.work();
        desk.make(piece);
        busy.rest();
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.pieces = None;
        if let Some(thread) = self.thread.take() {
            // A panic has been logged by the thread itself.
            let _ = thread.join();
        }
    }
}

impl Desk {
    fn make(&self, piece: Piece) {
        let end = match piece {
            Piece::Picture(sample) => {
                let job = sample.job;
                // The gate's work is caught by itself, so that it is left; this is for what follows it.
                let made = caught(|| self.picture(*sample));
                self.ledger.bring_back(job, made)
            }
            Piece::Enlarged(sample, next) => {
                let job = sample.job;
                let made = self.between(*sample, next);
                self.ledger.bring_back_between(job, made)
            }
            Piece::Preview(look) => {
                let job = look.job;
                let made = caught(|| self.preview(look));
                self.ledger.bring_back(job, made)
            }
        };
        if let Some(end) = end {
            (self.sink)(end);
        }
    }

    /// The sample as the next pass begins it. As it was, it is gone afterwards, like one of which a picture is made.
    fn between(&self, sample: SampleState, next: NextPass) -> Result<SampleState, Refusal> {
        if self.ledger.is_ending(sample.job) {
            return Ok(sample);
        }
        self.options.gate.work(|| sample.between(&next)).result
    }

    /// How long it took. The sample is gone afterwards: it holds a pipeline, which is let go of before the job's end is told.
    fn picture(&self, sample: SampleState) -> Result<Duration, Refusal> {
        let (job, image) = (sample.job, sample.image);
        if self.ledger.is_ending(job) {
            return Ok(Duration::ZERO);
        }
        let began = Instant::now();
        let decode = || {
            self.options.provoke(job, FaultPoint::Decode)?;
            sample.checked()?;
            let drawn: RgbImage = sample.told.pipeline.decode(sample.latents()).map_err(Refusal::failed)?;
            Ok(match &sample.told.canvas {
                Some(canvas) => canvas.finish(drawn),
                None => drawn,
            })
        };
        let picture = self.options.gate.work(|| caught(decode)).result?;
        let took = began.elapsed();
        drop(sample);
        (self.sink)(EngineEvent::Image { job, image, picture });
        Ok(took)
    }

    fn preview(&self, look: Look) -> Result<Duration, Refusal> {
        let Look { job, image, step, told, latents } = look;
        if !self.ledger.is_ending(job) {
            let made = caught(|| told.pipeline.preview(&latents).map_err(Refusal::failed));
            // A preview that cannot be made is no reason to fail the picture.
            if let Ok(Some(picture)) = made {
                (self.sink)(EngineEvent::Preview { job, image, step, picture });
            }
        }
        Ok(Duration::ZERO)
    }
}
