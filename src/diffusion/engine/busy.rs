//! For how long an engine has given no sign: what tells a hang from work, seen from another thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// One engine's; its thread says when it works, its handle reads it.
#[derive(Debug)]
pub(super) struct Busy {
    origin: Instant,
    /// Microseconds from `origin` to the last sign, and 1; 0 while there is nothing to do, or others are waited for.
    since: AtomicU64,
}

impl Busy {
    pub(super) fn new() -> Self {
        Self { origin: Instant::now(), since: AtomicU64::new(0) }
    }

    /// A sign: from here on it works.
    pub(super) fn work(&self) {
        self.since.store(1 + self.now(), Ordering::Relaxed);
    }

    pub(super) fn rest(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    /// How long ago the last sign was; none while it rests.
    pub(super) fn silence(&self) -> Option<Duration> {
        let since = self.since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Duration::from_micros(self.now().saturating_sub(since)))
    }

    fn now(&self) -> u64 {
        self.origin.elapsed().as_micros() as u64
    }
}
