//! Holding the engine still.

use std::sync::{Arc, Condvar, Mutex};

use darkroom::diffusion::engine::{Fault, FaultHook, FaultPoint};

/// Holds the engine before its first evaluation until told to go on.
#[derive(Default)]
pub(crate) struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    pub(crate) fn hook(self: &Arc<Self>) -> FaultHook {
        let gate = self.clone();
        Arc::new(move |_, point| {
            if matches!(point, FaultPoint::Evaluate { .. }) {
                let open = gate.open.lock().unwrap();
                drop(gate.opened.wait_while(open, |open| !*open).unwrap());
            }
            Fault::None
        })
    }

    pub(crate) fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}
