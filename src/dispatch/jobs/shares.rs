//! Fair shares: where in the queue a job stands, where there are owners with weights.
//!
//! Each job is given a *turn* when it is accepted, a moment of a clock of its own, and keeps it: from then on the queue is one line
//! by place, and whoever takes jobs from it knows nothing of owners. An owner's next turn comes after the last by what the job in
//! between will take: its pixel-steps (pictures x steps x width x height), at the speed of the devices, divided by the
//! owner's weight. Nobody's next turn is in the past: not before the clock, which follows the turns that workers take, nor, where
//! the clock is ahead, before the first of the jobs that wait for the same model. So nobody saves up turns while they ask for
//! nothing, and what one does not ask for goes to the others. This is start-time fair queueing (Goyal, Vin and Cheng, 1996),
//! with turns as its start tags.
//!
//! **Shares.** While two owners have jobs of one priority waiting for the same devices, what each is given, divided by its weight,
//! differs by no more than the largest job of each, divided by its weight: their turns are taken in order, and each owner's
//! follow one another without gaps (the property test below). What bends this: a batch takes jobs of its size together and
//! for some time out of order, as in an open queue; and where a job is cancelled, expires or is given another's pictures, its turn
//! is given to those that its owner sends later, not to those that stood behind it.
//!
//! **Nobody waits for ever.** A job's place is fixed. Another owner's jobs come before it only with turns between the clock, as it
//! was when the job came, and its own: `weight x (turn - clock) / ms_per_pixel_step` pixel-steps and one job, however many they
//! submit, of each priority. The engine's proof (`diffusion::batching`) goes by places, whatever they mean.
//!
//! **Priorities** move a job in its owner's time: an urgent one stands before what its owner would be given in
//! [`INTERACTIVE_LEAD_MS`], a bulk one after that of [`BULK_DELAY_MS`], whoever's jobs stand there. Less urgent work of the same owner that
//! is accepted later comes after it as well; what stood in line before keeps its turn. So whoever has a line of each priority may be given up
//! to three shares until the lines they had are drawn.

use std::collections::BTreeMap;

use crate::domain::{BULK_DELAY_MS, ErrorCode, INTERACTIVE_LEAD_MS, Job, JobStatus, OwnerId, Priority, Timestamp};

/// Pixel-steps a second while nothing was measured: a guess.
const UNMEASURED: f64 = 1e6;
/// What an owner's weight is that has none: jobs without an owner, and those of a key that is no longer configured.
const USUAL_WEIGHT: u32 = 1;

/// What weights there are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Weight {
    /// The owner's own.
    pub(super) own: f64,
    /// Of all that are configured.
    average: f64,
}

/// An owner's own.
pub(super) fn own_weight(weights: &BTreeMap<OwnerId, u32>, owner: Option<&OwnerId>) -> u32 {
    owner.and_then(|owner| weights.get(owner)).copied().unwrap_or(USUAL_WEIGHT).max(1)
}

impl Weight {
    pub(super) fn of(weights: &BTreeMap<OwnerId, u32>, owner: Option<&OwnerId>) -> Self {
        let sum: f64 = weights.values().map(|weight| f64::from(*weight)).sum();
        Self { own: f64::from(own_weight(weights, owner)), average: (sum / weights.len().max(1) as f64).max(1.0) }
    }

    /// How far a priority moves a turn, in milliseconds.
    fn moves(self, priority: Priority) -> f64 {
        let weight = self.own / self.average;
        match priority {
            Priority::Interactive => -(INTERACTIVE_LEAD_MS as f64) / weight,
            Priority::Normal => 0.0,
            // Of small weights it would be days.
            Priority::Bulk => BULK_DELAY_MS as f64 / weight.max(1.0),
        }
    }
}

/// The clock of turns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pace {
    /// In milliseconds. It never goes back.
    pub(super) now: f64,
    /// How far apart turns of an owner of weight 1 are for each pixel-step in between: while jobs wait it stays as it is, whatever
    /// becomes of speed and weights.
    pub(super) ms_per_pixel_step: f64,
}

