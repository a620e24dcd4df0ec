//! Fair shares: where in the queue a job stands, where there are owners with weights.
//!
//! Each job is given a *turn* when it is accepted, a moment of a clock of its own, and keeps it: from then on the queue is one line
//! by place, and whoever takes jobs from it knows nothing of owners. An owner's next turn comes after the last by what the job in
//! between will take: its pixel-steps (pictures x steps x width x height), at the speed of the devices, divided by the
//! owner's weight. The clock stands at the latest turn that a worker took, and nobody's next turn is before it: nobody saves up
//! turns while they ask for nothing, and what one does not ask for goes to the others. This is start-time fair queueing
//! (Goyal, Vin and Cheng, 1996), with turns as its start tags.
//!
//! **Shares.** While two owners have jobs waiting, what each is given, divided by its weight, differs by no more than the
//! largest job of each, divided by its weight: their turns are taken in order, and each owner's follow one another without
//! gaps (the property test below). As in an open queue, a batch that runs takes jobs of its size out of order, within
//! [`ALIKE_WITHIN_MS`] of the clock.
//!
//! **Nobody waits for ever.** A job's place is fixed. Of another owner, p, those jobs stand before it whose turn is between the
//! clock and its own, which are `weight(p) x (turn - clock) / ms_per_pixel_step` pixel-steps and one job at most, however many p
//! submits. The engine's proof (`diffusion::batching`) goes by places, whatever they mean.
//!
//! **Priorities** move a job in its owner's time: an urgent one stands before what its owner would be given in
//! [`INTERACTIVE_LEAD_MS`], a bulk one after that of [`BULK_DELAY_MS`]. Less urgent work of the same owner that is accepted later comes after it as
//! well; what stood in line before keeps its turn. So whoever has a line of each priority may be given up to three shares until
//! the lines they had are drawn.
//!
//! [`ALIKE_WITHIN_MS`]: crate::domain::ALIKE_WITHIN_MS

use std::collections::BTreeMap;

use crate::domain::{BULK_DELAY_MS, INTERACTIVE_LEAD_MS, JobStatus, OwnerId, Priority, Timestamp};

/// Pixel-steps a second while nothing was measured: a guess.
const UNMEASURED: f64 = 1e6;
/// What an owner's weight is that has none: jobs without an owner, and those of a key that is no longer configured.
const USUAL_WEIGHT: u32 = 1;

/// The weight of an owner, the average of all that are configured being 1.
pub(super) fn weight(weights: &BTreeMap<OwnerId, u32>, owner: Option<&OwnerId>) -> f64 {
    let own = owner.and_then(|owner| weights.get(owner)).copied().unwrap_or(USUAL_WEIGHT);
    let sum: f64 = weights.values().map(|weight| f64::from(*weight)).sum();
    f64::from(own.max(1)) * weights.len() as f64 / sum.max(1.0)
}

/// The clock of turns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pace {
    /// The latest turn that was taken, in milliseconds. It never goes back.
    pub(super) now: f64,
    /// What a pixel-step of weight 1 takes. The same for all jobs that wait together.
    pub(super) ms_per_pixel_step: f64,
}

impl Pace {
    /// For a job that is about to come. While nobody waits the clock is set to the time of day, and to the present speed, in
    /// pixel-steps a second, as far as it is known.
    pub(super) fn at(known: Option<Self>, is_anyone_waiting: bool, now: Timestamp, speed: Option<f64>) -> Self {
        match known {
            Some(known) if is_anyone_waiting => known,
            known => {
                let measured = speed.filter(|speed| *speed > 0.0).map(|speed| 1e3 / speed);
                let usual = known.map_or(1e3 / UNMEASURED, |known| known.ms_per_pixel_step);
                let now = known.map_or(f64::MIN, |known| known.now).max(now.unix_ms() as f64);
                Self { now, ms_per_pixel_step: measured.unwrap_or(usual) }
            }
        }
    }

