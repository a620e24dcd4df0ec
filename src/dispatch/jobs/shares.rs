//! Fair shares: whose job is next, where several owners' jobs wait.
//!
//! Each owner has a *tag*: the pixel-steps (pictures x steps x width x height) of the jobs that workers took, divided by the
//! owner's weight. A claim takes a job of whoever has the smallest tag among those with jobs that it may take, adds the job
//! to the tag, and goes on. Which of an owner's jobs, says the queue's own order: priority and age. An owner whose first job
//! comes into the queue takes up the smallest tag of those who wait, if its own is smaller: nobody saves up shares while
//! they ask for nothing, and a share that is not asked for goes to the others. This is start-time fair queueing (Goyal, Vin
//! and Cheng, 1996). Without weights there is one line, in the queue's own order.
//!
//! **Shares.** While two owners both have jobs that every claim may take, what each was given, divided by its weight, differs
//! by no more than the largest job of each, divided by its weight: of two tags the smaller one grows, and by one job at most
//! beyond the other. (The property test below holds this to be so.)
//!
//! **Overtaking.** So while an owner's oldest job waits, another owner p is given at most
//! `weight(p) x (tag - tag(p)) + one job` before it, in pixel-steps: with all tags level one job, however many p submits and
//! however heavy p is. Before an owner's n-th job p is given `weight(p) / weight(owner)` times the n - 1 jobs, and one
//! of each. This holds of claims that may take both owners' jobs. A batch that runs is filled with jobs of its size alone; a
//! job of another size is overtaken by those until the oldest aboard stands [`ALIKE_WITHIN_MS`] after it, as in an open
//! queue. For that a job has, from its claim on, a [`QueuePlace`] that says its owner's tag, as [`Scale`] tells it in
//! milliseconds, moved by its priority: the engine's order, and the proof that nobody waits for ever
//! (`diffusion::batching`), hold of these places as of those by acceptance, since a tag that waits stays where it is, and
//! all others come past it.
//!
//! [`ALIKE_WITHIN_MS`]: crate::domain::ALIKE_WITHIN_MS

use std::collections::{BTreeMap, VecDeque};

use super::WaitingWork;
use crate::domain::{OwnerId, QueuePlace, SizeKey};

/// Pixel-steps a millisecond before any were measured: a guess, which moves nobody's tag.
const UNMEASURED: f64 = 1e3;

/// What an owner's weight is that has none: jobs without an owner, and those of a key that is no longer configured.
const USUAL_WEIGHT: u32 = 1;

/// The weight of an owner.
pub(super) fn weight(weights: &BTreeMap<OwnerId, u32>, owner: Option<&OwnerId>) -> u32 {
    owner.and_then(|owner| weights.get(owner)).copied().unwrap_or(USUAL_WEIGHT).max(1)
}

/// What an owner was given.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Account {
    /// In pixel-steps by weight.
    pub(super) tag: f64,
    /// In all, of jobs that workers took and did not hand back.
    pub(super) pixel_steps: u64,
}

impl Account {
    pub(super) fn charge(&mut self, pixel_steps: u64, weight: u32) {
        self.tag += pixel_steps as f64 / f64::from(weight);
        self.pixel_steps += pixel_steps;
    }

    /// A job that was charged was handed back.
    pub(super) fn refund(&mut self, pixel_steps: u64, weight: u32) {
        self.tag -= pixel_steps as f64 / f64::from(weight);
        self.pixel_steps = self.pixel_steps.saturating_sub(pixel_steps);
    }
}

/// The tag of an owner none of whose jobs waited, when one comes. `waiting`: the tags of those whose jobs wait; `all`: of
/// everybody ever.
pub(super) fn joining(own: f64, waiting: impl Iterator<Item = f64>, all: impl Iterator<Item = f64>) -> f64 {
    let now = waiting.min_by(f64::total_cmp).or_else(|| all.max_by(f64::total_cmp));
    now.map_or(own, |now| own.max(now))
}

/// A waiting job as claims see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// By acceptance and priority.
    pub(super) place: QueuePlace,
    /// How far its priority moved it.
    pub(super) moved_ms: i64,
    pub(super) rows: u64,
    pub(super) row_pixels: u64,
    pub(super) pixel_steps: u64,
}