impl Pace {
    /// For a job that is about to come while nobody waits: the time of day, or the latest that any owner's turns have come to if
    /// that is later, and the present speed, in pixel-steps a second, as far as it is known.
    pub(super) fn anew(known: Option<Self>, latest: f64, now: Timestamp, speed: Option<f64>, weight: Weight) -> Self {
        let measured =
            speed.filter(|speed| *speed > 0.0 && speed.is_finite()).map(|speed| weight.average * 1e3 / speed);
        let usual = known.map_or(weight.average * 1e3 / UNMEASURED, |known| known.ms_per_pixel_step);
        let now = known.map_or(f64::MIN, |known| known.now).max(now.unix_ms() as f64).max(latest);
        Self { now, ms_per_pixel_step: measured.unwrap_or(usual) }
    }

    /// Workers took jobs, this turn's first; the oldest that they could have taken besides has this rank. A turn that a
    /// priority brought forward is no later than its place.
    pub(super) fn took(&mut self, first: Turn, rank_ms: i64, oldest_left: Option<i64>) {
        let taken = first.at.min(end_of(rank_ms));
        self.now = self.now.max(oldest_left.map_or(taken, |left| taken.min(end_of(left))));
    }
}

/// Ranks are turns in whole milliseconds.
fn end_of(rank_ms: i64) -> f64 {
    rank_ms as f64 + 1.0
}

/// A job's turn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Turn {
    /// By the clock of turns, in milliseconds.
    pub(super) at: f64,
    /// How much later its owner's next turn is because of it.
    pub(super) cost: f64,
}

impl Turn {
    /// Its [`crate::domain::QueuePlace::rank_ms`].
    pub(super) fn rank_ms(self, priority: Priority, weight: Weight) -> i64 {
        (self.at + weight.moves(priority)).floor() as i64
    }
}

/// What an owner has had.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Account {
    /// When its next turn is, of each priority, the most urgent first: after all its work that is as urgent.
    pub(super) next: [f64; 3],
    /// Pictures x steps x pixels of the jobs that were drawn for it.
    pub(super) pixel_steps: u64,
}

impl Account {
    /// The next turn, for a job that will take so many pixel-steps; `first`: the rank of the first job that waits for its model.
    pub(super) fn turn(
        &mut self,
        pace: &Pace,
        first: Option<i64>,
        (priority, pixel_steps): (Priority, u64),
        weight: Weight,
    ) -> Turn {
        let cost = pixel_steps as f64 * pace.ms_per_pixel_step / weight.own;
        let now = first.map_or(pace.now, |first| pace.now.min(end_of(first)));
        let at = self.next[level(priority)].max(now);
        for next in &mut self.next[level(priority)..] {
            *next = next.max(now) + cost;
        }
        Turn { at, cost }
    }

    /// The latest that its turns have come to.
    pub(super) fn latest(&self) -> f64 {
        self.next.into_iter().fold(0.0, f64::max)
    }

    /// A job will not be drawn: the owner's next turns are as if it had not come.
    pub(super) fn give_back(&mut self, turn: Turn, priority: Priority, pace: &Pace) {
        for next in &mut self.next[level(priority)..] {
            // Not later than it was either, where that was before the clock.
            *next = (*next - turn.cost).max(pace.now.min(*next));
        }
    }
}

fn level(priority: Priority) -> usize {
    match priority {
        Priority::Interactive => 0,
        Priority::Normal => 1,
        Priority::Bulk => 2,
    }
}

/// What a job's new state means for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// Nothing yet, or nothing: whoever is to draw a job takes its turn, however that ends.
    Not,
    /// Nothing was drawn for it, nor will be.
    GivenBack,
    /// It was drawn.
    Drawn,
}

impl Settled {
    pub(super) fn of(before: JobStatus, job: &Job) -> Self {
        match (before, job.status) {
            (JobStatus::Queued, after) if after.is_terminal() => Self::GivenBack,
            (JobStatus::Running, JobStatus::Failed) if is_model_unavailable(job) => Self::GivenBack,
            (JobStatus::Running, JobStatus::Succeeded) if job.reused_from.is_some() => Self::GivenBack,
            (JobStatus::Running, JobStatus::Succeeded) => Self::Drawn,
            _ => Self::Not,
        }
    }
}

