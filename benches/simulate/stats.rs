//! What came of a run, in numbers.

use std::collections::BTreeMap;

use super::world::World;

/// What came of a run; times are from a job's coming to its end, in seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stats {
    /// Jobs a second.
    pub(super) throughput: f64,
    pub(super) mean: f64,
    pub(super) p95: f64,
    pub(super) p99: f64,
    pub(super) longest: f64,
    /// Rows of a forward, on average.
    pub(super) rows: f64,
    /// How unequal the kinds (size and steps) fare: a job's time over what it would take alone on an idle device,
    /// averaged over its kind, of the worst kind over the best.
    pub(super) unfairness: f64,
    /// The queue grew to the end: times say nothing but that.
    pub(super) overloaded: bool,
}

impl Stats {
    pub(super) fn of(world: &World) -> Self {
        let mut took: Vec<f64> = world.jobs.iter().map(|job| job.ends - job.comes).collect();
        assert!(took.iter().all(|seconds| *seconds > 0.0), "every job has ended, and none before it came");
        took.sort_unstable_by(f64::total_cmp);
        let count = took.len();
        // By nearest rank.
        let at = |share: f64| took[((count as f64 * share).ceil() as usize).clamp(1, count) - 1];
        let (first, last) = (world.jobs[0].comes, world.jobs[count - 1].comes);
        let end = world.jobs.iter().map(|job| job.ends).fold(0.0, f64::max);
        Self {
            throughput: count as f64 / (end - first),
            mean: took.iter().sum::<f64>() / count as f64,
            p95: at(0.95),
            p99: at(0.99),
            longest: took[count - 1],
            rows: world.rows as f64 / world.forwards as f64,
            unfairness: unfairness(world),
            overloaded: end - last > 0.05 * (last - first),
        }
    }

    pub(super) fn times(&self) -> [f64; 3] {
        [self.mean, self.p95, self.p99]
    }
}

fn unfairness(world: &World) -> f64 {
    let mut kinds: BTreeMap<(usize, u32), (f64, f64)> = BTreeMap::new();
    for job in &world.jobs {
        let (sum, count) = kinds.entry((job.size, job.steps)).or_default();
        *sum += (job.ends - job.comes) / world.alone(job);
        *count += 1.0;
    }
    let slowdowns = || kinds.values().map(|(sum, count)| sum / count);
    slowdowns().fold(0.0, f64::max) / slowdowns().fold(f64::MAX, f64::min)
}
