//! The policy alone: who is aboard when.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::Batcher;
use super::super::tests::{aboard, queue_place, sample};
use super::*;
use crate::domain::{BatchingPolicy, Cost};

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

/// A batcher, and what is left of its samples.
struct Bench {
    batcher: Batcher,
    left: BTreeMap<u64, SampleMeta>,
}

impl Bench {
    fn new(batcher: Batcher) -> Self {
        Self { batcher, left: BTreeMap::new() }
    }

    /// A sample of one row; one that comes after another stands a millisecond after it.
    fn come(&mut self, id: u64, side: usize, steps: u32) {
        self.come_at(id, side, steps, id as i64);
    }

    fn come_at(&mut self, id: u64, side: usize, steps: u32, rank_ms: i64) {
        self.add(SampleMeta { place: queue_place(rank_ms, id), ..sample(id, side, steps, 1) });
    }

    fn add(&mut self, sample: SampleMeta) {
        self.left.insert(sample.id.0, sample.clone());
        self.batcher.add(sample);
    }

    fn leave(&mut self, id: u64) {
        self.left.remove(&id);
        self.batcher.remove(SampleId(id));
    }

    /// One step; who was aboard.
    fn step(&mut self) -> Vec<u64> {
        let ids = aboard(&self.batcher.next_batch().expect("samples are left"));
        for id in &ids {
            let left = self.left.get_mut(id).expect("only who is here is aboard");
            left.left -= 1;
            if left.left == 0 { self.leave(*id) } else { self.batcher.advanced(left) }
        }
        ids
    }

    fn demand(&self) -> Demand {
        self.batcher.demand().expect("continuous has demands")
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
    assert!(bench.left.is_empty() && bench.batcher.next_batch().is_none());
}

#[test]
fn guided_and_plain_samples_share_a_forward() {
    let mut batcher = eager(CAPS);
    [sample(1, 8, 20, 2), sample(2, 8, 30, 1)].into_iter().for_each(|sample| batcher.add(sample));
    let batch = batcher.next_batch().expect("a batch");
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
        bench.come_at(id, 8, steps, rank_ms);
    }
    let mut order: Vec<Vec<u64>> = (0..4).map(|_| bench.step()).collect();
    order.dedup();
    assert_eq!(order, [vec![1, 2], vec![1, 3], vec![1, 4]]);
}

#[test]
fn a_key_has_its_turn_until_its_oldest_sample_is_done() {
    let mut bench = Bench::new(eager(CAPS));
    bench.come_at(1, 8, 3, 0);
    bench.come_at(2, 16, 2, 5_000);
    assert_eq!(bench.step(), [1]);
    // Joins the turn, but does not lengthen it.
    bench.come_at(3, 8, 4, 10_000);
    assert_eq!(bench.step(), [1, 3]);
    assert_eq!(bench.step(), [1, 3]);
    assert_eq!(bench.step(), [2], "3 is parked");
    bench.come_at(4, 16, 7, 15_000);
    assert_eq!(bench.step(), [2, 4]);
    assert_eq!(bench.step(), [3], "3 goes on where it was; 4 is parked");
    assert_eq!(bench.step(), [3]);
    assert_eq!(bench.step(), [4]);
}

#[test]
fn a_key_goes_on_with_samples_about_as_old_as_the_oldest_of_another() {
    for (rank_ms, then) in [(1_400, [[3], [2]]), (1_600, [[2], [3]])] {
        let mut bench = Bench::new(eager(CAPS));
        bench.come_at(1, 8, 2, 0);
        assert_eq!(bench.step(), [1]);
        bench.come_at(2, 16, 1, 500);
        bench.come_at(3, 8, 2, rank_ms);
        assert_eq!(bench.step(), [1, 3]);
        assert_eq!([bench.step(), bench.step()], then, "3 at {rank_ms} ms, 2 at 500 ms");
    }
}

#[test]
fn the_oldest_is_so_by_rank_not_by_coming() {
    let mut bench = Bench::new(eager(CAPS));
    bench.come(1, 8, 1);
    bench.come_at(2, 16, 1, -30_000);
    assert_eq!(bench.step(), [2]);
    assert_eq!(bench.step(), [1]);
}

#[test]
fn who_comes_late_to_a_place_before_all_others_has_the_next_turn_at_once() {
    let mut bench = Bench::new(eager(CAPS));
    bench.come(1, 8, 4);
    assert_eq!(bench.step(), [1]);
    bench.come_at(2, 16, 2, -30_000);
    assert_eq!([bench.step(), bench.step()], [[2], [2]]);
    assert_eq!([bench.step(), bench.step()], [[1], [1]]);
}