fn is_model_unavailable(job: &Job) -> bool {
    job.error.as_ref().is_some_and(|error| error.code == ErrorCode::ModelUnavailable)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PACE: Pace = Pace { now: 1_000.0, ms_per_pixel_step: 1.0 };
    const ONE: Weight = Weight { own: 1.0, average: 1.0 };
    const THREE: Weight = Weight { own: 3.0, average: 1.0 };

    fn turns(account: &mut Account, pace: &Pace, count: usize, weight: Weight) -> Vec<f64> {
        (0..count).map(|_| account.turn(pace, None, (Priority::Normal, 30), weight).at).collect()
    }

    fn at(at: f64) -> Turn {
        Turn { at, cost: 30.0 }
    }

    #[test]
    fn turns_follow_one_another_by_weight_and_none_is_in_the_past() {
        let (mut light, mut heavy, mut late) = (Account::default(), Account::default(), Account::default());
        assert_eq!(turns(&mut light, &PACE, 3, ONE), [1_000.0, 1_030.0, 1_060.0]);
        assert_eq!(turns(&mut heavy, &PACE, 3, THREE), [1_000.0, 1_010.0, 1_020.0]);
        let mut pace = PACE;
        pace.took(at(1_045.0), 1_045, None);
        pace.took(at(1_040.0), 1_040, None);
        assert_eq!(turns(&mut late, &pace, 2, ONE), [1_045.0, 1_075.0]);
        // Nobody saves up turns.
        assert_eq!(turns(&mut heavy, &pace, 2, THREE), [1_045.0, 1_055.0]);
        assert_eq!(turns(&mut light, &pace, 1, ONE), [1_090.0]);
    }

    #[test]
    fn the_clock_is_not_ahead_of_who_waits_nor_of_places_that_were_brought_forward() {
        let mut pace = PACE;
        // A batch of many: others have waited since 1,010.
        pace.took(at(1_020.0), 1_020, Some(1_010));
        assert_eq!(pace.now, 1_011.0);
        pace.took(at(31_100.0), 1_100, None);
        assert_eq!(pace.now, 1_101.0);
        // Another device's models are further on; those who wait for this one are not to be passed, nor is a newcomer behind them.
        let turn = Account::default().turn(&pace, Some(1_040), (Priority::Normal, 30), ONE);
        assert_eq!(turn.at, 1_041.0);
    }

    #[test]
    fn a_job_that_is_not_drawn_leaves_its_owners_next_turn_as_it_was() {
        let mut account = Account::default();
        let first = account.turn(&PACE, None, (Priority::Normal, 30), ONE);
        let second = account.turn(&PACE, None, (Priority::Interactive, 50), ONE);
        account.give_back(second, Priority::Interactive, &PACE);
        account.give_back(first, Priority::Normal, &PACE);
        assert_eq!(account.next, [1_000.0; 3]);
        // Never into the past.
        account.give_back(first, Priority::Normal, &PACE);
        assert_eq!(account.next, [1_000.0; 3]);
    }

    #[test]
    fn urgent_work_comes_first_and_later_work_pays_for_it() {
        let mut account = Account::default();
        let turn = |account: &mut Account, priority| account.turn(&PACE, None, (priority, 30), ONE).at;
        assert_eq!(turn(&mut account, Priority::Bulk), 1_000.0);
        assert_eq!(turn(&mut account, Priority::Bulk), 1_030.0);
        assert_eq!(turn(&mut account, Priority::Interactive), 1_000.0);
        assert_eq!(turn(&mut account, Priority::Normal), 1_030.0);
        assert_eq!(turn(&mut account, Priority::Bulk), 1_120.0);
        let all = [Priority::Interactive, Priority::Normal, Priority::Bulk];
        let ranks = all.map(|priority| at(1e9).rank_ms(priority, Weight { own: 2.0, average: 1.0 }));
        assert_eq!(ranks, [1_000_000_000 - 15_000, 1_000_000_000, 1_000_000_000 + 150_000]);
        assert_eq!(at(1e9).rank_ms(Priority::Bulk, Weight { own: 1.0, average: 10.0 }), 1_000_300_000);
    }

    /// Alice always has urgent jobs waiting, Bob always five that are not: each is given half.
    #[test]
    fn an_urgent_flood_is_given_no_more_than_its_share_in_the_end() {
        let mut pace = PACE;
        let mut accounts = [Account::default(); 2];
        let mut waiting: Vec<(i64, Turn, usize)> = Vec::new();
        let mut given = [0; 2];
        for round in 0..2_000 {
            for (owner, priority, most) in [(0, Priority::Interactive, 200), (1, Priority::Normal, 5)] {
                while waiting.iter().filter(|job| job.2 == owner).count() < most {
                    let turn = accounts[owner].turn(&pace, None, (priority, 1_000), ONE);
                    waiting.push((turn.rank_ms(priority, ONE), turn, owner));
                }
            }
            let first = (0..waiting.len()).min_by_key(|at| waiting[*at].0).expect("jobs wait");
            let (rank, turn, owner) = waiting.remove(first);
            pace.took(turn, rank, None);
            // What stood in line when the lead was used up.
            given[owner] += usize::from(round >= 1_000);
        }
        assert!((450..=550).contains(&given[0]), "{given:?}");
    }

    #[test]
    fn while_nobody_waits_the_clock_is_set_anew() {
        let (now, later) = (Timestamp::from_unix_ms(5_000), Timestamp::from_unix_ms(9_000));
        let begun = Pace::anew(None, 0.0, now, None, ONE);
        assert_eq!(begun, Pace { now: 5_000.0, ms_per_pixel_step: 1e-3 });
        let ten = Weight { own: 1.0, average: 10.0 };
        let measured = Pace::anew(Some(begun), 0.0, later, Some(2e6), ten);
        assert_eq!(measured, Pace { now: 9_000.0, ms_per_pixel_step: 5e-3 });
        assert_eq!(Pace::anew(Some(measured), 0.0, now, Some(0.0), ten), measured);
        assert_eq!(Pace::anew(Some(measured), 9_500.0, now, None, ten).now, 9_500.0, "all begin at the same");
    }

    #[test]
    fn weights_have_an_average() {
        let weights = BTreeMap::from([(OwnerId::new("a"), 30), (OwnerId::new("b"), 10)]);
        let of = |name: &str| Weight::of(&weights, Some(&OwnerId::new(name)));
        assert_eq!((of("a"), of("b")), (Weight { own: 30.0, average: 20.0 }, Weight { own: 10.0, average: 20.0 }));
        assert_eq!((of("c"), Weight::of(&weights, None)), (Weight { own: 1.0, average: 20.0 }, of("c")));
    }

    proptest! {
        /// Jobs of any size that come at any time, taken in the order of their turns: while two owners wait, neither is ahead of
        /// the other by more than one job of each.
        #[test]
        fn nobody_is_ahead_by_more_than_a_job(
            weights in proptest::collection::vec(0.1_f64..10.0, 2..5),
            course in proptest::collection::vec((any::<prop::sample::Index>(), 1_u64..1_000, any::<bool>()), 1..200),
        ) {
            let mut pace = PACE;
            let mut accounts = vec![Account::default(); weights.len()];
            let mut waiting: Vec<Vec<(Turn, u64)>> = vec![Vec::new(); weights.len()];
            // Since both of a pair wait.
            let mut given = vec![vec![0.0_f64; weights.len()]; weights.len()];
            let mut largest = vec![0.0_f64; weights.len()];
            for (at, pixel_steps, takes) in course {
                let owner = at.index(weights.len());
                let weight = Weight { own: weights[owner], average: 1.0 };
                let turn = accounts[owner].turn(&pace, None, (Priority::Normal, pixel_steps), weight);
                if waiting[owner].is_empty() {
                    given[owner].fill(0.0);
                    given.iter_mut().for_each(|given| given[owner] = 0.0);
                }
                waiting[owner].push((turn, pixel_steps));
                largest[owner] = largest[owner].max(pixel_steps as f64 / weights[owner]);
                let first = |owner: &usize| waiting[*owner].first().map_or(f64::MAX, |(turn, _)| turn.at);
                let next = (0..weights.len()).min_by(|a, b| first(a).total_cmp(&first(b)));
                if let Some(next) = next.filter(|_| takes) {
                    let (turn, pixel_steps) = waiting[next].remove(0);
                    pace.took(turn, turn.at.floor() as i64, None);
                    given[next].iter_mut().for_each(|given| *given += pixel_steps as f64 / weights[next]);
                }
                for (p, q) in (0..weights.len()).flat_map(|p| (0..p).map(move |q| (p, q))) {
                    if !waiting[p].is_empty() && !waiting[q].is_empty() {
                        let ahead = (given[p][q] - given[q][p]).abs();
                        prop_assert!(ahead <= largest[p] + largest[q] + 1e-6, "{ahead}");
                    }
                }
            }
        }
    }
}
