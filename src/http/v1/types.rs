//! The JSON of `/v1`.

use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::domain::{Artifact, ImageProgress, JobStatus};
use crate::service::JobView;

/// What a client sends to have pictures drawn. Only `prompt` is required; unknown fields are refused.
#[derive(ToSchema)]
#[schema(example = json!({"prompt": "a red house in the snow at night", "seed": 7, "num_images": 2}))]
#[expect(
    dead_code,
    reason = "it describes what `body::parse` reads field by field, so that all faults are told at once"
)]
pub(in crate::http) struct CreateJobBody {
    /// A model's id; the server's first model when absent.
    model: Option<String>,
    /// What to draw.
    prompt: String,
    /// What to keep away from; has an effect when `guidance_scale` is above 1.
    negative_prompt: Option<String>,
    /// `plain`: both prompts are read as they stand, and cut where the text encoder has no more room. `a1111`: as A1111 reads
    /// them, `(word:1.2)`, `(word)` and `[word]` being weights, `\\(` a bracket, `BREAK` the end of a window of 75 tokens; a
    /// prompt takes as many windows as it needs. The model's default when absent.
    prompt_syntax: Option<String>,
    /// Last layers of the text encoder to leave out, as diffusers counts: 0 none, up to the model's `max_clip_skip`. A1111's
    /// "Clip skip: 2" is 1 here. With `plain` it concerns the prompt alone, as in diffusers; with `a1111` both prompts.
    clip_skip: Option<u32>,
    /// LoRAs that change the networks for this job, added in this order; at most `limits.max_loras`. With `prompt_syntax` `a1111` the
    /// prompt may name some too, as `<lora:NAME:SCALE>`.
    loras: Option<Vec<LoraBody>>,
    /// In pixels; a multiple of the model's `size_multiple`.
    width: Option<u32>,
    /// In pixels; a multiple of the model's `size_multiple`.
    height: Option<u32>,
    /// What a model of the family Stable Diffusion XL is told of sizes; refused by the others.
    size_conditioning: Option<SizeConditioningBody>,
    /// A picture to start from (image to image). `width` and `height` follow from it where they are not said.
    init_image: Option<PictureBody>,
    /// How much of `init_image` is drawn anew, 0 to 1: of the steps, so many are taken. 0.8 when absent, 1 with a mask.
    strength: Option<f64>,
    /// Where `init_image` is drawn anew (inpainting): white, and kept where it is black.
    mask_image: Option<PictureBody>,
    /// Gaussian blur of the mask before it is used, in its pixels, 0 to 256; 0 when absent.
    mask_blur: Option<f64>,
    /// Draw anew where the mask is black instead; false when absent.
    invert_mask: Option<bool>,
    /// Lay what is kept over what was drawn, so that it stays to the byte; false when absent: it went through the
    /// autoencoder once. Always so with `only_masked`.
    preserve_unmasked: Option<bool>,
    /// `whole`: the whole picture is drawn, at `width` and `height`. `only_masked`: what surrounds the mask is drawn at that
    /// size, and put back at its own; the picture keeps the size of `init_image`. `whole` when absent.
    inpaint_area: Option<String>,
    /// Pixels around the mask with `only_masked`, 0 to 4096; 32 when absent.
    only_masked_padding: Option<u32>,
    /// Pictures that control what is drawn, each through a ControlNet; what several say is added up. At most as many as the
    /// server allows, 4 by default; none when absent.
    controls: Option<Vec<ControlBody>>,
    /// A second pass over the picture, enlarged ("hires fix"). None when absent.
    hires: Option<HiresBody>,
    /// A second model that goes on with the latents before they are a picture. None when absent.
    refiner: Option<RefinerBody>,
    /// Share of the training schedule, between 0 and 1, at which the run begins: `init_image`, as it is, counts as latents with
    /// the noise of that place. In the place of `strength`.
    denoising_start: Option<f64>,
    /// Share of the training schedule at which the run ends; the rest of the noise stays in the picture.
    denoising_end: Option<f64>,
    /// Sampler steps.
    steps: Option<u32>,
    /// Classifier-free guidance, 0 to 100; 1 or less: none.
    guidance_scale: Option<f64>,
    /// Guidance widens the spread of the network's output; this takes that back, 0 (not at all) to 1 (wholly). For models
    /// trained with zero terminal SNR (Lin et al. 2023, who use 0.7).
    guidance_rescale: Option<f64>,
    /// Share of the steps before guidance begins, 0 to 1; 0 when absent. Steps without guidance take half the time
    /// (Kynkäänniemi et al. 2024).
    guidance_start: Option<f64>,
    /// Share of the steps after which guidance ends, 0 to 1; 1 when absent.
    guidance_end: Option<f64>,
    /// The sampler: a name of `GET /v1/samplers`, diffusers' class or A1111's label of it.
    sampler: Option<String>,
    /// Which noise levels it visits: `default`, `karras` or another name of `GET /v1/samplers`.
    sigma_schedule: Option<String>,
    /// Share of fresh noise of `ddim` and `tcd`, 0 to 1; the others ignore it.
    eta: Option<f64>,
    /// 0 to 2^63-1; drawn and reported when absent. The same seed gives the same picture.
    seed: Option<u64>,
    /// What a seed means: `torch-cpu`, the numbers of PyTorch's CPU generator, or `torch-cuda`, those of its CUDA generator on
    /// a large NVIDIA GPU. The model's default when absent.
    noise: Option<String>,
    /// Pictures to draw; picture i uses seed + i.
    num_images: Option<u32>,
    /// How the pictures are encoded.
    output: Option<OutputBody>,
    /// `interactive`, `normal` or `bulk`.
    priority: Option<String>,
    /// Seconds from now within which it must be started: a job that still waits then fails with the code `expired` and is never
    /// drawn. 1 to 604800 (the server's limit); no such limit when absent.
    start_within: Option<u32>,
    /// Seconds from now within which it must have ended: a job that still waits or runs then fails with the code `expired`; one
    /// that runs leaves its batch at the next step. Not below `start_within`.
    expires_in: Option<u32>,
    /// Whether an identical request's pictures will do, where there are some or they are being drawn: one of the same key that
    /// agrees in all that decides the pictures, and has a `seed` that was chosen and no `controls`. `priority`, `start_within`, `expires_in` and `metadata` may
    /// differ. The job is its own, and so are its pictures, which are the same to the byte. True when absent.
    reuse: Option<bool>,
    /// Your own words, handed back as they came.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Map<String, Value>>,
}