/// Jobs of one owner that a claim may take, in the order it would.
#[derive(Clone, Debug, Default)]
pub(super) struct Line {
    /// `None`: without weights, everybody's jobs stand in one line.
    pub(super) share: Option<Share>,
    pub(super) jobs: VecDeque<Candidate>,
}

/// Whose line it is.
#[derive(Clone, Debug)]
pub(super) struct Share {
    pub(super) owner: Option<OwnerId>,
    pub(super) weight: u32,
    pub(super) tag: f64,
}

/// A job whose turn it is, and the place that it has in the engine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    pub(super) job: Candidate,
    pub(super) place: QueuePlace,
}

impl Line {
    /// Whose it is; without weights, nobody's.
    pub(super) fn owner(&self) -> Option<OwnerId> {
        self.share.as_ref().and_then(|share| share.owner.clone())
    }

    fn tag(&self) -> f64 {
        self.share.as_ref().map_or(0.0, |share| share.tag)
    }

    /// The place that one of its jobs would have, were it taken next.
    pub(super) fn place_of(&self, job: &Candidate, scale: &Scale) -> QueuePlace {
        let in_turn = |share: &Share| scale.ms_of(share.tag).saturating_add(job.moved_ms);
        QueuePlace { rank_ms: self.share.as_ref().map_or(job.place.rank_ms, in_turn), id: job.place.id }
    }
}

/// The order between the first jobs of two lines.
pub(super) fn is_first<'a>(lines: impl Iterator<Item = (&'a Line, &'a Candidate)>) -> Option<usize> {
    let by_turn = |(_, (a, x)): &(usize, (&Line, &Candidate)), (_, (b, y)): &(usize, (&Line, &Candidate))| {
        a.tag().total_cmp(&b.tag()).then(x.place.cmp(&y.place))
    };
    lines.enumerate().min_by(by_turn).map(|(at, _)| at)
}

/// The jobs of all lines in the order of a claim; only those that would stand before `before`.
pub(super) fn in_turn(mut lines: Vec<Line>, before: Option<QueuePlace>, scale: &Scale) -> Vec<Turn> {
    let mut order = Vec::new();
    loop {
        lines.retain(|line| !line.jobs.is_empty());
        let Some(at) = is_first(lines.iter().filter_map(|line| Some((line, line.jobs.front()?)))) else { return order };
        let line = &mut lines[at];
        let Some(job) = line.jobs.pop_front() else { return order };
        let place = line.place_of(&job, scale);
        if before.is_some_and(|before| before <= place) {
            continue;
        }
        if let Some(share) = &mut line.share {
            share.tag += job.pixel_steps as f64 / f64::from(share.weight);
        }
        order.push(Turn { job, place });
    }
}

/// Tells tags in milliseconds: as time goes by in which the devices work off what waits. The engine knows by it how far two
/// owners' turns are apart. Of a tag that comes later it tells a later time, whatever the speed was meanwhile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    tag: f64,
    ms: f64,
    ms_per_tag: f64,
}

impl Scale {
    pub(super) fn starting(now_ms: i64) -> Self {
        Self { tag: 0.0, ms: now_ms as f64, ms_per_tag: 1.0 / UNMEASURED }
    }

    /// From now on by this speed, in pixel-steps a second, shared by these lines.
    pub(super) fn follow(&mut self, lines: &[Line], speed: Option<f64>) {
        let shares = || lines.iter().filter_map(|line| line.share.as_ref());
        let Some(now) = shares().map(|share| share.tag).min_by(f64::total_cmp) else { return };
        if now > self.tag {
            (self.ms, self.tag) = (self.exact_ms(now), now);
        }
        let weights: f64 = shares().map(|share| f64::from(share.weight)).sum();
        let speed_per_ms = speed.map_or(UNMEASURED, |speed| speed / 1e3).max(1e-3);
        self.ms_per_tag = weights / speed_per_ms;
    }

    fn exact_ms(&self, tag: f64) -> f64 {
        self.ms + (tag - self.tag) * self.ms_per_tag
    }

    fn ms_of(&self, tag: f64) -> i64 {
        self.exact_ms(tag) as i64
    }
}