#[test]
fn who_stands_well_before_one_aboard_gets_its_place() {
    let mut bench = Bench::new(eager(BatchCaps { max_rows: 3, ..CAPS }));
    for (id, rank_ms) in [(1, 0), (2, 2_000), (3, 400_000)] {
        bench.come_at(id, 8, 4, rank_ms);
    }
    assert_eq!(bench.step(), [1, 2, 3]);
    bench.come_at(4, 8, 2, 399_500);
    assert_eq!(bench.step(), [1, 2, 3], "a little older is not enough");
    bench.come_at(5, 8, 1, 30_000);
    assert_eq!(bench.step(), [1, 2, 5], "the youngest aboard is parked");
    assert_eq!(bench.step(), [1, 2, 4], "the place it left goes by age");
    assert_eq!(bench.step(), [4, 3], "where it was: two evaluations are left");
    assert_eq!(bench.step(), [3]);
    assert!(bench.left.is_empty());
}

#[test]
fn nobody_is_parked_where_that_makes_too_little_room() {
    let mut bench = Bench::new(eager(BatchCaps { max_rows: 3, ..CAPS }));
    bench.add(SampleMeta { place: queue_place(0, 1), ..sample(1, 8, 9, 2) });
    bench.come_at(2, 8, 9, 90_000);
    assert_eq!(bench.step(), [1, 2]);
    bench.add(SampleMeta { place: queue_place(30_000, 3), ..sample(3, 8, 9, 2) });
    assert_eq!(bench.step(), [1, 2]);
    bench.leave(1);
    assert_eq!(bench.step(), [2, 3]);
}

#[test]
fn nobody_is_passed_over_for_ever() {
    let mut bench = Bench::new(eager(BatchCaps { max_rows: 2, ..CAPS }));
    bench.come_at(0, 8, 40, 0);
    bench.come_at(1, 16, 4, 2_000);
    bench.come_at(2, 8, 7, 4_000);
    let mut waited = Vec::new();
    for id in 3..200 {
        // More of the first's kind than there is room for, all the time.
        bench.come_at(id, 8, 40, 2_000 * id as i64);
        waited.push(bench.step());
    }
    let first_step = |id| waited.iter().position(|ids| ids.contains(&id)).expect("it had a step");
    // There is room for 2 beside 0; the other key's turn comes when 0 is done.
    assert_eq!((first_step(1), first_step(2), first_step(3)), (40, 0, 7));
}