/// A picture that a request gives: a file, or one that is stored here. Nothing is fetched from elsewhere.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "see CreateJobBody")]
pub(in crate::http) enum PictureBody {
    /// A PNG, JPEG or WebP file as base64, or as a `data:` URL of it.
    File(String),
    /// A picture that a job drew.
    Drawn {
        /// The job's id.
        job: String,
        /// Which of its pictures, from 0.
        image: u32,
    },
    /// A picture that came with a job's request, as that job's `request` names it.
    Sent {
        /// The job's id.
        job: String,
        /// `init_image`, `mask_image`, or `control_0` for the first control's, and so on.
        input: String,
        /// Lower-case hex, of the file; checked where it is given.
        sha256: Option<String>,
        /// In pixels; told, not read.
        width: Option<u32>,
        /// In pixels; told, not read.
        height: Option<u32>,
    },
}

/// The fields of `CreateJobBody` as the parts of a form; numbers, objects and truths as JSON has them.
#[derive(ToSchema)]
#[expect(dead_code, reason = "see CreateJobBody")]
pub(in crate::http) struct CreateJobForm {
    /// Any other fields, as one JSON object.
    request: Option<String>,
    /// What to draw; and so on, each field of the object a part.
    prompt: Option<String>,
    /// A PNG, JPEG or WebP file.
    #[schema(value_type = Option<String>, format = Binary)]
    init_image: Option<Vec<u8>>,
    /// How much of it is drawn anew, 0 to 1.
    strength: Option<f64>,
    /// A PNG, JPEG or WebP file.
    #[schema(value_type = Option<String>, format = Binary)]
    mask_image: Option<Vec<u8>>,
    /// A PNG, JPEG or WebP file: the first control's `image`; and so on.
    #[serde(rename = "controls[0].image")]
    #[schema(value_type = Option<String>, format = Binary)]
    control_image: Option<Vec<u8>>,
}

