//! The two shapes of load.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::task::JoinSet;

use super::client::{Attempt, Client, Drawn, Fault, Follow};
use super::mix::Mix;

/// How jobs are sent.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "shape")]
pub(super) enum LoadShape {
    /// So many clients, each sends its next job when its last has ended.
    Closed { concurrency: u64, jobs: u64 },
    /// Arrivals of a Poisson process, drawn from `seed`.
    Open { per_second: f64, seconds: f64, seed: u64 },
}

/// One job of the load.
#[derive(Debug)]
pub(super) struct Record {
    /// From when it was due (open) or first sent (closed) to when its end was known.
    pub latency: Duration,
    /// To the first step; of a watched job.
    pub first_progress: Option<Duration>,
    /// What it brought, or the kind of fault.
    pub end: Result<Drawn, String>,
}

/// What came of a load.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub records: Vec<Record>,
    /// Submissions answered 429 or 503, by kind.
    pub refused: BTreeMap<String, u64>,
    /// From the first submission to the last end.
    pub took: Duration,
}

/// Sends the load and waits for the last job's end.
pub(super) async fn run(client: &Client, mix: &Arc<Mix>, shape: &LoadShape, watch_every: u64) -> Done {
    let sender = Sender { client: client.clone(), mix: mix.clone(), watch_every };
    let began = Instant::now();
    let mut done = match *shape {
        LoadShape::Closed { concurrency, jobs } => closed(sender, concurrency, jobs).await,
        LoadShape::Open { per_second, seconds, seed } => open(sender, &arrivals(per_second, seconds, seed)).await,
    };
    done.took = began.elapsed();
    done
}

#[derive(Clone)]
struct Sender {
    client: Client,
    mix: Arc<Mix>,
    watch_every: u64,
}

impl Sender {
    async fn attempt(&self, number: u64) -> Attempt {
        let watched = self.watch_every > 0 && number.is_multiple_of(self.watch_every);
        self.client.draw(&self.mix.body(number), if watched { Follow::Watched } else { Follow::Held }).await
    }
}

fn progress_bar(jobs: u64) -> ProgressBar {
    let bar = ProgressBar::new(jobs);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} jobs, {elapsed}") {
        bar.set_style(style);
    }
    bar
}

impl Done {
    fn refused(&mut self, kind: String) {
        *self.refused.entry(kind).or_default() += 1;
    }

    fn add(&mut self, due: Instant, Attempt { at, first_progress, end }: Attempt) {
        let end = match end {
            Ok(drawn) => Ok(drawn),
            Err(Fault::Other { kind, .. } | Fault::Busy { kind, .. }) => Err(kind),
        };
        let since = |at: Instant| at.saturating_duration_since(due);
        self.records.push(Record { latency: since(at), first_progress: first_progress.map(since), end });
    }

    fn merge(&mut self, other: Self) {
        self.records.extend(other.records);
        for (kind, count) in other.refused {
            *self.refused.entry(kind).or_default() += count;
        }
    }
}

/// A client whose job is refused for lack of room waits as told and sends it again, as a well-behaved client does.
async fn closed(sender: Sender, concurrency: u64, jobs: u64) -> Done {
    let (next, bar) = (Arc::new(AtomicU64::new(0)), progress_bar(jobs));
    let mut clients = JoinSet::new();
    for _ in 0..concurrency {
        let (sender, next, bar) = (sender.clone(), next.clone(), bar.clone());
        clients.spawn(async move {
            let mut done = Done::default();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= jobs {
                    return done;
                }
                let first_sent = Instant::now();
                let mut attempt = sender.attempt(number).await;
                while let Err(Fault::Busy { kind, retry_after }) = &attempt.end {
                    done.refused(kind.clone());
                    tokio::time::sleep(*retry_after).await;
                    attempt = sender.attempt(number).await;
                }
                done.add(first_sent, attempt);
                bar.inc(1);
            }
        });
    }
    gather(clients, bar).await
}

/// What is refused is lost: the load does not depend on the answers. Latency counts from when a job was due, so that a
/// late submission is no excuse.
async fn open(sender: Sender, arrivals: &[Duration]) -> Done {
    let bar = progress_bar(arrivals.len() as u64);
    let (began, mut jobs) = (tokio::time::Instant::now(), JoinSet::new());
    for (number, arrival) in arrivals.iter().enumerate() {
        let due = began + *arrival;
        tokio::time::sleep_until(due).await;
        let (sender, bar) = (sender.clone(), bar.clone());
        jobs.spawn(async move {
            let mut done = Done::default();
            let attempt = sender.attempt(number as u64).await;
            match attempt.end {
                Err(Fault::Busy { kind, .. }) => done.refused(kind),
                _ => done.add(due.into_std(), attempt),
            }
            bar.inc(1);
            done
        });
    }
    gather(jobs, bar).await
}

async fn gather(mut tasks: JoinSet<Done>, bar: ProgressBar) -> Done {
    let mut all = Done::default();
    while let Some(done) = tasks.join_next().await {
        // A task neither panics nor is aborted.
        if let Ok(done) = done {
            all.merge(done);
        }
    }
    bar.finish_and_clear();
    all
}

/// When jobs arrive, from the start: exponential distances with mean 1/`per_second`, until `seconds` have passed.
fn arrivals(per_second: f64, seconds: f64, seed: u64) -> Vec<Duration> {
    let (mut state, mut at, mut all) = (seed, 0.0, Vec::new());
    loop {
        at -= (1.0 - uniform(&mut state)).ln() / per_second;
        if at >= seconds {
            return all;
        }
        all.push(Duration::from_secs_f64(at));
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): 53 random bits in [0, 1).
fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_come_at_the_rate_and_are_the_same_for_the_same_seed() {
        let all = arrivals(50.0, 200.0, 3);
        assert_eq!(all, arrivals(50.0, 200.0, 3));
        assert_ne!(all, arrivals(50.0, 200.0, 4));
        // 10,000 expected; the deviation of a Poisson count is its root, and five of those never happen.
        assert!((9_500..=10_500).contains(&all.len()), "{}", all.len());
        assert!(all.is_sorted() && all.last().is_some_and(|last| *last < Duration::from_secs(200)));
        // Exponential distances: their deviation equals their mean; evenly spaced ones would have none.
        let gaps: Vec<f64> = all.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        assert!((deviation / mean - 1.0).abs() < 0.1, "{deviation} against {mean}");
    }
}
