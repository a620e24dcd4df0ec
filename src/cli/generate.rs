//! `darkroom generate`

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::controls::Controls;
use super::loras::{self, NamedLoras};
use super::pictures::Pictures;
use super::{ServeArgs, say};
use crate::app::{Seams, engine_options, model_source};
use crate::diffusion::engine::{Drawing, EngineEvent, draw_with};
use crate::diffusion::pipelines;
use crate::domain::{
    DeviceSpec, DtypeSpec, FieldError, GenerationRequest, HiresDraft, ImageFormat, Limits, ModelInfo, RefinerDraft,
    RequestDraft, SizeConditioningDraft,
};
use crate::images;
use crate::service::{LoraShelf, hash_loras};

/// Flags of `generate`; the same names, ranges and defaults as the API's fields.
#[derive(Debug, Args)]
pub(super) struct GenerateArgs {
    /// A TOML file of settings, for its limits and models; config/default.toml lists them all.
    #[arg(long, env = "DARKROOM_CONFIG")]
    config: Option<PathBuf>,
    /// A built-in model, a described one's id, a diffusers folder or a checkpoint in one safetensors file.
    #[arg(long, default_value = "pinhole")]
    model: String,
    /// What to draw.
    #[arg(long)]
    prompt: String,
    /// What to keep away from.
    #[arg(long)]
    negative_prompt: Option<String>,
    /// plain, or a1111: weights as in `(word:1.2)` and `[word]`, BREAK, prompts of any length.
    #[arg(long)]
    prompt_syntax: Option<String>,
    /// Last layers of the text encoder to leave out; A1111's "Clip skip: 2" is 1 here.
    #[arg(long, allow_negative_numbers = true)]
    clip_skip: Option<i64>,
    /// In pixels.
    #[arg(long, allow_negative_numbers = true)]
    width: Option<i64>,
    /// In pixels.
    #[arg(long, allow_negative_numbers = true)]
    height: Option<i64>,
    /// A LoRA of the folder models.loras, or a file of one, as NAME or NAME:SCALE; may be given several times.
    #[arg(long = "lora", value_name = "NAME[:SCALE]")]
    loras: Vec<String>,
    #[command(flatten)]
    sizes: Sizes,
    #[command(flatten)]
    pictures: Pictures,
    #[command(flatten)]
    controls: Controls,
    /// A second pass over the picture, so many times wider and higher.
    #[arg(long, allow_negative_numbers = true)]
    hires_scale: Option<f64>,
    /// How it is enlarged: latent or lanczos.
    #[arg(long, requires = "hires_scale")]
    hires_upscaler: Option<String>,
    /// How much of it is drawn anew, 0 to 1.
    #[arg(long, requires = "hires_scale", allow_negative_numbers = true)]
    hires_strength: Option<f64>,
    /// Sampler steps of the second pass.
    #[arg(long, requires = "hires_scale", allow_negative_numbers = true)]
    hires_steps: Option<i64>,
    /// A model that goes on with the latents, as Stable Diffusion XL's refiner; named as --model is.
    #[arg(long, value_name = "MODEL")]
    refiner_model: Option<String>,
    /// Share of the training schedule at which it takes over, between 0 and 1; 0.8 when absent.
    #[arg(long, requires = "refiner_model", allow_negative_numbers = true)]
    refiner_switch_at: Option<f64>,
    /// Sampler steps that its noise levels are made of.
    #[arg(long, requires = "refiner_model", allow_negative_numbers = true)]
    refiner_steps: Option<i64>,
    /// Share of the training schedule at which the run begins, with --init-image as it is.
    #[arg(long, allow_negative_numbers = true)]
    denoising_start: Option<f64>,
    /// Share of the training schedule at which the run ends.
    #[arg(long, allow_negative_numbers = true)]
    denoising_end: Option<f64>,
    /// Sampler steps.
    #[arg(long, allow_negative_numbers = true)]
    steps: Option<i64>,
    /// ddpm, ddim, pndm, euler, euler_a, heun, dpm2, dpm2_a, lms, dpm_solver, dpmpp_2s_a,
    /// dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_sde, unipc, deis, lcm, tcd.
    #[arg(long)]
    sampler: Option<String>,
    /// default, karras, exponential, beta, simple, sgm_uniform, ddim_uniform, kl_optimal, linear_quadratic,
    /// align_your_steps.
    #[arg(long)]
    sigma_schedule: Option<String>,
    /// Classifier-free guidance; 1 or less: none.
    #[arg(long, allow_negative_numbers = true)]
    guidance_scale: Option<f64>,
    /// How far guidance's widening of the output is taken back, 0 to 1.
    #[arg(long, allow_negative_numbers = true)]
    guidance_rescale: Option<f64>,
    /// Share of the steps before guidance begins, 0 to 1.
    #[arg(long, allow_negative_numbers = true)]
    guidance_start: Option<f64>,
    /// Share of the steps after which guidance ends, 0 to 1.
    #[arg(long, allow_negative_numbers = true)]
    guidance_end: Option<f64>,
    /// Share of fresh noise of ddim and tcd, 0 to 1.
    #[arg(long, allow_negative_numbers = true)]
    eta: Option<f64>,
    /// 0 to 2^63-1; drawn when absent. Picture i uses seed + i.
    #[arg(long, allow_negative_numbers = true)]
    seed: Option<i128>,
    /// What a seed means: torch-cpu or torch-cuda.
    #[arg(long)]
    noise: Option<String>,
    /// Pictures to draw.
    #[arg(long, allow_negative_numbers = true)]
    num_images: Option<i64>,
    /// 1 to 100, for .jpg and .webp.
    #[arg(long, allow_negative_numbers = true)]
    quality: Option<i64>,
    /// cpu, cuda:0, ...
    #[arg(long, default_value = "cpu")]
    device: DeviceSpec,
    /// What the denoising network computes in: auto, f32, f16 or bf16. auto: f32 on cpu, f16 on cuda:N.
    #[arg(long, default_value_t)]
    dtype: DtypeSpec,
    /// The file; .png, .jpg, .jpeg or .webp. Several pictures: out-0.png, out-1.png, ...
    #[arg(short, long, default_value = "out.png")]
    output: PathBuf,
}

