//! `darkroom bench engine`: the stages of a picture in this process, for comparison with other engines.

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::app::{Seams, engine_options, model_source};
use crate::cli::generate::validated;
use crate::cli::{ServeArgs, say};
use crate::diffusion::engine::{EngineOptions, Stages};
use crate::diffusion::pipelines;
use crate::domain::{DeviceSpec, DtypeSpec, GenerationRequest, ModelInfo, RequestDraft};

/// Flags of `bench engine`.
#[derive(Debug, Args)]
pub(super) struct EngineArgs {
    /// A built-in model, a described one's id, a diffusers folder or a checkpoint in one safetensors file.
    #[arg(long, default_value = "pinhole")]
    model: String,
    /// cpu, cuda:0, ...
    #[arg(long, default_value = "cpu")]
    device: DeviceSpec,
    /// What the denoising network computes in: auto, f32, f16 or bf16. auto: f32 on cpu, f16 on cuda:N.
    #[arg(long, default_value_t)]
    dtype: DtypeSpec,
    /// What to measure; several with commas.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Stage::Text, Stage::Unet, Stage::Vae, Stage::Picture])]
    stages: Vec<Stage>,
    /// Rows of the network evaluations; several with commas.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16], value_parser = clap::value_parser!(u16).range(1..=512))]
    rows: Vec<u16>,
    /// Pictures decoded and drawn together; several with commas.
    #[arg(long, value_delimiter = ',', default_values_t = [1], value_parser = clap::value_parser!(u16).range(1..))]
    pictures: Vec<u16>,
    /// What the picture shows.
    #[arg(long, default_value = "a red house in the snow at night")]
    prompt: String,
    /// In pixels.
    #[arg(long, allow_negative_numbers = true)]
    width: Option<i64>,
    /// In pixels.
    #[arg(long, allow_negative_numbers = true)]
    height: Option<i64>,
    /// Steps of the whole picture.
    #[arg(long, allow_negative_numbers = true)]
    steps: Option<i64>,
    /// ddpm, ddim, pndm, euler, euler_a, heun, dpm2, dpm2_a, lms, dpm_solver, dpmpp_2s_a,
    /// dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_sde, unipc, deis, lcm, tcd.
    #[arg(long)]
    sampler: Option<String>,
    /// Classifier-free guidance; 1 or less: none.
    #[arg(long, allow_negative_numbers = true)]
    guidance_scale: Option<f64>,
    /// How often each is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repeats: u32,
    /// How often each is run before.
    #[arg(long, default_value_t = 1)]
    warmup: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// One prompt through the text encoder.
    Text,
    /// One network evaluation, for each of `--rows`.
    Unet,
    /// Decoding, one picture after the other, for each of `--pictures`.
    Vae,
    /// Whole pictures of one request, from its prompt to their pixels, for each of `--pictures`.
    Picture,
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    device: String,
    /// What the network computed in: f32, f16 or bf16.
    dtype: &'static str,
    width: u32,
    height: u32,
    steps: u32,
    sampler: &'static str,
    guidance_scale: f64,
    stages: Vec<Measured>,
    /// Most memory this process has held so far (`VmHWM`); absent where the system does not tell.
    peak_memory_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Measured {
    stage: &'static str,
    /// Of a network evaluation.
    rows: Option<u16>,
    /// Of decoding and drawing.
    pictures: Option<u16>,
    /// Each repeat, in milliseconds, in order.
    ms: Vec<f64>,
}

pub(super) fn bench(args: EngineArgs) -> Result<(), String> {
    let settings = ServeArgs::default().settings()?;
    let mut source = model_source(&settings, &args.model).map_err(|error| format!("--model: {error}"))?;
    source.dtype = args.dtype;
    let pipeline = pipelines::load(&source, args.device).map_err(|error| error.to_string())?;
    let requests: Vec<GenerationRequest> = args
        .pictures
        .iter()
        .map(|pictures| validated(args.draft(*pictures), std::slice::from_ref(pipeline.info()), &settings.limits))
        .collect::<Result<_, _>>()?;
    let options = EngineOptions { preview_every: 0, ..engine_options(&settings, Seams::default()) };
    let mut report = Report::new(pipeline.info(), &args, &requests[0]);
    let prepare = |request| Stages::prepare(Arc::clone(&pipeline), request).map_err(|error| error.to_string());
    let prepared: Vec<Stages> = requests.into_iter().map(prepare).collect::<Result<_, _>>()?;
    for stage in &args.stages {
        report.stages.extend(args.measure(*stage, &prepared, &options)?);
    }
    report.peak_memory_bytes = peak_memory_bytes();
    if args.json {
        return say(serde_json::to_string(&report).map_err(|error| error.to_string())?);
    }
    say(report.table())
}

impl EngineArgs {
    /// A request of so many pictures.
    fn draft(&self, pictures: u16) -> RequestDraft {
        RequestDraft {
            prompt: Some(self.prompt.clone()),
            width: self.width,
            height: self.height,
            steps: self.steps,
            sampler: self.sampler.clone(),
            guidance_scale: self.guidance_scale,
            seed: Some(1),
            num_images: Some(pictures.into()),
            ..RequestDraft::default()
        }
    }