#[test]
fn the_costs_of_rows_decide_how_many_are_aboard() {
    let come_and_count = |cost| {
        let mut bench = Bench::new(trained(BatchCaps { max_rows: 64, ..CAPS }, cost));
        (0..16).for_each(|id| bench.come(id, 8, 20));
        let batch = bench.batcher.next_batch().expect("a batch");
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
    let with = |samples: Vec<SampleMeta>| {
        let mut batcher = eager(CAPS);
        samples.into_iter().for_each(|sample| batcher.add(sample));
        batcher
    };
    let mut batcher = with((0..9).map(|id| sample(id, 8, 20, 2)).collect());
    let batch = batcher.next_batch().expect("a batch");
    assert_eq!((batch.rows.len(), batch.stop), (8, StopReason::MaxRows));
    batcher.ran_out(&batch.key, 4);
    let batch = batcher.next_batch().expect("a batch");
    assert_eq!((batch.rows.len(), batch.stop), (4, StopReason::Memory));
    let batch = with((0..3).map(|id| sample(id, 50, 20, 2)).collect()).next_batch().expect("a batch");
    assert_eq!((aboard(&batch), batch.stop), (vec![0], StopReason::MaxRowPixels));
    let huge = with(vec![sample(0, 400, 20, 2)]).next_batch();
    assert_eq!(aboard(&huge.expect("taken though it exceeds the bound")), [0]);
}

#[test]
fn a_demand_says_what_the_next_step_has_room_for() {
    let mut bench = Bench::new(eager(CAPS));
    bench.come_at(1, 8, 3, 0);
    bench.come_at(2, 8, 5, 5_000);
    bench.step();
    let told = bench.demand();
    // Another size has the next turn when it stands well before the oldest.
    assert_eq!((told.rows, told.target, told.steps, told.before), (6, 8, 3, Some(queue_place(-1_000, 1))));
    bench.step();
    // Before its last evaluation the first one's place counts as free, and the second as the oldest.
    bench.batcher.next_batch();
    let told = bench.demand();
    assert_eq!((told.rows, told.before, told.displaces), (7, Some(queue_place(4_000, 2)), None));
    // Another key's older sample is here already: whoever joined now would be parked.
    bench.come_at(3, 16, 3, 3_000);
    bench.batcher.next_batch();
    let told = bench.demand();
    assert_eq!((told.rows, told.before, told.displaces), (0, Some(queue_place(3_000, 3)), None));
}

#[test]
fn a_demand_without_room_says_who_would_get_a_place_nevertheless() {
    let mut bench = Bench::new(eager(BatchCaps { max_rows: 2, ..CAPS }));
    bench.come_at(1, 8, 3, 0);
    bench.come_at(2, 8, 5, 5_000);
    bench.come_at(3, 8, 5, 9_000);
    bench.step();
    let told = bench.demand();
    assert_eq!((told.rows, told.displaces), (0, Some(queue_place(4_000, 2))));
}

/// One sample of a random schedule.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    /// Forwards after the one before.
    after: u32,
    side: usize,
    evaluations: u32,
    rows: u32,
    /// Its place, from the time of its coming, in ms.
    moved_ms: i64,
    leaves: Option<u32>,
}

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let moved = prop_oneof![3 => Just(0i64), 1 => Just(-30_000), 1 => Just(300_000), 1 => -5_000..5_000i64];
    let arrival = (0..4u32, 0..3usize, 1..9u32, 1..3u32, moved, prop::option::weighted(0.1, 0..20u32));
    let arrival = arrival.prop_map(|(after, side, evaluations, rows, moved_ms, leaves)| Arrival {
        after,
        side: 8 * (1 + side),
        evaluations,
        rows,
        moved_ms,
        leaves,
    });
    prop::collection::vec(arrival, 1..40)
}

/// What the module says of waiting, on one schedule: a forward takes `tick_ms`.
fn nobody_waits_longer_than_told(
    arrivals: &[Arrival],
    max_rows: u32,
    tick_ms: i64,
    cost: Cost,
) -> Result<(), TestCaseError> {
    let mut bench = Bench::new(trained(BatchCaps { max_rows, max_row_pixels: u64::MAX }, cost));
    // Who has not been aboard yet, and everybody's place.
    let mut waiting: BTreeMap<u64, QueuePlace> = BTreeMap::new();
    let mut places: BTreeMap<u64, QueuePlace> = BTreeMap::new();
    let mut leaves: Vec<(u32, u64)> = Vec::new();
    let mut coming = arrivals.iter().zip(0..).peekable();
    let (mut tick, mut since) = (0u32, 0u32);
    while coming.peek().is_some() || !bench.left.is_empty() {
        while let Some((arrival, id)) = coming.next_if(|(arrival, _)| since >= arrival.after) {
            since = 0;
            let place = queue_place(i64::from(tick) * tick_ms + arrival.moved_ms, id);
            let meta = sample(id, arrival.side, arrival.evaluations, arrival.rows);
            bench.add(SampleMeta { place, ..meta });
            waiting.insert(id, place);
            places.insert(id, place);
            leaves.extend(arrival.leaves.map(|after| (tick + after, id)));
        }
        for (_, id) in leaves.extract_if(.., |(at, _)| *at <= tick) {
            bench.leave(id);
            waiting.remove(&id);
        }
        if !bench.left.is_empty() {
            let ids = bench.step();
            prop_assert!(!ids.is_empty());
            waiting.retain(|id, _| !ids.contains(id));
            for (id, place) in &waiting {
                let until = place.rank_ms.saturating_add(2 * ALIKE_WITHIN_MS);
                let is_told = ids.iter().any(|aboard| places[aboard].rank_ms <= until);
                prop_assert!(is_told, "{id} waits at forward {tick} for {ids:?}, who all stand after it");
            }
        }
        tick += 1;
        since += 1;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_forward_works_for_who_stands_before_those_that_wait(
        arrivals in arrivals(),
        max_rows in 1..12u32,
        tick_ms in prop_oneof![Just(10i64), Just(300), Just(2_000)],
        per_row in prop_oneof![Just(1e-6), Just(0.2), Just(5.0)],
    ) {
        nobody_waits_longer_than_told(&arrivals, max_rows, tick_ms, Cost { fixed: 1.0, per_row })?;
    }
}