/// What a model of the family Stable Diffusion XL is told of sizes; the requested size when absent.
#[derive(Debug, Args)]
struct Sizes {
    /// Stable Diffusion XL: the picture looks like one that was so wide originally.
    #[arg(long, allow_negative_numbers = true)]
    original_width: Option<i64>,
    /// Stable Diffusion XL: and so high.
    #[arg(long, allow_negative_numbers = true)]
    original_height: Option<i64>,
    /// Stable Diffusion XL: pixels that look cut off at the left; 0 when absent.
    #[arg(long, allow_negative_numbers = true)]
    crop_left: Option<i64>,
    /// Stable Diffusion XL: and at the top.
    #[arg(long, allow_negative_numbers = true)]
    crop_top: Option<i64>,
    /// Stable Diffusion XL: the picture looks like one that was scaled to this width.
    #[arg(long, allow_negative_numbers = true)]
    target_width: Option<i64>,
    /// Stable Diffusion XL: and this height.
    #[arg(long, allow_negative_numbers = true)]
    target_height: Option<i64>,
}

impl Sizes {
    fn draft(&self) -> Option<SizeConditioningDraft> {
        let draft = SizeConditioningDraft {
            original_width: self.original_width,
            original_height: self.original_height,
            crop_left: self.crop_left,
            crop_top: self.crop_top,
            target_width: self.target_width,
            target_height: self.target_height,
        };
        (draft != SizeConditioningDraft::default()).then_some(draft)
    }
}

pub(super) fn generate(args: GenerateArgs) -> Result<(), String> {
    let settings = ServeArgs { config: args.config.clone(), ..ServeArgs::default() }.settings()?;
    let format = format_of(&args.output)?;
    let NamedLoras { drafts, shelf } = loras::read(&args.loras, &settings)?;
    let load = |flag: &str, name: &str| {
        let mut source = model_source(&settings, name).map_err(|error| format!("{flag}: {error}"))?;
        (source.loras, source.dtype) = (shelf.0.clone(), args.dtype);
        pipelines::load(&source, args.device).map_err(|error| error.to_string())
    };
    let mut models = vec![load("--model", &args.model)?];
    // The same model may go on by itself.
    if let Some(refiner) = args.refiner_model.as_ref().filter(|refiner| **refiner != args.model) {
        models.push(load("--refiner-model", refiner)?);
        if models[0].info().id == models[1].info().id {
            return Err(format!("--refiner-model: `{refiner}` has the same name as the model; describe one of them"));
        }
    }
    let served: Vec<ModelInfo> = models.iter().map(|model| model.info().clone()).collect();
    let refiner = served.last().map(|info| info.id.to_string());
    let output = args.output.clone();
    let pictures = args.pictures.read(&settings)?;
    let controls = args.controls.read(&settings)?;
    let inputs = args.pictures.draft(&pictures);
    let mut draft =
        RequestDraft { image_inputs: inputs, controls: controls.drafts(), loras: drafts, ..draft(args, format) };
    if let Some(draft) = draft.refiner.as_mut() {
        draft.model = refiner;
    }
    let names = shelf.list().into_iter().map(|lora| lora.name).collect();
    let limits = Limits { loras: names, ..settings.limits.clone() };
    let mut request = validated(draft, &served, &limits)?;
    hash_loras(&shelf, &mut request).map_err(|faults| told(&faults))?;
    let canvas = pictures.canvas(&request);
    let controls = controls.pictures(&request, canvas.as_deref());

    let bar = progress_bar(&request);
    let (shown, known) = (bar.clone(), Arc::new(OnceLock::new()));
    let drawn_by = known.clone();
    let watch = move |event: &EngineEvent| match event {
        EngineEvent::Progress { .. } => shown.inc(1),
        EngineEvent::Started { warnings, drawn_by, .. } => {
            warnings.iter().for_each(|warning| shown.println(format!("warning: {warning}")));
            known.get_or_init(|| drawn_by.clone());
        }
        _ => {}
    };
    let options = engine_options(&settings, Seams::default());
    let pictures = draw_with(models, Drawing { request: request.clone(), canvas, controls }, options, watch)
        .map_err(|(code, message)| format!("{code}: {message}"))?;
    bar.finish_and_clear();

    let drawn_by = drawn_by.get().cloned().unwrap_or_default();
    for (index, picture) in pictures.iter().enumerate() {
        let path = if pictures.len() == 1 { output.clone() } else { numbered(&output, index) };
        let info = images::describe(&request, index as u32, &drawn_by);
        let bytes = images::encode(picture, request.output(), Some(&info)).map_err(|error| error.to_string())?;
        std::fs::write(&path, bytes).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        say(format!("{}  seed {}", path.display(), request.image_seed(index as u32)))?;
    }
    Ok(())
}