/// What waits in one owner's line, or a part of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Waiting {
    weight: u32,
    tag: f64,
    work: BTreeMap<SizeKey, WaitingWork>,
    pixel_steps: u64,
}

impl Waiting {
    pub(super) fn of(weight: u32, tag: f64) -> Self {
        Self { weight, tag, ..Self::default() }
    }

    pub(super) fn add(&mut self, work: WaitingWork, pixel_steps: u64) {
        self.pixel_steps += pixel_steps;
        self.put(work);
    }

    /// By size.
    pub(super) fn total(self) -> Vec<WaitingWork> {
        self.work.into_values().collect()
    }

    fn put(&mut self, WaitingWork { size, jobs, rows, row_steps }: WaitingWork) {
        let none = WaitingWork { size: size.clone(), jobs: 0, rows: 0, row_steps: 0 };
        let sum = self.work.entry(size).or_insert(none);
        sum.jobs += jobs;
        sum.rows += rows;
        sum.row_steps += row_steps;
    }
}

/// About what goes before a job: what its owner's line has before it, and of each other's as much as is given to it until
/// that owner's turn has come so often.
pub(super) fn ahead(mut own: Waiting, others: impl Iterator<Item = Waiting>) -> Vec<WaitingWork> {
    let until = own.tag + own.pixel_steps as f64 / f64::from(own.weight.max(1));
    for other in others {
        let given = ((until - other.tag) * f64::from(other.weight)).max(0.0);
        let part = (given / other.pixel_steps.max(1) as f64).min(1.0);
        // Less what rounding may have added.
        let of = |count: u64| (count as f64 * part - 1e-6).ceil().max(0.0) as u64;
        for work in other.work.into_values() {
            let WaitingWork { size, jobs, rows, row_steps } = work;
            own.put(WaitingWork { size, jobs: of(jobs), rows: of(rows), row_steps: of(row_steps) });
        }
    }
    own.work.into_values().filter(|work| work.jobs > 0).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::{JobId, ModelId};

    fn job(number: u32, pixel_steps: u64) -> Candidate {
        let id = JobId::from(uuid::Uuid::from_u128(u128::from(number)));
        let place = QueuePlace { rank_ms: i64::from(number), id };
        Candidate { place, moved_ms: 0, rows: 1, row_pixels: 1, pixel_steps }
    }

    fn line(name: &str, weight: u32, tag: f64, jobs: impl IntoIterator<Item = Candidate>) -> Line {
        let share = Share { owner: Some(OwnerId::new(name)), weight, tag };
        Line { share: Some(share), jobs: jobs.into_iter().collect() }
    }

    fn numbers(turns: &[Turn]) -> Vec<u128> {
        turns.iter().map(|turn| turn.job.place.id.as_uuid().as_u128()).collect()
    }

    #[test]
    fn without_weights_the_line_is_the_queue() {
        let jobs = [job(3, 5), job(1, 900), job(2, 7)];
        let line = Line { share: None, jobs: jobs.into() };
        let turns = in_turn(vec![line], None, &Scale::starting(1_000));
        assert_eq!(numbers(&turns), [3, 1, 2]);
        assert!(turns.iter().all(|turn| turn.place == turn.job.place));
    }

    #[test]
    fn a_late_owner_goes_next_and_then_by_weight() {
        let flood = line("a", 3, 600.0, (0..8).map(|n| job(n, 30)));
        let late = line("b", 1, joining(0.0, [600.0].into_iter(), [600.0].into_iter()), (100..102).map(|n| job(n, 30)));
        let turns = in_turn(vec![flood, late], None, &Scale::starting(0));
        assert_eq!(numbers(&turns), [0, 100, 1, 2, 3, 101, 4, 5, 6, 7]);
        assert!(turns.is_sorted_by_key(|turn| turn.place.rank_ms));
    }

    #[test]
    fn an_idle_owner_saves_nothing_up() {
        let none = || std::iter::empty::<f64>();
        assert_eq!(joining(5.0, [90.0, 70.0].into_iter(), [90.0, 70.0, 200.0].into_iter()), 70.0);
        assert_eq!(joining(80.0, [70.0].into_iter(), [70.0].into_iter()), 80.0);
        assert_eq!(joining(5.0, none(), [90.0, 70.0].into_iter()), 90.0);
        assert_eq!(joining(0.0, none(), none()), 0.0);
    }

    #[test]
    fn only_who_stands_before_is_taken() {
        let mut scale = Scale::starting(0);
        let lines = vec![line("a", 1, 10e3, [job(0, 10)]), line("b", 1, 4e3, [job(1, 10), job(2, 10)])];
        scale.follow(&lines, Some(1e6));
        let before = lines[0].place_of(&job(0, 10), &scale);
        assert_eq!(numbers(&in_turn(lines, Some(before), &scale)), [1, 2]);
    }

    #[test]
    fn the_scale_never_goes_back() {
        let mut scale = Scale::starting(1_000);
        let mut last = i64::MIN;
        for (tag, speed) in [(0.0, None), (5e6, Some(1e6)), (6e6, Some(1e9)), (7e6, Some(1e3)), (8e6, None)] {
            scale.follow(&[line("a", 2, tag, [])], speed);
            assert!(scale.ms_of(tag) >= last, "{tag}");
            last = scale.ms_of(tag + 1.0);
        }
    }

    /// Jobs of ten pixel-steps, all of one size.
    fn waiting(tag: f64, weight: u32, jobs: u64) -> Waiting {
        let mut waiting = Waiting::of(weight, tag);
        let size = SizeKey { model: ModelId::new("m"), width: 8, height: 8 };
        waiting.add(WaitingWork { size, jobs, rows: 2 * jobs, row_steps: 20 * jobs }, 10 * jobs);
        waiting
    }

    #[test]
    fn what_others_are_given_meanwhile_is_ahead_too() {
        let jobs =
            |own: Waiting, other: Waiting| ahead(own, [other].into_iter()).iter().map(|work| work.jobs).sum::<u64>();
        let flood = || waiting(0.0, 1, 40);
        assert_eq!(jobs(waiting(0.0, 1, 0), flood()), 0);
        assert_eq!(jobs(waiting(0.0, 1, 3), flood()), 6);
        assert_eq!(jobs(waiting(0.0, 1, 3), waiting(0.0, 3, 40)), 12);
        assert_eq!(jobs(waiting(0.0, 1, 90), flood()), 130);
        assert_eq!(jobs(waiting(0.0, 1, 3), waiting(500.0, 1, 40)), 3);
        let [both] = &ahead(waiting(0.0, 1, 3), [flood()].into_iter())[..] else { panic!("one size") };
        assert_eq!((both.jobs, both.rows, both.row_steps), (6, 12, 120));
    }

    proptest! {
        /// Claims of any length, jobs of any size, any weights: while two owners wait, neither is ahead of the other by
        /// more than one job of each, and so no job is overtaken by more.
        #[test]
        fn nobody_is_ahead_by_more_than_a_job(
            owners in proptest::collection::vec((1_u32..=20, proptest::collection::vec(1_u64..1_000, 1..30)), 2..5),
        ) {
            let mut number = 0;
            let lines = owners.iter().enumerate().map(|(at, (weight, sizes))| {
                let jobs: Vec<Candidate> = sizes.iter().map(|size| { number += 1; job(number, *size) }).collect();
                line(&at.to_string(), *weight, 0.0, jobs)
            });
            let lines: Vec<Line> = lines.collect();
            let owner_of = |turn: &Turn| lines.iter().position(|line| line.jobs.iter().any(|job| job.place == turn.job.place));
            let mut given = vec![(0_u64, 0_usize); lines.len()];
            for turn in in_turn(lines.clone(), None, &Scale::starting(0)) {
                let owner = owner_of(&turn).expect("a job of somebody");
                given[owner] = (given[owner].0 + turn.job.pixel_steps, given[owner].1 + 1);
                let waits = |at: usize| given[at].1 < lines[at].jobs.len();
                let most = |at: usize| owners[at].1.iter().max().copied().unwrap_or(0) as f64 / f64::from(owners[at].0);
                let share = |at: usize| given[at].0 as f64 / f64::from(owners[at].0);
                for (p, q) in (0..lines.len()).flat_map(|p| (0..p).map(move |q| (p, q))) {
                    if waits(p) && waits(q) {
                        prop_assert!((share(p) - share(q)).abs() <= most(p) + most(q) + 1e-6);
                    }
                }
            }
        }
    }
}
