//! What came of a run, in numbers.

use std::collections::BTreeMap;

use super::traffic::{Family, Job};
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
        let (first, last) = (world.jobs[0].comes, world.jobs[count - 1].comes);
        let end = world.jobs.iter().map(|job| job.ends).fold(0.0, f64::max);
        Self {
            throughput: count as f64 / (end - first),
            mean: took.iter().sum::<f64>() / count as f64,
            p95: percentile(&took, 0.95),
            p99: percentile(&took, 0.99),
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

/// By nearest rank, of numbers in order.
fn percentile(numbers: &[f64], share: f64) -> f64 {
    let count = numbers.len();
    numbers[((count as f64 * share).ceil() as usize).clamp(1, count) - 1]
}

/// An ideal to measure policies by: mean, 95th and 99th percentile of the times if one device worked off its jobs in the order of
/// their coming, each at the speed of full batches, but for what a job takes alone. It is no bound: where jobs share a batch, a short
/// one may end before a long one that came before it. `None` for more devices.
pub(super) fn ideal(family: &Family, jobs: &[Job]) -> Option<[f64; 3]> {
    let (device, mut free) = (family.device, 0f64);
    let time = |job: &Job| {
        let step = |rows: u32| device.seconds(family.mix.scales[job.size], rows) / f64::from(rows);
        free = free.max(job.comes) + f64::from(job.steps) * step(device.cap);
        (free - job.comes).max(f64::from(job.steps) * step(1))
    };
    let mut took: Vec<f64> = jobs.iter().map(time).collect();
    took.sort_unstable_by(f64::total_cmp);
    let mean = took.iter().sum::<f64>() / took.len() as f64;
    (family.devices == 1).then(|| [mean, percentile(&took, 0.95), percentile(&took, 0.99)])
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
