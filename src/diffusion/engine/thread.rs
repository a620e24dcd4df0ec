//! The thread around the loop, and drawing without one.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::EngineOptions;
use super::busy::Busy;
use super::events::{EngineEvent, EngineJob, EventSink};
use super::prepare::Prepared;
use super::step_loop::StepLoop;
use crate::diffusion::pipelines::Pipeline;
use crate::domain::{ErrorCode, GenerationRequest, JobId, ModelId, QueuePlace};
use crate::images::{Canvas, ControlPicture, RgbImage};

/// More commands than jobs a worker ever holds: it is full only when the engine hangs.
const COMMANDS: usize = 4096;

/// An engine whose only samples are between two passes looks this often whether they are back, which takes a thousand times
/// as long.
const BETWEEN_PASSES: Duration = Duration::from_millis(1);

enum Command {
    Take(Vec<Prepared>),
    Cancel(JobId),
    Waiting(u32),
    /// The models, the time for all of them, and whom to tell of the end, by dropping it.
    WarmUp(Vec<Arc<dyn Pipeline>>, Duration, SyncSender<()>),
    Park(JobId),
    GiveAway(Vec<ModelId>),
    Stop,
}

/// The engine's thread has ended, or takes no more commands.
#[derive(Debug, thiserror::Error)]
#[error("the engine takes no more commands")]
pub struct EngineStopped;

/// Talks to one engine; dropping it stops the engine at its next step, should it come to one.
#[derive(Debug)]
pub struct EngineHandle {
    commands: SyncSender<Command>,
    /// Of the loop, and of the finisher.
    busy: [Arc<Busy>; 2],
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Starts an engine on a thread of its own, with another beside it that makes pictures of what is drawn.
///
/// # Errors
/// The system gives no thread.
pub fn start(options: EngineOptions, sink: EventSink) -> std::io::Result<EngineHandle> {
    let (commands, receiver) = sync_channel(COMMANDS);
    let (busy, finishing) = (Arc::new(Busy::new()), Arc::new(Busy::new()));
    let engine =
        StepLoop::beside_finisher(options, resting(&busy, sink.clone()), (&finishing, resting(&finishing, sink)))?;
    let own = busy.clone();
    let run = move || run(&receiver, &own, engine);
    let thread = std::thread::Builder::new().name("darkroom-engine".to_owned()).spawn(run)?;
    Ok(EngineHandle { commands, busy: [busy, finishing], thread: Mutex::new(Some(thread)) })
}

/// Waiting for whoever takes the events is no work.
fn resting(busy: &Arc<Busy>, sink: EventSink) -> EventSink {
    let busy = busy.clone();
    Arc::new(move |event| {
        busy.rest();
        sink(event);
        busy.work();
    })
}

/// Commands are taken between steps; an idle engine sleeps on its channel.
fn run(commands: &Receiver<Command>, busy: &Busy, mut engine: StepLoop) {
    loop {
        busy.rest();
        let command = if engine.is_idle() {
            commands.recv().map_err(|_| TryRecvError::Disconnected)
        } else if engine.is_waiting() {
            commands.recv_timeout(BETWEEN_PASSES).map_err(|error| match error {
                RecvTimeoutError::Timeout => TryRecvError::Empty,
                RecvTimeoutError::Disconnected => TryRecvError::Disconnected,
            })
        } else {
            commands.try_recv()
        };
        busy.work();
        match command {
            Ok(Command::Take(jobs)) => jobs.into_iter().for_each(|job| engine.take(job)),
            Ok(Command::Cancel(job)) => engine.cancel(job),
            Ok(Command::Waiting(rows)) => engine.set_waiting(rows),
            Ok(Command::WarmUp(pipelines, patience, _done)) => {
                let until = Instant::now() + patience;
                pipelines
                    .iter()
                    .for_each(|pipeline| engine.warm_up(pipeline, until.saturating_duration_since(Instant::now())));
            }
            Ok(Command::Park(job)) => engine.park(job),
            Ok(Command::GiveAway(models)) => engine.give_away(&models),
            Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return busy.rest(),
            Err(TryRecvError::Empty) => engine.tick(),
        }
    }
}

impl EngineHandle {
    /// Hands jobs over that are to come aboard together; their events follow.
    ///
    /// # Errors
    /// The engine has ended or hangs; none of the jobs was taken.
    pub fn take(&self, jobs: Vec<Prepared>) -> Result<(), EngineStopped> {
        self.send(Command::Take(jobs))
    }

    /// Leaves a job at the next step; `Cancelled` follows, unless it has ended or is about to end otherwise.
    pub fn cancel(&self, job: JobId) {
        // An engine that is gone has nothing to leave.
        let _ = self.send(Command::Cancel(job));
    }

    /// Takes a job off at the next step; `Parked` follows, unless it ended before.
    ///
    /// # Errors
    /// The engine has ended or hangs.
    pub fn park(&self, job: JobId) -> Result<(), EngineStopped> {
        self.send(Command::Park(job))
    }

