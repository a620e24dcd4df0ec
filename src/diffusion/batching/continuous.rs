//! Policy `continuous`: samples of one [`BatchKey`] share the forward whatever their steps, join at any step, leave when
//! they are done, and their places are taken at once.
//!
//! Between keys the device goes by turns. A turn belongs to the key of the oldest sample; it lasts as many evaluations as
//! the longest sample aboard at its start has left, and others of its key join meanwhile. What is unfinished at its end is
//! parked, and the next turn is that of the oldest sample then. So a key waits for no more than one picture of each other
//! key, and a device that serves one key never stops. Who comes late but is older than all that were there when the turn
//! began (by rank: an interactive job) has the next turn at once.

use std::collections::BinaryHeap;
use std::sync::Arc;

use super::{BatchCaps, BatchKey, CostModel, Demand, SampleId, SampleMeta, StepBatch, StopReason};
use crate::domain::{ALIKE_WITHIN_MS, QueuePlace};

/// Keeps whose turn it is and who is aboard; the samples' own state is the engine's.
#[derive(Debug)]
pub struct Continuous {
    pub(super) caps: BatchCaps,
    pub(super) cost: CostModel,
    /// Rows that wait for this device, beyond those it is shown.
    pub(super) waiting_rows: u32,
    turn: Option<Turn>,
}

#[derive(Debug)]
struct Turn {
    key: Arc<BatchKey>,
    /// Evaluations until another key may have its turn.
    left: u32,
    /// The oldest sample at the turn's start.
    oldest: Place,
    /// In the order of their coming aboard.
    aboard: Vec<SampleId>,
    stop: StopReason,
}

impl Continuous {
    pub(super) fn new(caps: BatchCaps) -> Self {
        Self { caps, cost: CostModel::default(), waiting_rows: 0, turn: None }
    }

    /// Everybody leaves, to come aboard anew.
    pub(super) fn dissolve(&mut self) {
        self.turn = None;
    }

    pub(super) fn next(&mut self, samples: &[SampleMeta]) -> Option<StepBatch> {
        let (mut turn, is_new) = self.whose_turn(samples)?;
        self.fill(&mut turn, samples);
        let aboard = || turn.aboard.iter().filter_map(|id| find(samples, *id));
        if is_new {
            turn.left = aboard().map(|sample| sample.left).max().unwrap_or(1);
        }
        turn.left = turn.left.saturating_sub(1);
        let batch = StepBatch::of(turn.key.clone(), aboard(), turn.stop);
        self.turn = Some(turn);
        Some(batch)
    }

    /// The present turn while it lasts, else the next: the oldest sample's.
    fn whose_turn(&mut self, samples: &[SampleMeta]) -> Option<(Turn, bool)> {
        let mut parked = Vec::new();
        if let Some(mut turn) = self.turn.take() {
            turn.aboard.retain(|id| find(samples, *id).is_some());
            let is_older = |sample: &SampleMeta| place(sample) < turn.oldest && !sample.is_of(&turn.key);
            let goes_on = || !turn.aboard.is_empty() || samples.iter().any(|sample| sample.is_of(&turn.key));
            if turn.left > 0 && !samples.iter().any(is_older) && goes_on() {
                return Some((turn, false));
            }
            parked = turn.aboard;
        }
        let oldest = samples.iter().min_by_key(|sample| place(sample))?;
        // Another key's samples leave their places; the same key's keep them.
        parked.retain(|id| find(samples, *id).is_some_and(|sample| sample.is_of(&oldest.key)));
        let (key, stop) = (oldest.key.clone(), StopReason::NoMoreCompatible);
        Some((Turn { key, left: 0, oldest: place(oldest), aboard: parked, stop }, true))
    }

