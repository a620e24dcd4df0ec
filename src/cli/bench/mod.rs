//! `darkroom bench`: load against a running server, through its public API alone. `darkroom bench engine`: the engine's
//! stages, in this process and without a server.
//!
//! Measures and reports; judges nothing.

mod client;
mod engine;
mod load;
mod mix;
mod report;
mod server_side;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};

use self::client::Client;
use self::load::LoadShape;
use self::mix::Mix;
use self::report::Report;
use self::server_side::Counts;
use super::say;

/// Flags of `bench`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    offline: Option<Offline>,
    #[command(flatten)]
    load: LoadArgs,
}

#[derive(Debug, Subcommand)]
enum Offline {
    /// Time text encoding, network evaluations, decoding and whole pictures without a server.
    Engine(engine::EngineArgs),
}

/// Closed loop: `--concurrency` clients, each sends its next job when its last has ended. Open loop: jobs arrive at
/// `--rate`, however the server does.
#[derive(Debug, Args)]
struct LoadArgs {
    /// Where the server listens.
    #[arg(long, default_value = "http://127.0.0.1:7860")]
    url: String,
    /// Closed loop: clients that wait for their job before they send the next.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    concurrency: u64,
    /// Closed loop: jobs in all.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..))]
    jobs: u64,
    /// Open loop: jobs a second, with the random distances of a Poisson process.
    #[arg(long, conflicts_with_all = ["concurrency", "jobs"], value_parser = positive)]
    rate: Option<f64>,
    /// Open loop: for how many seconds jobs arrive.
    #[arg(long, default_value_t = 30.0, requires = "rate", value_parser = positive)]
    duration: f64,
    #[command(flatten)]
    mix: MixArgs,
    /// Draws arrival times, and the pictures of bodies that name no `seed`.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Jobs before the measurement, one after the other; not counted.
    #[arg(long, default_value_t = 1)]
    warmup: u64,
    /// Every so many jobs, one is watched by its event stream, for the time to its first step; 0: none.
    #[arg(long, default_value_t = 8)]
    watch_every: u64,
    /// A job that has not ended after so many seconds is given up.
    #[arg(long, default_value_t = 600.0, value_parser = positive)]
    timeout: f64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What the jobs ask for. Flags given several times are combined, every combination in turn.
#[derive(Debug, Args)]
struct MixArgs {
    /// What to draw.
    #[arg(long = "prompt", default_value = "a red house in the snow at night")]
    prompts: Vec<String>,
    /// WIDTHxHEIGHT, such as 128x128.
    #[arg(long = "size", value_parser = mix::size)]
    sizes: Vec<(u32, u32)>,
    /// Sampler steps.
    #[arg(long)]
    steps: Vec<u32>,
    /// ddpm, ddim, pndm, euler, euler_a, heun, dpm2, dpm2_a, lms, dpm_solver, dpmpp_2s_a,
    /// dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_sde, unipc, deis, lcm, tcd.
    #[arg(long = "sampler")]
    samplers: Vec<String>,
    /// Classifier-free guidance.
    #[arg(long)]
    guidance_scale: Option<f64>,
    /// Pictures a job.
    #[arg(long)]
    num_images: Option<u32>,
    /// A model's id.
    #[arg(long)]
    model: Option<String>,
    /// A JSON file: one body of `POST /v1/jobs`, or an array of them, sent in turn.
    #[arg(long, conflicts_with_all = ["prompts", "sizes", "steps", "samplers", "guidance_scale", "num_images", "model"])]
    bodies: Option<PathBuf>,
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|x: &f64| x.is_finite() && *x > 0.0).ok_or_else(|| "must be a number above 0".to_owned())
}

/// What to run: either needs no more than its flags.
pub(super) fn bench(args: BenchArgs) -> Result<(), String> {
    match args.offline {
        Some(Offline::Engine(args)) => engine::bench(args),
        None => super::block_on(load(args.load)),
    }
}

async fn load(args: LoadArgs) -> Result<(), String> {
    let mix = Arc::new(Mix::new(args.mix, args.seed)?);
    let shape = match args.rate {
        Some(per_second) => LoadShape::Open { per_second, seconds: args.duration, seed: args.seed },
        None => LoadShape::Closed { concurrency: args.concurrency, jobs: args.jobs },
    };
    let client = Client::new(&args.url, Duration::from_secs_f64(args.timeout))?;
    Counts::fetch(&client).await.map_err(|error| format!("--url {}: {error}", args.url))?;
    for number in 0..args.warmup {
        // Also tells a body that the server refuses before a whole load of them is sent.
        client.try_out(&mix.body(number)).await?;
    }
    let before = Counts::fetch(&client).await?;
    let done = load::run(&client, &mix, &shape, args.watch_every).await;
    let batches = Counts::fetch(&client).await?.since(&before);
    let report = Report::new(args.url, shape, &done, batches);
    say(if args.json { report.json()? } else { report.table() })?;
    if report.succeeded() > 0 { Ok(()) } else { Err("no job succeeded".to_owned()) }
}
