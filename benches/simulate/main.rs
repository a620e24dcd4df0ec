//! The batching policies against a virtual clock, without tensors: who waits how long on which device under which traffic.
//!
//! `cargo bench --bench simulate` prints tables and writes `simulation.csv` and `simulation.svg` into
//! `target/simulation`. The `Batcher` and its cost model are the engine's own, and learn the virtual device's costs as they
//! learn a real one's; claiming follows `dispatch::workers`. Prompt encoding and decoding take no time here.
//! `-- --jobs 20000` makes each run shorter, `-- --seeds 10` makes more of them, `-- --only TEXT` runs the families whose
//! name contains the text.

#![expect(clippy::print_stdout, reason = "the tables are what it is for")]

mod queue;
mod report;
mod traffic;
mod world;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use report::{Cell, Stats};
use traffic::{Arrivals, Family, Mix};
use world::{Device, Policy, World};

/// 20 ms whatever the rows and 4 ms each: batching pays.
const SHARED: Device = Device { fixed: 0.020, per_row: 0.004, cap: 16 };
/// 1 ms and 20 ms a row: batching saves next to nothing.
const SATURATED: Device = Device { fixed: 0.001, per_row: 0.020, cap: 16 };

const LOADS: [f64; 5] = [0.2, 0.5, 0.8, 0.9, 0.95];

fn families() -> Vec<Family> {
    let mix = |scales: &[f64]| Mix { scales: scales.to_vec(), steps: vec![20, 30, 50] };
    let (one, two) = (mix(&[1.0]), mix(&[1.0, 2.25]));
    let (far, four) = (mix(&[1.0, 4.0]), mix(&[1.0, 1.5, 2.25, 4.0]));
    let small = Arrivals::Bursts { least: 4, most: 8 };
    let large = Arrivals::Bursts { least: 8, most: 12 };
    let poisson = Arrivals::Poisson;
    let family = |name, device, mix: &Mix, arrivals, loads: &[f64], devices| {
        let (mix, loads) = (mix.clone(), loads.to_vec());
        Family { name, device, mix, arrivals, loads, devices }
    };
    vec![
        family("one resolution, Poisson", SHARED, &one, poisson, &LOADS, 1),
        family("one resolution, bursts of 4 to 8", SHARED, &one, small, &LOADS, 1),
        family("one resolution, bursts of 8 to 12", SHARED, &one, large, &LOADS, 1),
        family("one resolution, waves", SHARED, &one, Arrivals::Waves, &LOADS, 1),
        family("two resolutions, Poisson", SHARED, &two, poisson, &LOADS, 1),
        family("two resolutions, bursts of 4 to 8", SHARED, &two, small, &LOADS, 1),
        family("two resolutions, bursts of 8 to 12", SHARED, &two, large, &LOADS, 1),
        family("two resolutions, waves", SHARED, &two, Arrivals::Waves, &LOADS, 1),
        family("two resolutions, one of 4 times the pixels, Poisson", SHARED, &far, poisson, &LOADS, 1),
        family("two resolutions, one of 4 times the pixels, bursts of 8 to 12", SHARED, &far, large, &LOADS, 1),
        family("four resolutions, Poisson", SHARED, &four, poisson, &LOADS, 1),
        family("four resolutions, bursts of 8 to 12", SHARED, &four, large, &LOADS, 1),
        family("saturated device, one resolution, Poisson", SATURATED, &one, poisson, &LOADS, 1),
        family("saturated device, one resolution, bursts of 4 to 8", SATURATED, &one, small, &LOADS, 1),
        family("saturated device, two resolutions, Poisson", SATURATED, &two, poisson, &LOADS, 1),
        family("saturated device, two resolutions, bursts of 4 to 8", SATURATED, &two, small, &LOADS, 1),
        family("4 devices, two resolutions, Poisson", SHARED, &two, poisson, &[0.5, 0.8], 4),
        family("16 devices, two resolutions, Poisson", SHARED, &two, poisson, &[0.5, 0.8], 16),
        family("64 devices, two resolutions, Poisson", SHARED, &two, poisson, &[0.5, 0.8], 64),
        family("256 devices, two resolutions, Poisson", SHARED, &two, poisson, &[0.5, 0.8], 256),
    ]
}

struct Options {
    jobs: usize,
    seeds: u64,
    only: String,
}

fn options() -> Result<Options, String> {
    let mut options = Options { jobs: 100_000, seeds: 5, only: String::new() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            // cargo's own.
            "--bench" => {}
            "--jobs" => {
                let count = words.next().and_then(|count| count.parse().ok());
                options.jobs = count.filter(|count| *count > 0).ok_or("--jobs wants a number, at least 1")?;
            }
            "--seeds" => {
                let count = words.next().and_then(|count| count.parse().ok());
                options.seeds = count.filter(|count| *count > 0).ok_or("--seeds wants a number, at least 1")?;
            }
            "--only" => options.only = words.next().ok_or("--only wants a text")?,
            other => return Err(format!("`{other}` is unknown; use --jobs N, --seeds N and --only TEXT")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    match options().and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    let mut cells = Vec::new();
    for family in families().into_iter().filter(|family| family.name.contains(&options.only)) {
        println!("\n### {}\n\n{}", family.name, report::HEADER);
        for load in &family.loads {
            let cell = simulate(&family, *load, options);
            println!("{}", cell.rows());
            cells.push(cell);
        }
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/simulation");
    report::write(&folder, &cells).map_err(|error| format!("cannot write into {}: {error}", folder.display()))?;
    println!("\n{}", folder.display());
    Ok(())
}

/// Every policy on the same traces.
fn simulate(family: &Family, load: f64, options: &Options) -> Cell {
    let began = Instant::now();
    let runs = (1..=options.seeds).map(|seed| {
        let jobs = traffic::jobs(family, load, options.jobs, seed);
        Policy::ALL.map(|policy| Stats::of(&World::run(family, policy, jobs.clone())))
    });
    let runs = runs.collect();
    Cell { family: family.name, load, runs, seconds: began.elapsed().as_secs_f64() }
}