    /// Takes aboard what there is room for: the oldest first; then, of those that came soon after it
    /// ([`ALIKE_WITHIN_MS`]), the ones with as many steps as the oldest aboard; then the others by age.
    fn fill(&self, turn: &mut Turn, samples: &[SampleMeta]) {
        let mut aboard: Vec<SampleId> = turn.aboard.clone();
        aboard.sort_unstable();
        let rows_of = |id: &SampleId| find(samples, *id).map_or(0, |sample| sample.rows);
        let mut rows: u32 = aboard.iter().map(rows_of).sum();
        let (target, bound) = self.target(&turn.key, self.in_system(samples, 0));
        let most = target.saturating_sub(rows).max(u32::from(aboard.is_empty()));
        let mut coming = Coming::new(most as usize);
        let waits = |sample: &&SampleMeta| sample.is_of(&turn.key) && aboard.binary_search(&sample.id).is_err();
        if most > 0 {
            let waiting = || samples.iter().filter(waits);
            let first = waiting().min_by_key(|sample| place(sample));
            let like = turn.aboard.first().and_then(|id| find(samples, *id)).or(first).map_or(0, |sample| sample.steps);
            let until = first.map_or(i64::MAX, |sample| sample.place.rank_ms.saturating_add(ALIKE_WITHIN_MS));
            let is_alike = |sample: &SampleMeta| sample.steps == like && sample.place.rank_ms <= until;
            let first = first.map(|sample| sample.id);
            waiting().for_each(|sample| {
                coming.offer((Some(sample.id) != first, !is_alike(sample), place(sample)));
            });
        }
        let mut is_full = false;
        for id in coming.in_order() {
            let more = rows_of(&id);
            is_full = rows > 0 && rows + more > target;
            if is_full {
                break;
            }
            rows += more;
            turn.aboard.push(id);
        }
        turn.stop = if is_full || rows >= target { bound } else { StopReason::NoMoreCompatible };
    }

    /// Rows a batch of this key should have, and what says so.
    fn target(&self, key: &BatchKey, in_system: u32) -> (u32, StopReason) {
        let cap = self.caps.rows_of(key);
        let wanted = self.cost.of(key).rows(in_system);
        match () {
            () if wanted < cap => (wanted, StopReason::Cost),
            () if cap < self.caps.max_rows => (cap, StopReason::MaxRowPixels),
            () => (cap, StopReason::MaxRows),
        }
    }

    fn in_system(&self, samples: &[SampleMeta], leaving: u32) -> u32 {
        let here: u32 = samples.iter().map(|sample| sample.rows).sum();
        here.saturating_sub(leaving).saturating_add(self.waiting_rows)
    }

    pub(super) fn demand(&self, samples: &[SampleMeta]) -> Option<Demand> {
        let turn = self.turn.as_ref()?;
        let mut aboard: Vec<SampleId> = turn.aboard.clone();
        aboard.sort_unstable();
        let leaves = |sample: &SampleMeta| sample.left <= 1 && aboard.binary_search(&sample.id).is_ok();
        let (mut of_key, mut leaving) = (0, 0);
        let mut oldest: Option<&SampleMeta> = None;
        for sample in samples {
            if leaves(sample) {
                leaving += sample.rows;
                continue;
            }
            if oldest.is_none_or(|known| place(sample) < place(known)) {
                oldest = Some(sample);
            }
            if sample.is_of(&turn.key) {
                of_key += sample.rows;
            }
        }
        // One evaluation early, so that what is fetched meanwhile comes in time.
        let ends = turn.left <= 1 || of_key == 0;
        let is_lost = ends && oldest.is_some_and(|sample| !sample.is_of(&turn.key));
        let (target, _) = self.target(&turn.key, self.in_system(samples, leaving));
        let steps = turn.aboard.first().and_then(|id| find(samples, *id)).map_or(0, |sample| sample.steps);
        Some(Demand {
            key: turn.key.clone(),
            steps,
            rows: if is_lost { 0 } else { target.max(1).saturating_sub(of_key) },
            target,
            before: if ends { oldest.map(|sample| sample.place) } else { Some(turn.oldest.0) },
        })
    }
}

/// Who is older: the smaller. A job's samples are told apart by their ids.
type Place = (QueuePlace, SampleId);

fn place(sample: &SampleMeta) -> Place {
    (sample.place, sample.id)
}

