//! The batching policies against a virtual clock, without tensors: who waits how long on which device under which traffic.
//!
//! `cargo bench --bench simulate` prints tables and writes `simulation.csv` and `simulation.svg` into
//! `target/simulation`. The `Batcher` and its cost model are the engine's own, and learn the virtual device's costs as they
//! learn a real one's; claiming follows `dispatch::workers`. Prompt encoding and decoding take no time here.
//! `-- --jobs 20000` makes each run shorter, `-- --seeds 10` makes more of them, `-- --only TEXT` runs the families whose
//! name contains the text. `-- --move-by MS` tries another order than age: every job stands so much later in the queue for
//! each of its steps, or earlier where that is below 0.
//!
//! The families named "owners" go through the real `MemoryStore`: who is given how much of a device, with shares and without.

#![expect(clippy::print_stdout, reason = "the tables are what it is for")]

mod families;
#[path = "../support/jobs.rs"]
mod jobs;
mod owners;
mod queue;
mod report;
mod stats;
mod traffic;
mod world;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use report::Cell;
use stats::Stats;
use traffic::Family;
use world::{Policy, World};

struct Options {
    jobs: usize,
    seeds: u64,
    only: String,
    move_by_ms: f64,
}

fn options() -> Result<Options, String> {
    let mut options = Options { jobs: 100_000, seeds: 5, only: String::new(), move_by_ms: 0.0 };
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
            "--move-by" => {
                let ms = words.next().and_then(|ms| ms.parse().ok());
                options.move_by_ms = ms.filter(|ms: &f64| ms.is_finite()).ok_or("--move-by wants milliseconds")?;
            }
            other => {
                return Err(format!("`{other}` is unknown; use --jobs N, --seeds N, --only TEXT and --move-by MS"));
            }
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
    for family in families::families().into_iter().filter(|family| family.name.contains(&options.only)) {
        println!("\n### {}\n\n{}", family.name, report::HEADER);
        for load in &family.loads {
            let cell = simulate(&family, *load, options);
            println!("{}", cell.rows());
            cells.push(cell);
        }
    }
    owners::run(&options.only, options.seeds);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/simulation");
    report::write(&folder, &cells).map_err(|error| format!("cannot write into {}: {error}", folder.display()))?;
    println!("\n{}", folder.display());
    Ok(())
}

/// Every policy on the same traces.
fn simulate(family: &Family, load: f64, options: &Options) -> Cell {
    let began = Instant::now();
    let mut ideals = Vec::new();
    let runs = (1..=options.seeds).map(|seed| {
        let mut jobs = traffic::jobs(family, load, options.jobs, seed);
        for job in &mut jobs {
            job.stands = job.comes + options.move_by_ms / 1e3 * f64::from(job.steps);
        }
        ideals.extend(stats::ideal(family, &jobs));
        Policy::ALL.map(|policy| Stats::of(&World::run(family, policy, jobs.clone())))
    });
    let runs = runs.collect();
    Cell { family: family.name, load, runs, ideals, seconds: began.elapsed().as_secs_f64() }
}
