//! `darkroom models`

use clap::Args;

use super::{ServeArgs, say};
use crate::app::model_sources;
use crate::diffusion::pipelines;
use crate::domain::DeviceSpec;

/// Flags of `models`.
#[derive(Debug, Args)]
pub(super) struct ModelsArgs {
    #[command(flatten)]
    settings: ServeArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn models(args: ModelsArgs) -> Result<(), String> {
    let settings = args.settings.settings()?;
    for source in model_sources(&settings)? {
        let pipeline = pipelines::load(&source, DeviceSpec::Cpu).map_err(|error| error.to_string())?;
        let info = pipeline.info();
        if args.json {
            say(serde_json::to_string(info).map_err(|error| error.to_string())?)?;
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