    /// A worker took a job of this turn.
    pub(super) fn took(&mut self, turn: Turn) {
        self.now = self.now.max(turn.at);
    }
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
    pub(super) fn rank_ms(self, priority: Priority, weight: f64) -> i64 {
        let moved = match priority {
            Priority::Interactive => -(INTERACTIVE_LEAD_MS as f64) / weight,
            Priority::Normal => 0.0,
            // Of small weights it would be days.
            Priority::Bulk => BULK_DELAY_MS as f64 / weight.max(1.0),
        };
        (self.at + moved).floor() as i64
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
    /// The next turn, for a job that will take so many pixel-steps.
    pub(super) fn turn(&mut self, pace: &Pace, priority: Priority, pixel_steps: u64, weight: f64) -> Turn {
        let cost = pixel_steps as f64 * pace.ms_per_pixel_step / weight;
        let at = self.next[level(priority)].max(pace.now);
        for next in &mut self.next[level(priority)..] {
            *next = next.max(pace.now) + cost;
        }
        Turn { at, cost }
    }

    /// A job will not be drawn: the owner's next turns are as if it had not come.
    pub(super) fn give_back(&mut self, turn: Turn, priority: Priority, pace: &Pace) {
        for next in &mut self.next[level(priority)..] {
            *next = (*next - turn.cost).max(pace.now);
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
    pub(super) fn of(before: JobStatus, job: &crate::domain::Job) -> Self {
        match (before, job.status) {
            (JobStatus::Queued, after) if after.is_terminal() => Self::GivenBack,
            (JobStatus::Running, JobStatus::Succeeded) if job.reused_from.is_some() => Self::GivenBack,
            (JobStatus::Running, JobStatus::Succeeded) => Self::Drawn,
            _ => Self::Not,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PACE: Pace = Pace { now: 1_000.0, ms_per_pixel_step: 1.0 };

    fn turns(account: &mut Account, pace: &Pace, count: usize, weight: f64) -> Vec<f64> {
        (0..count).map(|_| account.turn(pace, Priority::Normal, 30, weight).at).collect()
    }

    #[test]
    fn turns_follow_one_another_by_weight_and_none_is_in_the_past() {
        let (mut light, mut heavy, mut late) = (Account::default(), Account::default(), Account::default());
        assert_eq!(turns(&mut light, &PACE, 3, 1.0), [1_000.0, 1_030.0, 1_060.0]);
        assert_eq!(turns(&mut heavy, &PACE, 3, 3.0), [1_000.0, 1_010.0, 1_020.0]);
        let mut pace = PACE;
        pace.took(Turn { at: 1_045.0, cost: 30.0 });
        pace.took(Turn { at: 1_040.0, cost: 30.0 });
        assert_eq!(turns(&mut late, &pace, 2, 1.0), [1_045.0, 1_075.0]);
        // Nobody saves up turns.
        assert_eq!(turns(&mut heavy, &pace, 2, 3.0), [1_045.0, 1_055.0]);
        assert_eq!(turns(&mut light, &pace, 1, 1.0), [1_090.0]);
    }

    #[test]
    fn a_job_that_is_not_drawn_leaves_its_owners_next_turn_as_it_was() {
        let mut account = Account::default();
        let first = account.turn(&PACE, Priority::Normal, 30, 1.0);
        let second = account.turn(&PACE, Priority::Interactive, 50, 1.0);
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
        let at = |account: &mut Account, priority| account.turn(&PACE, priority, 30, 1.0).at;
        assert_eq!(at(&mut account, Priority::Bulk), 1_000.0);
        assert_eq!(at(&mut account, Priority::Bulk), 1_030.0);
        assert_eq!(at(&mut account, Priority::Interactive), 1_000.0);
        assert_eq!(at(&mut account, Priority::Normal), 1_030.0);
        assert_eq!(at(&mut account, Priority::Bulk), 1_120.0);
        let turn = Turn { at: 1e9, cost: 1.0 };
        let ranks =
            [Priority::Interactive, Priority::Normal, Priority::Bulk].map(|priority| turn.rank_ms(priority, 2.0));
        assert_eq!(ranks, [1_000_000_000 - 15_000, 1_000_000_000, 1_000_000_000 + 150_000]);
        assert_eq!(turn.rank_ms(Priority::Bulk, 0.1), 1_000_300_000);
    }

    #[test]
    fn the_clock_is_set_only_while_nobody_waits() {
        let now = Timestamp::from_unix_ms(5_000);
        let begun = Pace::at(None, false, now, None);
        assert_eq!(begun, Pace { now: 5_000.0, ms_per_pixel_step: 1e-3 });
        assert_eq!(Pace::at(Some(begun), true, Timestamp::from_unix_ms(9_000), Some(2e6)), begun);
        let later = Pace::at(Some(begun), false, Timestamp::from_unix_ms(9_000), Some(2e6));
        assert_eq!(later, Pace { now: 9_000.0, ms_per_pixel_step: 5e-4 });
        assert_eq!(Pace::at(Some(later), false, now, None), later);
    }

    #[test]
    fn weights_are_told_by_their_average() {
        let weights = BTreeMap::from([(OwnerId::new("a"), 30), (OwnerId::new("b"), 10)]);
        assert_eq!(weight(&weights, Some(&OwnerId::new("a"))), 1.5);
        assert_eq!(weight(&weights, Some(&OwnerId::new("b"))), 0.5);
        assert_eq!((weight(&weights, None), weight(&weights, Some(&OwnerId::new("c")))), (0.05, 0.05));
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
                let turn = accounts[owner].turn(&pace, Priority::Normal, pixel_steps, weights[owner]);
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
                    pace.took(turn);
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
