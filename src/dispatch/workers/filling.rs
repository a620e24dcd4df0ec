//! When a busy worker looks for more, under the policy `continuous`.

use std::time::Duration;

use tokio::time::Instant;

use crate::diffusion::engine::EngineDemand;
use crate::domain::{QueuePlace, SizeKey};

/// The queue's length is asked for no more often.
const WAITING_EVERY: Duration = Duration::from_millis(200);

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
    /// Of this size nothing waited; nothing has come since.
    exhausted: Option<SizeKey>,
    /// Of other sizes nothing waited that stands before (`Some(None)`: nothing at all); nothing has come since.
    none_before: Option<Option<QueuePlace>>,
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
        self.exhausted = None;
        self.none_before = None;
        self.looked = false;
    }

    /// Nothing of this size waits.
    pub(super) fn found_none(&mut self, size: SizeKey) {
        self.exhausted = Some(size);
    }

    /// Nothing of other sizes waits that stands before.
    pub(super) fn found_none_before(&mut self, before: Option<QueuePlace>) {
        self.none_before = Some(before);
    }

    /// Whether something of another size may wait that stands before.
    pub(super) fn may_be_before(&self, before: Option<QueuePlace>) -> bool {
        match (self.none_before, before) {
            (None, _) => true,
            (Some(None), _) => false,
            (Some(Some(_)), None) => true,
            (Some(Some(none)), Some(before)) => none < before,
        }
    }

    /// What is worth a look at the queue now: once each demand, and again when something has come.
    pub(super) fn wanted(&mut self) -> Option<EngineDemand> {
        if std::mem::replace(&mut self.looked, true) {
            return None;
        }
        let demand = self.demand.clone()?;
        let is_exhausted = self.exhausted.as_ref() == Some(&demand.size);
        Some(EngineDemand { rows: if is_exhausted { 0 } else { demand.rows }, ..demand })
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
    use crate::domain::ModelId;

    fn before(rank_ms: i64) -> QueuePlace {
        QueuePlace { rank_ms, id: uuid::Uuid::nil().into() }
    }

    fn demand(width: u32, rows: u32, admitted: u64) -> EngineDemand {
        let size = SizeKey { model: ModelId::new("m"), width, height: 8 };
        EngineDemand { size, steps: 4, rows, target: rows + 2, before: Some(before(7)), admitted }
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
    fn a_size_of_which_nothing_waits_is_left_until_something_comes() {
        let mut filling = Filling::default();
        filling.found_none(demand(8, 0, 0).size);
        let rows = |filling: &mut Filling, width| {
            filling.heed(demand(width, 4, 0));
            filling.wanted().map(|demand| demand.rows)
        };
        assert_eq!((rows(&mut filling, 8), rows(&mut filling, 16)), (Some(0), Some(4)));
        filling.found_none_before(Some(before(7)));
        let may_be =
            |filling: &Filling| [Some(before(7)), Some(before(8)), None].map(|place| filling.may_be_before(place));
        assert_eq!(may_be(&filling), [false, true, true]);
        filling.found_none_before(None);
        assert_eq!(may_be(&filling), [false; 3]);
        filling.look_again();
        assert_eq!(may_be(&filling), [true; 3]);
        assert_eq!(rows(&mut filling, 8), Some(4));
    }
}
