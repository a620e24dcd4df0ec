//! Who works on a device at once with much of its memory: a forward, a decode, a job that is made ready. Nobody waits for the others, but
//! where memory ran out for one that had company, it tries once more without.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

use super::refusal::Refusal;
use crate::domain::ErrorCode;

/// One a device.
#[derive(Debug, Default)]
pub struct MemoryGate {
    /// Shared by those within; exclusive for one that tries again.
    within: RwLock<()>,
    /// How many are within.
    now: AtomicUsize,
    /// How many have come in, ever.
    ever: AtomicUsize,
}

impl MemoryGate {
    /// Runs `work` beside others'; once more with nobody beside it, where it ran out of memory and was not alone. It must leave
    /// everything as it was where it fails, and must not come here itself.
    pub(super) fn work<T>(&self, mut work: impl FnMut() -> Result<T, Refusal>) -> Result<T, Refusal> {
        let (result, had_company) = self.beside_others(&mut work);
        match result {
            Err(refusal) if refusal.code == ErrorCode::OutOfMemory && had_company => {
                tracing::warn!(reason = %refusal.message, "memory ran out beside other work; trying once more without");
                let _alone = self.within.write().unwrap_or_else(PoisonError::into_inner);
                work()
            }
            done => done,
        }
    }

    /// What came of it, and whether anybody else was within meanwhile.
    fn beside_others<T>(&self, work: impl FnOnce() -> T) -> (T, bool) {
        let _within = self.within.read().unwrap_or_else(PoisonError::into_inner);
        let others = self.now.fetch_add(1, Ordering::SeqCst);
        let before = self.ever.fetch_add(1, Ordering::SeqCst);
        let done = work();
        self.now.fetch_sub(1, Ordering::SeqCst);
        (done, others > 0 || self.ever.load(Ordering::SeqCst) > before + 1)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    fn full() -> Refusal {
        Refusal::failed("out of memory")
    }

    #[test]
    fn one_that_was_alone_is_not_tried_again() {
        let (gate, mut tries) = (MemoryGate::default(), 0);
        let outcome = gate.work(|| {
            tries += 1;
            Err::<(), _>(full())
        });
        assert_eq!((outcome.map_err(|refusal| refusal.code), tries), (Err(ErrorCode::OutOfMemory), 1));
    }

    #[test]
    fn one_that_had_company_is_tried_once_more_when_that_has_gone() {
        for other in ["out of memory", "something else"] {
            let (gate, both, inside) = (MemoryGate::default(), Barrier::new(2), AtomicUsize::new(0));
            let mut tries = 0;
            let outcome = std::thread::scope(|scope| {
                scope.spawn(|| {
                    gate.work(|| {
                        inside.fetch_add(1, Ordering::SeqCst);
                        both.wait();
                        // It has failed by now, or is about to.
                        both.wait();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        Ok(())
                    })
                });
                gate.work(|| {
                    tries += 1;
                    if tries == 1 {
                        both.wait();
                        both.wait();
                        return Err(Refusal::failed(other));
                    }
                    Ok(inside.load(Ordering::SeqCst))
                })
            });
            match other {
                "out of memory" => assert_eq!((outcome.ok(), tries), (Some(0), 2), "nobody is beside it"),
                _ => assert_eq!((outcome.is_err(), tries), (true, 1)),
            }
        }
    }
}
