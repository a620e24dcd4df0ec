//! Who works on a device at once with much of its memory: a forward, a decode, a job that is made ready. Nobody waits for the others, but
//! where memory ran out for one that had company, it tries once more without.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::refusal::Refusal;
use crate::domain::ErrorCode;

/// How long one that ran out of memory waits for the others to end, and newcomers for it. An engine that hangs is given up by then.
const PATIENCE: Duration = Duration::from_secs(30);

/// One an engine. Several engines on one device do not see each other's work.
#[derive(Debug, Default)]
pub struct MemoryGate {
    books: Mutex<Books>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct Books {
    within: u32,
    /// Who has come in, ever.
    entered: u64,
    /// Somebody is within alone, or waits to be.
    is_closed: bool,
}

/// What came of work at the gate.
pub(super) struct Worked<T> {
    pub result: Result<T, Refusal>,
    /// Whether it was done at once and once, so that the time it took tells what it takes.
    pub is_plain: bool,
}

impl MemoryGate {
    /// Runs `work` beside others'; once more with nobody beside it, where it ran out of memory and was not alone. It must leave
    /// everything as it was where it fails, must not panic, and must not come here itself.
    pub(super) fn work<T>(&self, mut work: impl FnMut() -> Result<T, Refusal>) -> Worked<T> {
        let (books, has_waited) = self.wait(self.books(), |books| books.is_closed);
        let company = self.enter(books);
        let result = work();
        let had_company = self.leave(company);
        match result {
            Err(refusal) if refusal.code == ErrorCode::OutOfMemory && had_company => {
                tracing::warn!(reason = %refusal.message, "memory ran out beside other work; trying once more without");
                Worked { result: self.alone(work).unwrap_or(Err(refusal)), is_plain: false }
            }
            result => Worked { result, is_plain: !has_waited },
        }
    }

    /// `None` where the others do not end.
    fn alone<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let (mut books, _) = self.wait(self.books(), |books| books.is_closed);
        books.is_closed = true;
        let (books, _) = self.wait(books, |books| books.within > 0);
        let is_alone = books.within == 0;
        drop(books);
        let done = is_alone.then(work);
        self.books().is_closed = false;
        self.changed.notify_all();
        done
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// While this holds, but not for ever; and whether it held at all.
    fn wait<'a>(
        &'a self,
        books: MutexGuard<'a, Books>,
        holds: impl Fn(&Books) -> bool,
    ) -> (MutexGuard<'a, Books>, bool) {
        let held = holds(&books);
        let waited = self.changed.wait_timeout_while(books, PATIENCE, |books| holds(books));
        (waited.unwrap_or_else(PoisonError::into_inner).0, held)
    }

    /// Whether anybody is within, and who comes after this one.
    fn enter(&self, mut books: MutexGuard<'_, Books>) -> (bool, u64) {
        let is_any = books.within > 0;
        books.within += 1;
        books.entered += 1;
        (is_any, books.entered)
    }

    /// Whether anybody else was within meanwhile.
    fn leave(&self, (was_any, entered): (bool, u64)) -> bool {
        let mut books = self.books();
        books.within -= 1;
        let had_company = was_any || books.entered > entered;
        drop(books);
        self.changed.notify_all();
        had_company
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn one_that_was_alone_is_not_tried_again() {
        let (gate, mut tries) = (MemoryGate::default(), 0);
        let worked = gate.work(|| {
            tries += 1;
            Err::<(), _>(Refusal::failed("out of memory"))
        });
        assert_eq!(worked.result.map_err(|refusal| refusal.code), Err(ErrorCode::OutOfMemory));
        assert_eq!((worked.is_plain, tries), (true, 1));
    }

    #[test]
    fn one_that_had_company_is_tried_once_more_when_that_has_gone() {
        for reason in ["out of memory", "something else"] {
            let (gate, both, inside) = (MemoryGate::default(), Barrier::new(2), AtomicUsize::new(0));
            let mut tries = 0;
            let worked = std::thread::scope(|scope| {
                scope.spawn(|| {
                    gate.work(|| {
                        inside.fetch_add(1, Ordering::SeqCst);
                        both.wait();
                        // The other fails while this is within yet, or when it has just left.
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
                        return Err(Refusal::failed(reason));
                    }
                    Ok(inside.load(Ordering::SeqCst))
                })
            });
            match reason {
                "out of memory" => assert_eq!((worked.result.ok(), tries), (Some(0), 2), "nobody is beside it"),
                _ => assert_eq!((worked.result.is_err(), tries), (true, 1)),
            }
        }
    }
}
