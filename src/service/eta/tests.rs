//! Forecasts against a device that is played step by step.

use super::*;
use crate::dispatch::hub::Aboard;
use crate::domain::{Cost, ModelId};

const SEATS: u32 = 8;
const COST: Cost = Cost { fixed: 0.020, per_row: 0.010 };

fn size(width: u32) -> SizeKey {
    SizeKey { model: ModelId::new("m"), width, height: 64 }
}

fn place(rank_ms: i64) -> QueuePlace {
    QueuePlace { rank_ms, id: uuid::Uuid::nil().into() }
}

/// On which forwards have eight rows where so many wait.
fn forecast(aboard: Vec<Aboard>, waiting_rows: u64, workers: u32) -> Forecast {
    let belief = Belief {
        cost: COST,
        memory: None,
        most_rows: SEATS,
        policy: BatchingPolicy::Grouped,
        forwards: 1,
        error: None,
        after_steps: None,
    };
    let beliefs = [(size(64), belief)].into();
    Forecast { outlook: Outlook { beliefs, overhead: 0.0, aboard, workers }, waiting_rows }
}

/// A job of one picture, whose place is its rank.
#[derive(Clone, Copy)]
struct Played {
    rows: u32,
    steps: u32,
    left: u32,
}

impl Played {
    fn of(rows: u32, steps: u32) -> Self {
        Self { rows, steps, left: steps }
    }

    fn own(self) -> Own {
        let (rows, steps) = (f64::from(self.rows), f64::from(self.steps));
        Own { rows, steps, row_steps: rows * steps }
    }

    fn aboard(self, rank_ms: i64) -> Aboard {
        Aboard {
            job: uuid::Uuid::from_u128(rank_ms as u128).into(),
            size: size(64),
            place: place(rank_ms),
            rows: self.rows,
            steps: self.steps,
            steps_left: self.left,
            row_steps_left: f64::from(self.rows * self.left),
        }
    }
}

fn work(jobs: &[Played]) -> WaitingWork {
    let rows = jobs.iter().map(|job| u64::from(job.rows)).sum();
    let row_steps = jobs.iter().map(|job| u64::from(job.rows * job.steps)).sum();
    WaitingWork { size: size(64), jobs: jobs.len() as u64, rows, row_steps }
}

/// Seconds until the last job has ended, where places are taken in order as soon as they are free.
fn played(jobs: &[Played]) -> f64 {
    let (mut waiting, mut aboard, mut seconds) = (jobs.iter().copied().peekable(), Vec::<Played>::new(), 0.0);
    loop {
        let rows = |aboard: &[Played]| aboard.iter().map(|job| job.rows).sum::<u32>();
        while let Some(job) = waiting.next_if(|job| rows(&aboard) + job.rows <= SEATS) {
            aboard.push(job);
        }
        if aboard.is_empty() {
            return seconds;
        }
        seconds += COST.seconds(rows(&aboard));
        aboard.iter_mut().for_each(|job| job.left -= 1);
        aboard.retain(|job| job.left > 0);
    }
}

/// The forecast of the last of these jobs, of which so many are aboard, over what is played.
fn ratio(jobs: &[Played], aboard: usize) -> f64 {
    let (before, last) = jobs.split_at(jobs.len() - 1);
    let (held, ahead) = before.split_at(aboard);
    let held = held.iter().enumerate().map(|(rank, job)| job.aboard(rank as i64)).collect();
    let ahead = if ahead.is_empty() { Vec::new() } else { vec![work(ahead)] };
    let forecast = forecast(held, 100, 1);
    let seconds = forecast.whole(&size(64), place(1_000_000), last[0].own(), &ahead).expect("it was measured");
    seconds / played(jobs)
}

#[test]
fn the_last_of_a_queue_ends_about_when_it_is_told() {
    let alike = |count, rows, steps| vec![Played::of(rows, steps); count];
    // Batches of eight rows, one after another, all of them full.
    for count in [4, 16, 40, 400] {
        let ratio = ratio(&alike(count, 2, 20), 0);
        assert!((0.85..1.15).contains(&ratio), "{count}: {ratio}");
    }
    // Of several lengths, places become free one by one.
    let mixed: Vec<Played> = (0..120).map(|k| Played::of(1 + k % 2, [10, 20, 30][k as usize / 2 % 3])).collect();
    for count in [30, 60, 120] {
        let ratio = ratio(&mixed[..count], 0);
        assert!((0.85..1.15).contains(&ratio), "{count}: {ratio}");
    }
}

#[test]
fn jobs_aboard_count_by_what_is_left_of_them() {
    let begun = |left| Played { left, ..Played::of(2, 20) };
    for lefts in [[20, 15, 10, 5], [19, 18, 17, 16], [4, 3, 2, 1]] {
        let mut jobs: Vec<Played> = lefts.into_iter().map(begun).collect();
        jobs.extend([Played::of(2, 20); 9]);
        let ratio = ratio(&jobs, 4);
        assert!((0.8..1.2).contains(&ratio), "{lefts:?}: {ratio}");
    }
}

#[test]
fn a_job_that_finds_room_takes_its_own_steps_beside_the_others() {
    let forecast = forecast(vec![Played::of(2, 20).aboard(0)], 0, 1);
    let seconds = forecast.whole(&size(64), place(1), Played::of(2, 10).own(), &[]);
    assert!((seconds.expect("measured") - 10.0 * COST.seconds(4)).abs() < 1e-9, "{seconds:?}");
}

#[test]
fn work_of_another_size_that_stands_before_comes_first_and_what_stands_behind_does_not() {
    let wide = |rank_ms| Aboard { size: size(128), ..Played::of(4, 10).aboard(rank_ms) };
    let own = Played::of(2, 10).own();
    let seconds = |rank_ms| forecast(vec![wide(rank_ms)], 0, 1).whole(&size(64), place(5), own, &[]).expect("measured");
    // Never measured: twice the pixels, twice as long a row.
    let other = 10.0 * (COST.fixed + 4.0 * 2.0 * COST.per_row);
    assert!((seconds(9) - 10.0 * COST.seconds(2)).abs() < 1e-9);
    assert!((seconds(1) - seconds(9) - other).abs() < 1e-9);
}

#[test]
fn several_workers_share_the_queue() {
    let ahead = [work(&[Played::of(2, 20); 40])];
    let seconds = |workers| {
        forecast(Vec::new(), 80, workers).whole(&size(64), place(1), Played::of(2, 20).own(), &ahead).expect("measured")
    };
    assert!((0.4..0.6).contains(&(seconds(2) / seconds(1))), "{} {}", seconds(2), seconds(1));
    // The first place is free at once where nobody is aboard, and else when somebody there is done.
    assert_eq!(forecast(Vec::new(), 80, 1).place_free(&ahead), Some(0.0));
    let aboard = (0..4).map(|rank| Played { left: 10, ..Played::of(2, 20) }.aboard(rank)).collect();
    let free = forecast(aboard, 80, 1).place_free(&ahead).expect("measured");
    assert!((0.0..=10.0 * COST.seconds(8)).contains(&free) && free > 0.0, "{free}");
}

#[test]
fn nothing_is_told_of_a_model_that_was_never_measured() {
    let other = SizeKey { model: ModelId::new("other"), ..size(64) };
    assert_eq!(forecast(Vec::new(), 0, 1).whole(&other, place(1), Played::of(2, 20).own(), &[]), None);
}