    /// Takes off the oldest job that waits at the next step and needs no other models than these; `Parked` follows where there
    /// is one.
    pub fn give_away(&self, models: Vec<ModelId>) {
        // An engine that is gone has nothing to give.
        let _ = self.send(Command::GiveAway(models));
    }

    /// Tells how many rows wait for this device in the queue: how many are worth a forward depends on it.
    pub fn set_waiting(&self, rows: u32) {
        // The next forward is only a little too small or too large without.
        let _ = self.send(Command::Waiting(rows));
    }

    /// Evaluates models at their default sizes, for `patience` in all, so that there is something to believe of what forwards
    /// cost. The receiver gets nothing; its other end is dropped when that is done, or will not be.
    pub fn warm_up(&self, pipelines: Vec<Arc<dyn Pipeline>>, patience: Duration) -> Receiver<()> {
        let (done, ended) = sync_channel(1);
        // An engine that is gone draws nothing either.
        let _ = self.send(Command::WarmUp(pipelines, patience, done));
        ended
    }

    fn send(&self, command: Command) -> Result<(), EngineStopped> {
        self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) | TrySendError::Disconnected(_) => EngineStopped,
        })
    }

    /// Whether the thread still runs.
    pub fn is_alive(&self) -> bool {
        self.thread.lock().is_ok_and(|thread| thread.as_ref().is_some_and(|thread| !thread.is_finished()))
    }

    /// For how long the engine has worked on one step, command or picture without a word; none while it waits for the next, or
    /// for whoever takes its events.
    pub fn silence(&self) -> Option<Duration> {
        self.busy.iter().filter_map(|busy| busy.silence()).max()
    }

    /// Has the engine stop at its next step, should it come to one, and does not wait for that.
    pub fn give_up(&self) {
        let _ = self.send(Command::Stop);
    }

    /// Stops at the next step, and waits for the thread and for what its finisher has begun, whose events follow; jobs with
    /// steps to take have no further word.
    pub fn stop(&self) {
        self.give_up();
        let thread = self.thread.lock().ok().and_then(|mut thread| thread.take());
        if let Some(thread) = thread {
            // A panic has been logged by the thread itself.
            let _ = thread.join();
        }
    }
}

/// A request, and what its pictures are drawn on.
#[derive(Clone, Debug)]
pub struct Drawing {
    /// What to draw.
    pub request: GenerationRequest,
    /// The request's pictures to start from, where it has any.
    pub canvas: Option<Arc<Canvas>>,
    /// The pictures of the request's controls, as many as it has.
    pub controls: Vec<ControlPicture>,
}

impl From<GenerationRequest> for Drawing {
    fn from(request: GenerationRequest) -> Self {
        Self { request, canvas: None, controls: Vec::new() }
    }
}

/// Draws one request on this thread; `watch` sees every event. Pictures by index.
///
/// # Errors
/// Why it could not be drawn: in a word, and as a sentence.
pub fn draw(
    pipeline: Arc<dyn Pipeline>,
    drawing: impl Into<Drawing>,
    options: EngineOptions,
    watch: impl FnMut(&EngineEvent) + Send + 'static,
) -> Result<Vec<RgbImage>, (ErrorCode, String)> {
    draw_with(vec![pipeline], drawing, options, watch)
}

/// The same with every model that the request names.
///
/// # Errors
/// As [`draw`].
pub fn draw_with(
    pipelines: Vec<Arc<dyn Pipeline>>,
    drawing: impl Into<Drawing>,
    options: EngineOptions,
    watch: impl FnMut(&EngineEvent) + Send + 'static,
) -> Result<Vec<RgbImage>, (ErrorCode, String)> {
    let (sender, events) = sync_channel(1024);
    let watch = Mutex::new(watch);
    let sink: EventSink = Arc::new(move |event| {
        if let Ok(mut watch) = watch.lock() {
            watch(&event);
        }
        if matches!(event, EngineEvent::Image { .. } | EngineEvent::Failed { .. }) {
            // Read below, after the loop: at most `num_images` events.
            let _ = sender.try_send(event);
        }
    });
    let id = JobId::generate();
    let Drawing { request, canvas, controls } = drawing.into();
    let job = EngineJob {
        id,
        request: Arc::new(request),
        canvas,
        controls,
        place: QueuePlace { rank_ms: 0, id },
        pipelines,
        parked: None,
    };
    let mut engine = StepLoop::new(options, sink);
    engine.admit(&job);
    while !engine.is_idle() {
        engine.tick();
    }
    // The last sender goes with it.
    drop(engine);
    let mut pictures = Vec::new();
    for event in events {
        match event {
            EngineEvent::Image { image, picture, .. } => pictures.push((image, picture)),
            EngineEvent::Failed { code, message, .. } => return Err((code, message)),
            _ => {}
        }
    }
    pictures.sort_by_key(|(image, _)| *image);
    Ok(pictures.into_iter().map(|(_, picture)| picture).collect())
}
