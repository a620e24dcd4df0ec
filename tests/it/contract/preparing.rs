//! Jobs that are being made ready count as the worker's, and hold up nobody.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use darkroom::diffusion::engine::{EngineOptions, Fault, FaultHook, FaultPoint};
use darkroom::dispatch::events::{BusOptions, EventBus, InProcessBus};
use darkroom::dispatch::jobs::{Cancelled, JobStore};
use darkroom::dispatch::workers::{WorkerOptions, WorkerPool};
use darkroom::domain::{Clock, ErrorCode, JobId, JobStatus, SystemClock};
use tokio::sync::Notify;

use super::job_store_bed::insert;
use super::workers::{DEADLINE, PATIENCE, options, parts, pool, pool_with, request, store, watched};

/// The first job that comes to a point waits there until told, and then fails where it is to.
struct Hold {
    at: FaultPoint,
    is_taken: AtomicBool,
    reached: Notify,
    open: Mutex<bool>,
    opened: Condvar,
    then: Fault,
}

impl Hold {
    /// While it is made ready.
    fn new(then: Fault) -> Arc<Self> {
        Self::at(FaultPoint::Encode, then)
    }

    fn at(at: FaultPoint, then: Fault) -> Arc<Self> {
        let (open, opened) = (Mutex::new(false), Condvar::new());
        Arc::new(Self { at, is_taken: AtomicBool::new(false), reached: Notify::new(), open, opened, then })
    }

    fn options(self: &Arc<Self>) -> EngineOptions {
        let hold = self.clone();
        let hook: FaultHook = Arc::new(move |_, point| {
            if point != hold.at || hold.is_taken.swap(true, Ordering::SeqCst) {
                return Fault::None;
            }
            hold.reached.notify_one();
            let open = hold.open.lock().unwrap();
            drop(hold.opened.wait_timeout_while(open, DEADLINE, |open| !*open).unwrap());
            hold.then
        });
        EngineOptions { fault: Some(hook), ..EngineOptions::default() }
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

struct Scene {
    jobs: Arc<dyn JobStore>,
    events: Arc<dyn EventBus>,
    pool: WorkerPool,
    hub: Arc<darkroom::dispatch::hub::WorkerHub>,
    /// The one that waits.
    held: JobId,
    _folder: tempfile::TempDir,
}

/// A worker whose first job waits on its way to the engine.
async fn scene(hold: &Arc<Hold>) -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let events: Arc<dyn EventBus> = Arc::new(InProcessBus::new(BusOptions::default(), clock.clone()));
    let jobs = store(folder.path(), clock).await;
    let held = insert(&*jobs, request(1, 3)).await.id;
    let parts = parts(folder.path(), jobs.clone(), events.clone());
    let hub = parts.hub.clone();
    let pool = pool("one", parts, hold.options()).await;
    tokio::time::timeout(DEADLINE, hold.reached.notified()).await.expect("it is claimed in time");
    Scene { jobs, events, pool, hub, held, _folder: folder }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_cancelled_on_its_way_ends_at_once_and_the_next_is_drawn() {
    let hold = Hold::new(Fault::None);
    let Scene { jobs, events, pool, hub, held, _folder } = scene(&hold).await;
    assert_eq!(jobs.get(held).await.unwrap().unwrap().status, JobStatus::Running);
    assert!(matches!(jobs.cancel(held).await.unwrap(), Some(Cancelled::Requested(_))));
    hub.cancel(held);
    assert_eq!(watched(&*events, held).await, ["started", "cancelled"]);
    let next = insert(&*jobs, request(2, 3)).await.id;
    assert_eq!(watched(&*events, next).await.last(), Some(&"succeeded"), "while the first is still being made ready");
    hold.open();
    pool.drain(PATIENCE).await;
    let ended = jobs.get(held).await.unwrap().unwrap();
    assert_eq!((ended.status, ended.images.len()), (JobStatus::Cancelled, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_on_its_way_is_handed_back_by_a_worker_that_stops() {
    let hold = Hold::new(Fault::None);
    let Scene { jobs, pool, held, _folder, .. } = scene(&hold).await;
    pool.drain(std::time::Duration::ZERO).await;
    let back = jobs.get(held).await.unwrap().unwrap();
    assert_eq!((back.status, back.attempts), (JobStatus::Queued, 0));
    hold.open();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_cannot_be_made_ready_fails_alone_whatever_its_fault() {
    for (fault, code) in [(Fault::Error, ErrorCode::GenerationFailed), (Fault::Panic, ErrorCode::Internal)] {
        let hold = Hold::new(fault);
        let Scene { jobs, events, pool, held, _folder, .. } = scene(&hold).await;
        hold.open();
        assert_eq!(watched(&*events, held).await, ["started", "failed"]);
        let next = insert(&*jobs, request(2, 3)).await.id;
        assert_eq!(watched(&*events, next).await.last(), Some(&"succeeded"));
        let error = jobs.get(held).await.unwrap().unwrap().error.unwrap();
        assert_eq!(error.code, code, "{fault:?}");
        pool.drain(PATIENCE).await;
    }
}

/// Far more than either takes of tiny-sd on a busy machine.
const HANG: std::time::Duration = std::time::Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn what_hangs_beside_the_loop_is_given_up_and_its_job_drawn_by_the_next_engine() {
    for hangs_at in [FaultPoint::Encode, FaultPoint::Decode] {
        let folder = tempfile::tempdir().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let events: Arc<dyn EventBus> = Arc::new(InProcessBus::new(BusOptions::default(), clock.clone()));
        let jobs = store(folder.path(), clock).await;
        let job = insert(&*jobs, request(1, 3)).await.id;
        let hold = Hold::at(hangs_at, Fault::None);
        let parts = parts(folder.path(), jobs.clone(), events.clone());
        let options = WorkerOptions { step_timeout: Some(HANG), ..options("one", hold.options()) };
        let pool = pool_with(parts, options).await;
        assert_eq!(watched(&*events, job).await.last(), Some(&"succeeded"), "{hangs_at:?}");
        let ended = jobs.get(job).await.unwrap().unwrap();
        assert_eq!((ended.attempts, ended.images.len()), (2, 1), "{hangs_at:?}");
        hold.open();
        pool.drain(PATIENCE).await;
    }
}
