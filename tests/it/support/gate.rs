//! An engine, and a loader of models, that wait to be told.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use darkroom::app::LoadHook;
use darkroom::diffusion::engine::{Fault, FaultHook, FaultPoint};
use tokio::sync::Notify;

/// A test that failed with its gate closed lets its engine, and so its own end, go.
const FORGOTTEN: Duration = Duration::from_secs(180);

/// Holds the engine until told to go on.
pub(crate) struct Gate {
    hold: Hold,
    decoded: AtomicU32,
    open: Mutex<bool>,
    opened: Condvar,
}

#[derive(Clone, Copy)]
enum Hold {
    /// Before an evaluation, when so many steps were taken.
    Step(u32),
    /// Before a picture is decoded, when so many were.
    Picture(u32),
}

impl Default for Gate {
    /// Holds it before its first evaluation.
    fn default() -> Self {
        Self::after_steps(0)
    }
}

impl Gate {
    /// Lets so many steps of each picture pass first.
    pub(crate) fn after_steps(steps: u32) -> Self {
        Self::new(Hold::Step(steps))
    }

    /// Lets so many pictures be finished first.
    pub(crate) fn after_pictures(pictures: u32) -> Self {
        Self::new(Hold::Picture(pictures))
    }

    fn new(hold: Hold) -> Self {
        Self { hold, decoded: AtomicU32::new(0), open: Mutex::new(false), opened: Condvar::new() }
    }

    pub(crate) fn hook(self: &Arc<Self>) -> FaultHook {
        let gate = self.clone();
        Arc::new(move |_, point| {
            let is_held = match (point, gate.hold) {
                (FaultPoint::Evaluate { step, .. }, Hold::Step(steps)) => step >= steps,
                (FaultPoint::Decode, Hold::Picture(pictures)) => {
                    gate.decoded.fetch_add(1, Ordering::SeqCst) >= pictures
                }
                _ => false,
            };
            if is_held {
                let open = gate.open.lock().unwrap();
                drop(gate.opened.wait_timeout_while(open, FORGOTTEN, |open| !*open).unwrap());
            }
            Fault::None
        })
    }

    pub(crate) fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

/// Holds the loads of one model until told to go on.
pub(crate) struct LoadGate {
    model: &'static str,
    reached: Notify,
    open: Mutex<bool>,
    opened: Condvar,
}

impl LoadGate {
    pub(crate) fn of(model: &'static str) -> Arc<Self> {
        Arc::new(Self { model, reached: Notify::new(), open: Mutex::new(false), opened: Condvar::new() })
    }

    pub(crate) fn hook(self: &Arc<Self>) -> LoadHook {
        let gate = self.clone();
        Arc::new(move |model| {
            if model.as_str() == gate.model {
                gate.reached.notify_one();
                let open = gate.open.lock().unwrap();
                drop(gate.opened.wait_timeout_while(open, FORGOTTEN, |open| !*open).unwrap());
            }
        })
    }

    /// Waits until a load stands at the gate.
    pub(crate) async fn reached(&self) {
        self.reached.notified().await;
    }

    pub(crate) fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}