fn draft(args: GenerateArgs, format: ImageFormat) -> RequestDraft {
    RequestDraft {
        prompt: Some(args.prompt),
        negative_prompt: args.negative_prompt,
        prompt_syntax: args.prompt_syntax,
        clip_skip: args.clip_skip,
        width: args.width,
        height: args.height,
        size_conditioning: args.sizes.draft(),
        hires: args.hires_scale.map(|scale| HiresDraft {
            scale: Some(scale),
            upscaler: args.hires_upscaler,
            strength: args.hires_strength,
            steps: args.hires_steps,
        }),
        refiner: args.refiner_model.map(|model| RefinerDraft {
            model: Some(model),
            switch_at: args.refiner_switch_at,
            steps: args.refiner_steps,
        }),
        denoising_start: args.denoising_start,
        denoising_end: args.denoising_end,
        steps: args.steps,
        guidance_scale: args.guidance_scale,
        guidance_rescale: args.guidance_rescale,
        guidance_start: args.guidance_start,
        guidance_end: args.guidance_end,
        sampler: args.sampler,
        sigma_schedule: args.sigma_schedule,
        eta: args.eta,
        seed: args.seed,
        noise: args.noise,
        num_images: args.num_images,
        output_format: Some(format.name().to_owned()),
        output_quality: args.quality,
        ..RequestDraft::default()
    }
}

/// Checks a draft as the server of these models would, the first of which draws; every fault at once, by the names of the flags.
pub(super) fn validated(
    draft: RequestDraft,
    served: &[ModelInfo],
    limits: &Limits,
) -> Result<GenerationRequest, String> {
    let drawn = uuid::Uuid::new_v4().as_u64_pair().1;
    draft.validate_among(&served[0], served, limits, drawn).map_err(|faults| told(&faults))
}

fn told(faults: &[FieldError]) -> String {
    let flag = |fault: &FieldError| {
        let name = fault.field.trim_start_matches("output.").trim_start_matches("size_conditioning.");
        let list = [("loras", "lora"), ("controls", "control")].into_iter().find(|(list, _)| name.starts_with(list));
        list.map_or_else(|| name.replace(['_', '.'], "-"), |(_, flag)| flag.to_owned())
    };
    let each: Vec<String> =
        faults.iter().map(|fault| format!("  --{} {}: {}", flag(fault), fault.value, fault.message)).collect();
    format!("the request is not valid:\n{}", each.join("\n"))
}

fn format_of(path: &Path) -> Result<ImageFormat, String> {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase()).unwrap_or_default();
    match extension.as_str() {
        "png" => Ok(ImageFormat::Png),
        "jpg" | "jpeg" => Ok(ImageFormat::Jpeg),
        "webp" => Ok(ImageFormat::Webp),
        _ => Err(format!("--output {}: its ending must be .png, .jpg, .jpeg or .webp", path.display())),
    }
}

fn numbered(path: &Path, index: usize) -> PathBuf {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let extension = path.extension().map(|extension| extension.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!("{stem}-{index}.{extension}"))
}

fn progress_bar(request: &GenerationRequest) -> ProgressBar {
    let bar = ProgressBar::new(u64::from(request.steps_taken()) * u64::from(request.num_images()));
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} steps, {eta} left") {
        bar.set_style(style);
    }
    bar
}
