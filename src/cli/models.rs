//! `darkroom models`, `darkroom models inspect`

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{ServeArgs, say};
use crate::app::offers;
use crate::diffusion::weights::{ComponentReport, FileReport, Inspection, inspect};

/// Flags of `models`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct ModelsArgs {
    #[command(flatten)]
    settings: ServeArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Option<ModelsCommand>,
}

#[derive(Debug, Subcommand)]
enum ModelsCommand {
    /// Tell what a diffusers folder or a safetensors file is, without loading it.
    Inspect(InspectArgs),
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// The folder or file.
    path: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Leave out the hashes, which take reading every byte.
    #[arg(long)]
    no_hashes: bool,
}

pub(super) fn models(args: ModelsArgs) -> Result<(), String> {
    match args.command {
        Some(ModelsCommand::Inspect(args)) => inspected(&args),
        None => served(args),
    }
}

fn served(args: ModelsArgs) -> Result<(), String> {
    let settings = args.settings.settings()?;
    for offer in offers(&settings)? {
        let Some(introduced) = offer.introduced()? else { continue };
        let info = introduced.info;
        if args.json {
            say(serde_json::to_string(&info).map_err(|error| error.to_string())?)?;
            continue;
        }
        let defaults = &info.defaults;
        say(format!("{}  ({})", info.id, info.family))?;
        say(format!("  {}", info.description))?;
        say(format!("  sizes: multiples of {} from {} to {}", info.size_multiple, info.min_side, info.max_side))?;
        say(format!(
            "  defaults: {}x{}, {} steps, guidance {}, {}",
            defaults.width, defaults.height, defaults.steps, defaults.guidance_scale, defaults.sampler
        ))?;
        let names: Vec<&str> = info.samplers.iter().map(|sampler| sampler.name()).collect();
        say(format!("  samplers: {}", names.join(", ")))?;
    }
    Ok(())
}

fn inspected(args: &InspectArgs) -> Result<(), String> {
    let found = inspect(&args.path, !args.no_hashes).map_err(|error| error.to_string())?;
    if args.json {
        return say(serde_json::to_string(&found).map_err(|error| error.to_string())?);
    }
    say(format!("{}: {}", found.path.display(), found.what))?;
    for line in facts(&found) {
        say(format!("  {line}"))?;
    }
    say(format!("\n  {:<16} {:>8} {:>12} {:>10}  stored as", "component", "tensors", "parameters", "size"))?;
    for component in &found.components {
        say(format!("  {}", row(component)))?;
    }
    for file in &found.files {
        say("")?;
        for line in file_lines(file) {
            say(format!("  {line}"))?;
        }
    }
    if !found.metadata.is_empty() {
        say("\n  metadata")?;
        for (key, value) in &found.metadata {
            say(format!("    {}: {}", one_line(key), one_line(value)))?;
        }
    }
    Ok(())
}

fn facts(found: &Inspection) -> Vec<String> {
    let mut lines = Vec::new();
    if let (Some(kind), Some(because)) = (&found.prediction_type, found.prediction_because) {
        lines.push(format!("predicts {kind}: {because}"));
    }
    if let Some(channels) = found.in_channels {
        let kind = if channels == 9 { " (inpainting)" } else { "" };
        lines.push(format!("the UNet takes {channels} channels{kind}"));
    }
    lines.extend(found.pipeline.as_ref().map(|class| format!("pipeline {class}")));
    lines
}

fn row(component: &ComponentReport) -> String {
    let dtypes: Vec<String> = component.dtypes.keys().map(|dtype| format!("{dtype:?}")).collect();
    format!(
        "{:<16} {:>8} {:>12} {:>10}  {}",
        one_line(&component.name),
        component.tensors,
        counted(component.parameters),
        sized(component.bytes),
        dtypes.join(", ")
    )
}

fn file_lines(file: &FileReport) -> Vec<String> {
    let mut lines = vec![format!("{}  {}", file.path.display(), sized(file.size_bytes))];
    if let Some(hashes) = &file.hashes {
        lines.push(format!("  SHA-256     {}", hashes.sha256));
        lines.push(format!("  AutoV2      {}", hashes.auto_v2));
        lines.push(format!("  AutoV3      {}", hashes.auto_v3));
        lines.push(format!("  short hash  {}", hashes.short));
    }
    lines
}

/// Text from a file, fit for a terminal.
fn one_line(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match plain.char_indices().nth(160) {
        Some((end, _)) => format!("{}...", &plain[..end]),
        None => plain,
    }
}

fn counted(number: u64) -> String {
    match number {
        0..10_000 => number.to_string(),
        10_000..10_000_000 => format!("{:.1} k", number as f64 / 1e3),
        _ => format!("{:.1} M", number as f64 / 1e6),
    }
}

fn sized(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes} B"),
        10_240..10_485_760 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}
