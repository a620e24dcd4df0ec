//! One file per subcommand; parses flags, calls the rooms, prints for people.

mod bench;
mod controls;
mod generate;
mod health;
mod keys;
mod loras;
mod migrate;
mod models;
mod openapi;
mod pictures;
mod pull;
mod serve;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Overrides, Settings};
use crate::telemetry::init_logs;

/// Image-generation server: a durable queue, batches across users, progress over SSE.
#[derive(Debug, Parser)]
#[command(name = "darkroom", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API and the page.
    Serve(ServeArgs),
    /// Draw pictures without a server.
    Generate(Box<generate::GenerateArgs>),
    /// Measure a running server under load, or (`bench engine`) the engine alone.
    Bench(Box<bench::BenchArgs>),
    /// Fetch a model from Hugging Face, or a hub that speaks its protocol, to where `serve` finds it.
    Pull(pull::PullArgs),
    /// List the models that would be served.
    Models(models::ModelsArgs),
    /// Make API keys.
    Keys(keys::KeysArgs),
    /// Bring the database up to date.
    Migrate(ServeArgs),
    /// Ask a running server whether it is ready; for container health checks.
    Health(health::HealthArgs),
    /// Print the API's OpenAPI description.
    Openapi,
}

/// Settings that every command reads.
#[derive(Debug, Default, Args)]
struct ServeArgs {
    /// A TOML file of settings; config/default.toml lists them all.
    #[arg(long, env = "DARKROOM_CONFIG")]
    config: Option<PathBuf>,
    /// Address and port (server.listen).
    #[arg(long)]
    listen: Option<String>,
    /// Where the database and the pictures are kept (data_dir).
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// A built-in model, a diffusers folder or a checkpoint in one safetensors file; may be given several times, the first
    /// is the default (models.serve).
    #[arg(long = "model")]
    models: Vec<String>,
}

impl ServeArgs {
    fn settings(self) -> Result<Settings, String> {
        let flags = Overrides { listen: self.listen, data_dir: self.data_dir, models: self.models };
        config::load(self.config.as_deref(), &flags).map_err(|faults| {
            let each: Vec<String> = faults.iter().map(|fault| format!("  {fault}")).collect();
            format!("the settings are not valid:\n{}", each.join("\n"))
        })
    }
}

/// Runs the command line; the exit code says whether it did what it should.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Serve(args) => with_settings(args, |settings| block_on(serve::serve(settings))),
        Command::Generate(args) => generate::generate(*args),
        Command::Bench(args) => bench::bench(*args),
        Command::Pull(args) => block_on(pull::pull(args)),
        Command::Models(args) => models::models(args),
        Command::Keys(args) => keys::keys(args),
        Command::Migrate(args) => with_settings(args, |settings| block_on(migrate::migrate(settings))),
        Command::Health(args) => block_on(health::health(args)),
        Command::Openapi => openapi::openapi(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // Nowhere to report that standard error is closed.
            let _ = writeln!(std::io::stderr(), "darkroom: {message}");
            ExitCode::FAILURE
        }
    }
}

fn with_settings(args: ServeArgs, work: impl FnOnce(Settings) -> Result<(), String>) -> Result<(), String> {
    let settings = args.settings()?;
    init_logs(&settings.log.filter, settings.log.format)?;
    work(settings)
}

fn block_on(work: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| error.to_string())?;
    let done = runtime.block_on(work);
    // A thread that hangs must not hold the process: everything that matters has been awaited.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    done
}

/// Prints a line for people or pipes.
fn say(text: impl std::fmt::Display) -> Result<(), String> {
    writeln!(std::io::stdout(), "{text}").map_err(|error| format!("cannot print: {error}"))
}
