//! When a busy worker looks for more, under the policy `continuous`.

use std::time::Duration;

use tokio::time::Instant;

use crate::diffusion::engine::EngineDemand;
use crate::domain::{ModelId, QueuePlace, SizeKey};

/// The queue's length is asked for no more often.
const WAITING_EVERY: Duration = Duration::from_millis(200);

/// What a look at the queue found: nothing that stands before this place; `None`: nothing at all.
type FoundNothing = Option<QueuePlace>;

/// Whether a look for what stands `before` this could find something, after a look that found nothing.
fn may_find(found_nothing: FoundNothing, before: Option<QueuePlace>) -> bool {
    found_nothing.is_some_and(|found| before.is_none_or(|before| found < before))
}

/// What a worker knows of its engine's wants.
#[derive(Debug, Default)]
pub(super) struct Filling {
    /// Jobs sent to the engine since it started.
    sent: u64,
    demand: Option<EngineDemand>,
    /// The present demand has been acted on; nothing has come since.
    looked: bool,
    /// Rows that a batch should have, by the engine's last word.
    target: Option<u32>,
    /// Of this size; nothing has come since.
    of_size: Option<(SizeKey, FoundNothing)>,
    /// Of other sizes; nothing has come since.
    of_others: Option<(SizeKey, FoundNothing)>,
    asked_waiting: Option<Instant>,
}

impl Filling {
    /// So many jobs went to the engine.
    pub(super) fn sent(&mut self, jobs: usize) {
        self.sent += jobs as u64;
        self.demand = None;
    }

    /// The engine says what it could use. What it says without knowing of the last jobs sent is not heeded: they may be
    /// what it asks for.
    pub(super) fn heed(&mut self, demand: EngineDemand) {
        self.target = Some(demand.target);
        self.demand = Some(demand).filter(|demand| demand.admitted == self.sent);
        self.looked = false;
    }

    /// Something may have come into the queue.
    pub(super) fn look_again(&mut self) {
        self.of_size = None;
        self.of_others = None;
        self.looked = false;
    }

    /// Nothing of this size waits that stands before.
    pub(super) fn found_none(&mut self, size: &SizeKey, before: Option<QueuePlace>) {
        self.of_size = Some((size.clone(), before));
    }

    /// Nothing of another size than this waits that stands before.
    pub(super) fn found_no_other(&mut self, size: &SizeKey, before: Option<QueuePlace>) {
        self.of_others = Some((size.clone(), before));
    }

    /// Whether something of this size may wait that stands before.
    pub(super) fn may_find(&self, size: &SizeKey, before: Option<QueuePlace>) -> bool {
        self.of_size.as_ref().is_none_or(|(known, found)| known != size || may_find(*found, before))
    }

    /// Whether something of another size than this may wait that stands before.
    pub(super) fn may_find_other(&self, size: &SizeKey, before: Option<QueuePlace>) -> bool {
        self.of_others.as_ref().is_none_or(|(known, found)| known != size || may_find(*found, before))
    }

    /// Whose turn it is on a device that could use more, where that is worth a look at the queue now.
    pub(super) fn wanted_for(&self) -> Option<&ModelId> {
        self.demand.as_ref().filter(|_| !self.looked).map(|demand| &demand.size.model)
    }

    /// What is worth a look at the queue now: once each demand, and again when something has come.
    pub(super) fn wanted(&mut self) -> Option<EngineDemand> {
        if std::mem::replace(&mut self.looked, true) { None } else { self.demand.clone() }
    }

    /// Rows that an idle engine's first claim asks for; the next demand corrects it within a step.
    pub(super) fn first_rows(&self, max_rows: u32) -> u32 {
        self.target.map_or(max_rows, |target| target.clamp(1, max_rows))
    }

    /// Whether it is time to ask how much waits.
    pub(super) fn asks_waiting(&mut self) -> bool {
        let is_due = self.asked_waiting.is_none_or(|asked| asked.elapsed() >= WAITING_EVERY);
        if is_due {
            self.asked_waiting = Some(Instant::now());
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn before(rank_ms: i64) -> QueuePlace {
        QueuePlace { rank_ms, id: uuid::Uuid::nil().into() }
    }

    fn demand(width: u32, rows: u32, admitted: u64) -> EngineDemand {
        let size = SizeKey { model: ModelId::new("m"), width, height: 8 };
        EngineDemand { size, steps: 4, rows, displaces: None, target: rows + 2, before: Some(before(7)), admitted }
    }

    #[test]
    fn a_demand_that_does_not_know_of_the_last_jobs_is_not_heeded() {
        let mut filling = Filling::default();
        assert_eq!(filling.first_rows(32), 32);
        filling.sent(2);
        filling.heed(demand(8, 4, 1));
        assert_eq!((filling.wanted(), filling.first_rows(32)), (None, 6));
        filling.heed(demand(8, 4, 2));
        assert_eq!(filling.wanted(), Some(demand(8, 4, 2)));
        assert_eq!(filling.wanted(), None, "acted on once");
        filling.look_again();
        assert_eq!(filling.wanted(), Some(demand(8, 4, 2)));
        filling.heed(demand(8, 4, 2));
        filling.sent(1);
        assert_eq!(filling.wanted(), None);
    }

    #[test]
    fn what_was_not_found_is_left_until_something_comes() {
        let mut filling = Filling::default();
        let (small, large) = (demand(8, 0, 0).size, demand(16, 0, 0).size);
        let places = [Some(before(7)), Some(before(8)), None];
        let of_size = |filling: &Filling, size| places.map(|place| filling.may_find(size, place));
        let of_others = |filling: &Filling, size| places.map(|place| filling.may_find_other(size, place));
        filling.found_none(&small, Some(before(7)));
        assert_eq!((of_size(&filling, &small), of_size(&filling, &large)), ([false, true, true], [true; 3]));
        assert_eq!(of_others(&filling, &small), [true; 3]);
        filling.found_none(&small, None);
        filling.found_no_other(&small, Some(before(7)));
        assert_eq!((of_size(&filling, &small), of_others(&filling, &small)), ([false; 3], [false, true, true]));
        assert_eq!(of_others(&filling, &large), [true; 3]);
        filling.look_again();
        assert_eq!((of_size(&filling, &small), of_others(&filling, &small)), ([true; 3], [true; 3]));
    }
}