fn find(samples: &[SampleMeta], id: SampleId) -> Option<&SampleMeta> {
    samples.binary_search_by_key(&id, |sample| sample.id).ok().map(|at| &samples[at])
}

/// The first few of many, by (not the oldest, not alike, place).
struct Coming {
    most: usize,
    /// The last of them on top.
    heap: BinaryHeap<(bool, bool, Place)>,
}

impl Coming {
    fn new(most: usize) -> Self {
        Self { most, heap: BinaryHeap::new() }
    }

    fn offer(&mut self, sample: (bool, bool, Place)) {
        if self.heap.len() < self.most {
            self.heap.push(sample);
        } else if let Some(mut last) = self.heap.peek_mut()
            && sample < *last
        {
            *last = sample;
        }
    }

    fn in_order(self) -> impl Iterator<Item = SampleId> {
        self.heap.into_sorted_vec().into_iter().map(|(.., (_, id))| id)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{aboard, queue_place, sample};
    use super::super::{Batcher, Cost};
    use super::*;
    use crate::domain::BatchingPolicy;

    const CAPS: BatchCaps = BatchCaps { max_rows: 8, max_row_pixels: 100_000 };

    /// A batcher on a device where `max_rows` are always worth a forward.
    fn eager(caps: BatchCaps) -> Batcher {
        trained(caps, Cost { fixed: 1.0, per_row: 1e-6 })
    }

    fn trained(caps: BatchCaps, cost: Cost) -> Batcher {
        let mut batcher = Batcher::new(BatchingPolicy::Continuous, caps);
        for side in [8, 16] {
            for count in 0..40 {
                let rows = 1 + count % 4;
                batcher.observe(&sample(0, side, 1, 1).key, rows, cost.seconds(rows));
            }
        }
        batcher
    }

    /// Samples and the batcher that draws them.
    struct Bench {
        batcher: Batcher,
        samples: Vec<SampleMeta>,
    }

    impl Bench {
        fn new(batcher: Batcher) -> Self {
            Self { batcher, samples: Vec::new() }
        }

        /// A sample of one row unless said otherwise.
        fn come(&mut self, id: u64, side: usize, steps: u32) {
            self.samples.push(sample(id, side, steps, 1));
        }

        /// One step; who was aboard.
        fn step(&mut self) -> Vec<u64> {
            let batch = self.batcher.next(&self.samples).expect("samples are left");
            let ids = aboard(&batch);
            for sample in &mut self.samples {
                sample.left -= u32::from(ids.contains(&sample.id.0));
            }
            self.samples.retain(|sample| sample.left > 0);
            ids
        }

        fn demand(&self) -> Demand {
            self.batcher.demand(&self.samples).expect("continuous has demands")
        }
    }

    #[test]
    fn samples_join_at_any_step_and_leave_when_done() {
        let mut bench = Bench::new(eager(CAPS));
        bench.come(1, 8, 3);
        assert_eq!(bench.step(), [1]);
        bench.come(2, 8, 5);
        assert_eq!(bench.step(), [1, 2]);
        assert_eq!(bench.step(), [1, 2]);
        assert_eq!(bench.step(), [2]);
        bench.come(3, 8, 1);
        assert_eq!(bench.step(), [2, 3]);
        assert_eq!(bench.step(), [2]);
        assert!(bench.samples.is_empty() && bench.batcher.next(&[]).is_none());
    }

    #[test]
    fn guided_and_plain_samples_share_a_forward() {
        let mut batcher = eager(CAPS);
        let batch = batcher.next(&[sample(1, 8, 20, 2), sample(2, 8, 30, 1)]).expect("a batch");
        assert_eq!((batch.rows.len(), aboard(&batch), batch.stop), (3, vec![1, 2], StopReason::NoMoreCompatible));
    }

    #[test]
    fn a_place_is_taken_at_once_by_the_oldest_then_by_its_likes() {
        let mut bench = Bench::new(eager(BatchCaps { max_rows: 3, ..CAPS }));
        for (id, steps) in [(1, 2), (2, 4), (3, 4), (4, 9), (5, 4), (6, 9)] {
            bench.come(id, 8, steps);
        }
        // The oldest, though of other steps; then the likes of it, of which there are none; then by age.
        assert_eq!(bench.step(), [1, 2, 3]);
        assert_eq!(bench.step(), [1, 2, 3]);
        assert_eq!(bench.step(), [2, 3, 4], "4 is the oldest that waits");
        assert_eq!(bench.step(), [2, 3, 4]);
        assert_eq!(bench.step(), [4, 5, 6], "one evaluation of 2 and 3 each was left");
    }

    #[test]
    fn of_those_that_wait_the_likes_of_the_oldest_aboard_come_before_the_others() {
        let mut bench = Bench::new(eager(BatchCaps { max_rows: 4, ..CAPS }));
        for (id, steps) in [(1, 9), (2, 1), (3, 1), (4, 1), (5, 4), (6, 4), (7, 4), (8, 9), (9, 9)] {
            bench.come(id, 8, steps);
        }
        assert_eq!(bench.step(), [1, 8, 9, 2], "9 steps as 1 has; 2 is the oldest of the others");
        assert_eq!(bench.step(), [1, 8, 9, 3]);
    }

    #[test]
    fn likes_pass_only_those_that_came_shortly_before() {
        let mut bench = Bench::new(eager(BatchCaps { max_rows: 2, ..CAPS }));
        for (id, steps, rank_ms) in [(1, 9, 0), (2, 1, 1_000), (3, 1, 1_100), (4, 9, 2_001), (5, 9, 2_002)] {
            bench.come(id, 8, steps);
            bench.samples.last_mut().expect("it came").place.rank_ms = rank_ms;
        }
        let mut order: Vec<Vec<u64>> = (0..4).map(|_| bench.step()).collect();
        order.dedup();
        assert_eq!(order, [vec![1, 2], vec![1, 3], vec![1, 4]]);
    }

    #[test]
    fn a_key_has_its_turn_for_as_long_as_its_longest_sample_at_the_start() {
        let mut bench = Bench::new(eager(CAPS));
        bench.come(1, 8, 3);
        bench.come(2, 16, 2);
        assert_eq!(bench.step(), [1]);
        // Joins the turn, but does not lengthen it.
        bench.come(3, 8, 4);
        assert_eq!(bench.step(), [1, 3]);
        assert_eq!(bench.step(), [1, 3]);
        assert_eq!(bench.step(), [2], "3 is parked");
        bench.come(4, 16, 7);
        assert_eq!(bench.step(), [2, 4]);
        assert_eq!(bench.step(), [3], "3 goes on where it was; 4 is parked");
        assert_eq!(bench.step(), [3]);
        assert_eq!(bench.step(), [4]);
    }

    #[test]
    fn the_oldest_is_so_by_rank_not_by_coming() {
        let mut bench = Bench::new(eager(CAPS));
        bench.come(1, 8, 1);
        bench.come(2, 16, 1);
        bench.samples[1].place.rank_ms = -30_000;
        assert_eq!(bench.step(), [2]);
        assert_eq!(bench.step(), [1]);
    }

    #[test]
    fn nobody_is_passed_over_for_ever() {
        let mut bench = Bench::new(eager(BatchCaps { max_rows: 2, ..CAPS }));
        bench.come(0, 8, 40);
        bench.come(1, 16, 4);
        bench.come(2, 8, 7);
        let mut waited = Vec::new();
        for id in 3..200 {
            // More of the first's kind than there is room for, all the time.
            bench.come(id, 8, 40);
            waited.push(bench.step());
        }
        let first_step = |id| waited.iter().position(|ids| ids.contains(&id)).expect("it had a step");
        // The other key after the first's 40 evaluations; then the oldest of the first's kind, though of other steps.
        assert_eq!((first_step(1), first_step(2)), (40, 44));
    }

    #[test]
    fn the_costs_of_rows_decide_how_many_are_aboard() {
        let come_and_count = |cost| {
            let mut bench = Bench::new(trained(BatchCaps { max_rows: 64, ..CAPS }, cost));
            (0..16).for_each(|id| bench.come(id, 8, 20));
            let batch = bench.batcher.next(&bench.samples).expect("a batch");
            (batch.rows.len(), batch.stop)
        };
        assert_eq!(come_and_count(Cost { fixed: 0.001, per_row: 0.020 }), (2, StopReason::Cost));
        assert_eq!(come_and_count(Cost { fixed: 0.005, per_row: 0.010 }), (7, StopReason::Cost));
        assert_eq!(come_and_count(Cost { fixed: 0.020, per_row: 0.004 }), (16, StopReason::NoMoreCompatible));
    }

    #[test]
    fn rows_that_wait_elsewhere_count() {
        let mut bench = Bench::new(trained(BatchCaps { max_rows: 64, ..CAPS }, Cost { fixed: 0.001, per_row: 0.020 }));
        (0..16).for_each(|id| bench.come(id, 8, 20));
        bench.batcher.set_waiting(48);
        assert_eq!(bench.step().len(), 6);
    }

    #[test]
    fn caps_bound_rows_and_pixels_and_say_so() {
        let mut batcher = eager(CAPS);
        let many: Vec<_> = (0..9).map(|id| sample(id, 8, 20, 2)).collect();
        let batch = batcher.next(&many).expect("a batch");
        assert_eq!((batch.rows.len(), batch.stop), (8, StopReason::MaxRows));
        let large: Vec<_> = (0..3).map(|id| sample(id, 50, 20, 2)).collect();
        let batch = eager(CAPS).next(&large).expect("a batch");
        assert_eq!((aboard(&batch), batch.stop), (vec![0], StopReason::MaxRowPixels));
        let huge = [sample(0, 400, 20, 2)];
        assert_eq!(aboard(&eager(CAPS).next(&huge).expect("taken though it exceeds the bound")), [0]);
        batcher.halve();
        assert_eq!(batcher.next(&many).expect("a batch").rows.len(), 4);
    }

    #[test]
    fn a_demand_says_what_the_next_step_has_room_for() {
        let mut bench = Bench::new(eager(CAPS));
        bench.come(1, 8, 2);
        bench.come(2, 8, 5);
        bench.step();
        bench.samples[0].left = 2;
        let demand = |bench: &mut Bench| {
            bench.batcher.next(&bench.samples).expect("a batch");
            bench.demand()
        };
        let told = demand(&mut bench);
        assert_eq!((told.rows, told.target, told.steps, told.before), (6, 8, 2, Some(queue_place(1, 1))));
        // Before its last evaluation, the first one's place counts as free.
        bench.samples[0].left = 1;
        assert_eq!(demand(&mut bench).rows, 7);
        bench.samples.remove(0);
        // One evaluation of the turn is left: only an older one could have the next.
        let told = demand(&mut bench);
        assert_eq!((told.rows, told.before), (7, Some(queue_place(2, 2))));
        // Another key's older sample is here already: whoever joined now would be parked.
        bench.come(3, 16, 3);
        bench.samples[0].place.rank_ms = 4;
        bench.samples[1].place.rank_ms = 3;
        let told = demand(&mut bench);
        assert_eq!((told.rows, told.before), (0, Some(queue_place(3, 3))));
    }

    #[test]
    fn who_is_older_than_all_that_were_there_has_the_next_turn_at_once() {
        let mut bench = Bench::new(eager(CAPS));
        bench.come(1, 8, 4);
        assert_eq!(bench.step(), [1]);
        bench.come(2, 16, 2);
        bench.come(3, 8, 1);
        assert_eq!(bench.step(), [1, 3], "the others came later");
        bench.samples.iter_mut().for_each(|sample| sample.place.rank_ms -= if sample.id.0 == 2 { 30_000 } else { 0 });
        assert_eq!([bench.step(), bench.step()], [[2], [2]]);
        assert_eq!([bench.step(), bench.step()], [[1], [1]]);
    }
}