/// A picture that controls what is drawn. It is shown to the ControlNet as it is: edges, depths or poses that it was trained
/// with must be in it.
#[derive(ToSchema)]
#[expect(dead_code, reason = "see CreateJobBody")]
pub(in crate::http) struct ControlBody {
    /// A ControlNet's name: one of the model's `controlnets` in `GET /v1/models` that has no `misfit`.
    model: String,
    /// What it is shown, stretched to `width` and `height`; in a second pass (`hires`), to the size of that. With
    /// `inpaint_area` `only_masked` it belongs to the whole of `init_image`, and the same part of it is shown.
    image: PictureBody,
    /// How much of what it says is added, 0 to 10; 1 when absent.
    scale: Option<f64>,
    /// Share of the steps before the first that it controls, 0 to 1; 0 when absent.
    start: Option<f64>,
    /// Share of the steps up to the last that it controls, 0 to 1; 1 when absent.
    end: Option<f64>,
}

/// The picture looks like a training picture of the original size, scaled to the target size, of which it shows what
/// begins at the crop. All in pixels, up to 65535; what is absent is the requested size, and a crop of 0.
#[derive(ToSchema)]
#[expect(dead_code, reason = "see CreateJobBody")]
pub(in crate::http) struct SizeConditioningBody {
    /// Small values draw pictures that look enlarged.
    original_width: Option<u32>,
    original_height: Option<u32>,
    /// 0 draws centred subjects.
    crop_left: Option<u32>,
    crop_top: Option<u32>,
    target_width: Option<u32>,
    target_height: Option<u32>,
}

/// The picture is drawn at `width` and `height`, enlarged, and drawn anew in part.
#[derive(ToSchema)]
#[expect(dead_code, reason = "see CreateJobBody")]
pub(in crate::http) struct HiresBody {
    /// How many times wider and higher, 1 to 4, to the nearest multiple of the model's; 2 when absent.
    scale: Option<f64>,
    /// `latent`: the latents are enlarged, bilinearly. `lanczos`: the picture is. `latent` when absent.
    upscaler: Option<String>,
    /// How much of it is drawn anew, 0 to 1; 0.7 when absent.
    strength: Option<f64>,
    /// Sampler steps, of which `strength` leaves some out; as many as the first pass when absent.
    steps: Option<u32>,
}

/// Two models share the noise levels: `model` of the request draws the first ones, this one goes on where it stops, with the
/// same prompts read by its own text encoders, and its autoencoder makes the picture. Both have latents of one kind
/// (`latents` of `GET /v1/models`), as Stable Diffusion XL's base and refiner have.
#[derive(ToSchema)]
#[expect(dead_code, reason = "see CreateJobBody")]
pub(in crate::http) struct RefinerBody {
    /// The model's id.
    model: String,
    /// Share of the training schedule at which it takes over, between 0 and 1; 0.8 when absent: at the timestep 200 of 1000.
    /// diffusers calls it `denoising_end` of the one and `denoising_start` of the other, A1111 "Switch at".
    switch_at: Option<f64>,
    /// Sampler steps that its noise levels are made of, of which it takes those after `switch_at`; the request's when absent.
    steps: Option<u32>,
}

/// A LoRA, LoCon, LoHa or LoKr.
#[derive(ToSchema)]
#[expect(dead_code, reason = "see CreateJobBody")]
pub(in crate::http) struct LoraBody {
    /// A name of `GET /v1/loras`.
    name: String,
    /// What it adds to the U-Net is multiplied by this, -10 to 10; 1 when absent.
    scale: Option<f64>,
    /// What it adds to the text encoders is, -10 to 10; `scale` when absent.
    text_encoder_scale: Option<f64>,
    /// The first 12 digits of the SHA-256 of its tensors' data ("AutoV3"); checked where it is given, told in answers.
    hash: Option<String>,
}

/// How pictures are encoded.
#[derive(ToSchema)]
#[expect(dead_code, reason = "see CreateJobBody")]
pub(in crate::http) struct OutputBody {
    /// `png`, `jpeg` or `webp`.
    format: Option<String>,
    /// 1 to 100; `jpeg` and `webp` only.
    quality: Option<u8>,
}