    /// One stage at every size asked for; `prepared` has one for each of `--pictures`.
    fn measure(&self, stage: Stage, prepared: &[Stages], options: &EngineOptions) -> Result<Vec<Measured>, String> {
        let first = &prepared[0];
        let each_rows = self.rows.iter();
        let each_pictures = self.pictures.iter().zip(prepared);
        let picture = |stages: &Stages| stages.picture(options).map_err(|(code, message)| format!("{code}: {message}"));
        match stage {
            Stage::Text => {
                let ms = self.repeat(|| plain(first.text_encoder()))?;
                Ok(vec![Measured { stage: "text", rows: None, pictures: None, ms }])
            }
            Stage::Unet => each_rows
                .map(|rows| {
                    let ms = self.repeat(|| plain(first.denoise(usize::from(*rows))))?;
                    Ok(Measured { stage: "unet", rows: Some(*rows), pictures: None, ms })
                })
                .collect(),
            Stage::Vae => each_pictures
                .map(|(pictures, stages)| {
                    let ms = self.repeat(|| plain(stages.decode()))?;
                    Ok(Measured { stage: "vae", rows: None, pictures: Some(*pictures), ms })
                })
                .collect(),
            Stage::Picture => each_pictures
                .map(|(pictures, stages)| {
                    let ms = self.repeat(|| picture(stages))?;
                    Ok(Measured { stage: "picture", rows: None, pictures: Some(*pictures), ms })
                })
                .collect(),
        }
    }

    /// What each run took after the warm-up, in milliseconds.
    fn repeat(&self, work: impl Fn() -> Result<Duration, String>) -> Result<Vec<f64>, String> {
        for _ in 0..self.warmup {
            work()?;
        }
        (0..self.repeats).map(|_| work().map(|took| took.as_secs_f64() * 1e3)).collect()
    }
}

fn plain(timed: pipelines::Result<Duration>) -> Result<Duration, String> {
    timed.map_err(|error| error.to_string())
}

/// The most memory this process has held; Linux tells.
fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

impl Report {
    fn new(model: &ModelInfo, args: &EngineArgs, request: &GenerationRequest) -> Self {
        Self {
            model: model.id.to_string(),
            device: args.device.to_string(),
            dtype: args.dtype.on(args.device).name(),
            width: request.width(),
            height: request.height(),
            steps: request.steps(),
            sampler: request.sampler().name(),
            guidance_scale: request.guidance_scale(),
            stages: Vec::new(),
            peak_memory_bytes: None,
        }
    }

    fn table(&self) -> String {
        let Self { model, device, dtype, width, height, steps, sampler, guidance_scale, .. } = self;
        let mut lines = vec![
            format!(
                "{model} on {device} in {dtype}, {width}x{height}, {steps} steps of {sampler}, guidance {guidance_scale}"
            ),
            format!("{:<20}{:>10}{:>10}{:>10}", "milliseconds", "min", "median", "max"),
        ];
        for Measured { stage, rows, pictures, ms } in &self.stages {
            let mut sorted = ms.clone();
            sorted.sort_by(f64::total_cmp);
            let name = match (rows, pictures) {
                (Some(rows), _) => format!("{stage}, {rows} rows"),
                (None, Some(pictures)) if *pictures > 1 => format!("{stage}, {pictures} pictures"),
                _ => (*stage).to_owned(),
            };
            let [min, median, max] = [sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1]];
            lines.push(format!("{name:<20}{min:>10.2}{median:>10.2}{max:>10.2}"));
        }
        if let Some(bytes) = self.peak_memory_bytes {
            lines.push(format!("peak memory {:.1} MiB", bytes as f64 / f64::from(1 << 20)));
        }
        lines.join("\n")
    }
}
