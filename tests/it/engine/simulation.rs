//! What the policy `continuous` is for, held on a virtual clock: how long jobs take under the traces of `benches/simulate`,
//! against other policies on the same traces. Seeds are fixed and no real time passes, so every run gives the same numbers.

#[path = "../../../benches/simulate/families.rs"]
mod families;
#[path = "../../../benches/simulate/queue.rs"]
mod queue;
#[path = "../../../benches/simulate/stats.rs"]
#[expect(dead_code, reason = "the tables show more numbers than are held here")]
mod stats;
#[path = "../../../benches/simulate/traffic.rs"]
#[expect(dead_code, reason = "the loads of the tables are not all those held here")]
mod traffic;
#[path = "../../../benches/simulate/world.rs"]
#[expect(dead_code, reason = "the tables name and compare more policies than are held here")]
mod world;

use stats::Stats;
use world::{Policy, World};

/// How much is simulated of each trace; ten thousand jobs take some hundredths of a second.
#[derive(Clone, Copy)]
struct Length {
    jobs: usize,
    seeds: u64,
}

/// Where a bar is missed by far or not at all.
const SHORT: Length = Length { jobs: 10_000, seeds: 3 };
/// Where some percent decide: a 99th percentile under bursts is known to 3 % then (docs/benchmarks.md shows these runs).
const LONG: Length = Length { jobs: 30_000, seeds: 5 };

/// Mean, p95 and p99 of `continuous` over those of another policy, each averaged over the seeds.
fn ratios(name: &str, load: f64, other: Policy, length: Length) -> [f64; 3] {
    let family = families::families().into_iter().find(|family| family.name == name).expect("a family of that name");
    let (mut ours, mut theirs) = ([0.0; 3], [0.0; 3]);
    for seed in 1..=length.seeds {
        let jobs = traffic::jobs(&family, load, length.jobs, seed);
        for (sums, policy) in [(&mut ours, Policy::Continuous), (&mut theirs, other)] {
            let times = Stats::of(&World::run(&family, policy, jobs.clone())).times();
            sums.iter_mut().zip(times).for_each(|(sum, time)| *sum += time);
        }
    }
    [0, 1, 2].map(|time| ours[time] / theirs[time])
}

/// All faults at once: a bar that is missed is seldom missed alone.
fn hold(bars: impl IntoIterator<Item = (&'static str, f64, [f64; 3])>, other: Policy, length: Length) {
    let missed: Vec<String> = bars
        .into_iter()
        .filter_map(|(name, load, bar)| {
            let found = ratios(name, load, other, length);
            let holds = found.iter().zip(bar).all(|(found, bar)| *found <= bar);
            (!holds).then(|| format!("{name} at {load}: {found:.4?}, at most {bar:?}"))
        })
        .collect();
    assert!(missed.is_empty(), "to {}: mean, p95 and p99\n{}", other.name(), missed.join("\n"));
}

const ANY: f64 = f64::INFINITY;

#[test]
fn of_one_resolution_jobs_take_little_more_than_half_as_long_as_in_groups() {
    let poisson = [0.5, 0.8].map(|load| ("one resolution, Poisson", load, [0.6, ANY, 0.6]));
    let small = "one resolution, bursts of 4 to 8";
    let large = "one resolution, bursts of 8 to 12";
    let half = [small, large].map(|name| (name, 0.5, [0.8, ANY, 0.8]));
    // At 80 % the slowest hundredth meet a queue of many full batches, which every policy works off at the same speed:
    // with nothing but that time, in the order of coming, they would take about 0.7 and 0.8 of the time in groups.
    let high = [(small, 0.8, [0.8, ANY, 0.86]), (large, 0.8, [0.8, ANY, 0.9])];
    hold(poisson.into_iter().chain(half).chain(high), Policy::Grouped, LONG);
}

#[test]
fn of_two_resolutions_jobs_never_take_longer_than_in_groups() {
    let names = ["two resolutions, Poisson", "two resolutions, bursts of 4 to 8", "two resolutions, bursts of 8 to 12"];
    let bars = names.into_iter().flat_map(|name| families::LOADS.map(|load| (name, load, [1.0; 3])));
    hold(bars, Policy::Grouped, SHORT);
}

#[test]
fn on_a_saturated_device_jobs_never_take_longer_than_one_at_a_time() {
    let names = [
        "saturated device, one resolution, Poisson",
        "saturated device, one resolution, bursts of 4 to 8",
        "saturated device, two resolutions, Poisson",
        "saturated device, two resolutions, bursts of 4 to 8",
    ];
    // Forwards vary by 2 % each, and not alike under two policies; and until its costs are learnt, a device is taken for
    // one on which batches pay.
    let bars = names.into_iter().flat_map(|name| families::LOADS.map(|load| (name, load, [1.003, 1.01, 1.01])));
    hold(bars, Policy::OneAtATime, SHORT);
}