/// A job.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct JobBody {
    /// UUIDv7.
    id: String,
    /// `queued`, `running`, `succeeded`, `failed` or `cancelled`.
    status: &'static str,
    /// RFC 3339, as all times.
    created_at: String,
    started_at: Option<String>,
    ended_at: Option<String>,
    /// When the job and its pictures are removed.
    expires_at: Option<String>,
    /// Jobs before it, while it waits: 0 is next.
    queue_position: Option<u64>,
    /// When it will likely have ended, in milliseconds from now.
    eta_ms: Option<u64>,
    progress: ProgressBody,
    /// The request with every default resolved; can be sent again as it stands.
    #[schema(value_type = CreateJobBody)]
    request: Value,
    /// Stored pictures.
    images: Vec<ImageBody>,
    /// The job whose pictures these are copies of, that of an identical request; null where they were drawn for this one.
    reused_from: Option<String>,
    /// Where the time went, in milliseconds; set when it ended.
    timings: Option<Value>,
    /// How often a worker took it.
    attempts: u32,
    /// Somebody asked for its end; it leaves at the next step.
    cancel_requested: bool,
    /// Things to know, such as a prompt that was cut.
    warnings: Vec<String>,
    /// Why it failed: {code, message}.
    #[schema(value_type = Option<Object>)]
    error: Option<Value>,
    links: Links,
}

/// How far a job is.
#[derive(Serialize, ToSchema)]
struct ProgressBody {
    /// Steps taken, all pictures together.
    step: u64,
    /// Steps in all, all pictures together.
    steps: u64,
    /// By picture: {image, step, steps}.
    #[schema(value_type = Vec<Object>)]
    images: Vec<ImageProgress>,
}

/// A stored picture.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct ImageBody {
    index: u32,
    /// Where to fetch it; in another format by `Accept`.
    url: String,
    /// Draws this picture again, alone.
    seed: u64,
    width: u32,
    height: u32,
    /// As stored.
    content_type: &'static str,
    size_bytes: u64,
    /// Lower-case hex, of the file as stored.
    sha256: String,
}

/// Where things are.
#[derive(Serialize, ToSchema)]
struct Links {
    #[serde(rename = "self")]
    this: String,
    events: String,
    /// The first picture's.
    image: String,
}

/// Jobs, newest first.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct JobList {
    pub(in crate::http) jobs: Vec<JobBody>,
    /// Ask again with `cursor` set to this; null at the end.
    pub(super) next_cursor: Option<String>,
}

pub(super) fn image_body(job: &str, artifact: &Artifact) -> ImageBody {
    ImageBody {
        index: artifact.index,
        url: format!("/v1/jobs/{job}/images/{}", artifact.index),
        seed: artifact.seed,
        width: artifact.width,
        height: artifact.height,
        content_type: artifact.format.content_type(),
        size_bytes: artifact.size_bytes,
        sha256: artifact.sha256.clone(),
    }
}

impl From<JobView> for JobBody {
    fn from(view: JobView) -> Self {
        let JobView { job, queue_position, eta_ms, progress } = view;
        let id = job.id.to_string();
        let total = u64::from(job.request.steps_taken()) * u64::from(job.request.num_images());
        let request = job.request.to_body();
        Self {
            status: job.status.name(),
            created_at: job.created_at.to_string(),
            started_at: job.started_at.map(|at| at.to_string()),
            ended_at: job.ended_at.map(|at| at.to_string()),
            expires_at: job.expires_at.map(|at| at.to_string()),
            queue_position,
            eta_ms,
            progress: ProgressBody {
                step: match job.status {
                    JobStatus::Succeeded => total,
                    _ => progress.iter().map(|image| u64::from(image.step)).sum(),
                },
                steps: total,
                images: progress,
            },
            request,
            images: job.images.iter().map(|artifact| image_body(&id, artifact)).collect(),
            reused_from: job.reused_from.map(|from| from.to_string()),
            timings: job.timings.map(|timings| json!(timings)),
            attempts: job.attempts,
            cancel_requested: job.cancel_requested && !job.status.is_terminal(),
            warnings: job.warnings,
            error: job.error.map(|error| json!(error)),
            links: Links {
                this: format!("/v1/jobs/{id}"),
                events: format!("/v1/jobs/{id}/events"),
                image: format!("/v1/jobs/{id}/images/0"),
            },
            id,
        }
    }
}
