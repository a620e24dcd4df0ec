//! What a checkpoint says of its training and of how it wants to be sampled: `scheduler_config.json`.

use crate::domain::{SamplerKind, SigmaSchedule};

use super::betas::{self, BetaSchedule};
use super::keys::Keys;
use super::{Error, PredictionType, Result, TimestepSpacing};

/// More timesteps than any checkpoint has; keeps a broken file from asking for gigabytes.
const MOST_TIMESTEPS: usize = 100_000;

/// A checkpoint's noise levels and the options of its `scheduler_config.json`.
///
/// Options keep whether the file named them, because samplers differ in what they take for granted otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingSchedule {
    /// Share of signal left at each timestep; falls, and ends at exactly 0 with zero terminal SNR.
    pub(super) alphas_cumprod: Vec<f32>,
    pub(super) beta_schedule: BetaSchedule,
    pub(super) zero_terminal_snr: bool,
    pub(super) prediction_type: PredictionType,
    pub(super) timestep_spacing: Option<TimestepSpacing>,
    steps_offset: Option<usize>,
    clip_sample: Option<bool>,
    clip_sample_range: f64,
    pub(super) set_alpha_to_one: bool,
    pub(super) variance: Variance,
    pub(super) final_sigma: FinalSigma,
    pub(super) sigma_min: Option<f64>,
    pub(super) sigma_max: Option<f64>,
    use_karras_sigmas: bool,
    pub(super) multistep: Multistep,
    refusals: Vec<Refusal>,
}

/// How much noise a DDPM step adds: the posterior's variance, or the whole beta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variance {
    FixedSmall,
    FixedLarge,
}

/// The level after the last step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FinalSigma {
    Zero,
    SigmaMin,
}

/// Options of the multistep solver (diffusers `DPMSolverMultistepScheduler`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Multistep {
    /// 1 to 3.
    pub(super) order: usize,
    /// Adds noise each step (`sde-dpmsolver++`).
    pub(super) stochastic: bool,
    pub(super) correction: Correction,
    pub(super) lower_order_final: bool,
    pub(super) euler_at_final: bool,
    /// Levels with a smaller log signal-to-noise ratio are not visited.
    pub(super) lambda_min_clipped: f64,
}

/// How the second-order term is weighed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Correction {
    Midpoint,
    Heun,
}

/// A key one sampler's class reads and cannot be given here.
#[derive(Clone, Debug, PartialEq)]
struct Refusal {
    kind: SamplerKind,
    key: &'static str,
    value: String,
    supported: &'static str,
}

impl TrainingSchedule {
    /// Reads a `scheduler_config.json`, in JSON as Python writes it. Its `_class_name` and keys unknown here say nothing,
    /// as in diffusers.
    ///
    /// # Errors
    /// [`Error::Json`], or [`Error::Config`] with the key, its value and what is supported, when no sampler could
    /// honour it. A value that matters to some samplers only is kept until one of those is asked for.
    pub fn from_json(text: &str) -> Result<Self> {
        let keys = Keys::parse(text)?;
        refuse_other_families(&keys)?;
        let num_train_timesteps = keys.count("num_train_timesteps", MOST_TIMESTEPS)?.unwrap_or(1000);
        if num_train_timesteps == 0 {
            return Err(keys.fault("num_train_timesteps", &format!("1 to {MOST_TIMESTEPS}")));
        }
        let beta_schedule = keys.word("beta_schedule", BETA_SCHEDULES)?.unwrap_or(BetaSchedule::Linear);
        let zero_terminal_snr = keys.flag("rescale_betas_zero_snr")?.unwrap_or(false);
        let positive = |number: f64| number > 0.0;
        Ok(Self {
            alphas_cumprod: alphas_cumprod(&keys, beta_schedule, num_train_timesteps, zero_terminal_snr)?,
            beta_schedule,
            zero_terminal_snr,
            prediction_type: keys.word("prediction_type", PREDICTION_TYPES)?.unwrap_or(PredictionType::Epsilon),
            timestep_spacing: keys.word("timestep_spacing", SPACINGS)?,
            steps_offset: keys.count("steps_offset", num_train_timesteps)?,
            clip_sample: keys.flag("clip_sample")?,
            clip_sample_range: keys.number("clip_sample_range", "a number above 0", positive)?.unwrap_or(1.0),
            set_alpha_to_one: keys.flag("set_alpha_to_one")?.unwrap_or(true),
            variance: match keys.get("variance_type").and_then(|value| value.as_str()) {
                Some("fixed_large") => Variance::FixedLarge,
                _ => Variance::FixedSmall,
            },
            final_sigma: keys.word("final_sigmas_type", FINAL_SIGMAS)?.unwrap_or(FinalSigma::Zero),
            sigma_min: keys.number("sigma_min", "null, or a number above 0", positive)?,
            sigma_max: keys.number("sigma_max", "null, or a number above 0", positive)?,
            use_karras_sigmas: keys.flag("use_karras_sigmas")?.unwrap_or(false),
            multistep: multistep(&keys)?,
            refusals: refusals(&keys)?,
        })
    }

    /// As diffusers' `StableDiffusionPipeline` (and its image-to-image and inpainting kin, but not the SDXL ones) mends
    /// the configuration it is given: where the file names them, `steps_offset` becomes 1 and `clip_sample` false.
    ///
    /// The mended values reach another sampler through `from_config(pipe.scheduler.config)` only if the file named the
    /// key: for a key that the checkpoint's own class filled in, the next class has its own default again.
    #[must_use]
    pub fn mended_for_stable_diffusion(mut self) -> Self {
        self.steps_offset = self.steps_offset.map(|_| 1);
        self.clip_sample = self.clip_sample.map(|_| false);
        self
    }

    /// Noise levels the network was trained with.
    pub fn num_train_timesteps(&self) -> usize {
        self.alphas_cumprod.len()
    }

    /// What the network's output means.
    pub fn prediction_type(&self) -> PredictionType {
        self.prediction_type
    }

    /// Share of signal left at each timestep, as the reference's `alphas_cumprod` in float32.
    pub fn alphas_cumprod(&self) -> &[f32] {
        &self.alphas_cumprod
    }

    /// Added to every timestep of spacing `leading`; every class of diffusers takes 0 for granted.
    pub(super) fn steps_offset(&self) -> usize {
        self.steps_offset.unwrap_or(0)
    }

    /// Where the denoised sample is clipped; the classes that know clipping take it for granted, at 1.
    pub(super) fn clip_denoised(&self) -> Option<f64> {
        self.clip_sample.unwrap_or(true).then_some(self.clip_sample_range)
    }

    /// Whether the levels are Karras': because the request says so, or because the file does and the sampler's class reads it.
    pub(super) fn wants_karras(&self, kind: SamplerKind, schedule: SigmaSchedule) -> bool {
        let class_reads_it = matches!(kind, SamplerKind::Euler | SamplerKind::DpmPp2m);
        schedule == SigmaSchedule::Karras || (class_reads_it && self.use_karras_sigmas)
    }

    /// The first thing in the file this sampler cannot honour.
    pub(super) fn refusal(&self, kind: SamplerKind) -> Result<()> {
        match self.refusals.iter().find(|refusal| refusal.kind == kind) {
            None => Ok(()),
            Some(refusal) => Err(Error::Sampler {
                kind,
                key: refusal.key.to_owned(),
                value: refusal.value.clone(),
                supported: refusal.supported.to_owned(),
            }),
        }
    }
}

const BETA_SCHEDULES: &[(&str, BetaSchedule)] = &[
    ("linear", BetaSchedule::Linear),
    ("scaled_linear", BetaSchedule::ScaledLinear),
    ("squaredcos_cap_v2", BetaSchedule::SquaredCosCapV2),
];
const PREDICTION_TYPES: &[(&str, PredictionType)] =
    &[("epsilon", PredictionType::Epsilon), ("v_prediction", PredictionType::V), ("sample", PredictionType::Sample)];
const SPACINGS: &[(&str, TimestepSpacing)] = &[
    ("leading", TimestepSpacing::Leading),
    ("trailing", TimestepSpacing::Trailing),
    ("linspace", TimestepSpacing::Linspace),
];
const FINAL_SIGMAS: &[(&str, FinalSigma)] = &[("zero", FinalSigma::Zero), ("sigma_min", FinalSigma::SigmaMin)];

/// Checkpoints that were not trained on a table of betas: their files lack what is read here, and defaults would draw garbage.
fn refuse_other_families(keys: &Keys) -> Result<()> {
    let class = keys.get("_class_name").and_then(|name| name.as_str()).unwrap_or_default();
    if class.starts_with("FlowMatch") || class.starts_with("EDM") {
        return Err(keys.fault("_class_name", "classes of checkpoints trained on betas, such as \"DDIMScheduler\""));
    }
    Ok(())
}

fn alphas_cumprod(keys: &Keys, schedule: BetaSchedule, count: usize, zero_terminal_snr: bool) -> Result<Vec<f32>> {
    let share = |number: f64| number > 0.0 && number < 1.0;
    let start = keys.number("beta_start", "a number between 0 and 1", share)?.unwrap_or(0.0001);
    let end = keys.number("beta_end", "a number between 0 and 1", share)?.unwrap_or(0.02);
    let betas = match keys.numbers("trained_betas")? {
        Some(trained) if trained.len() == count && trained.iter().all(|beta| share(*beta)) => {
            trained.into_iter().map(|beta| beta as f32).collect()
        }
        Some(_) => {
            let supported = format!("null, or `num_train_timesteps` = {count} numbers between 0 and 1");
            return Err(keys.fault("trained_betas", &supported));
        }
        None => betas::betas(schedule, start, end, count),
    };
    if !zero_terminal_snr {
        return Ok(betas::alphas_cumprod(&betas));
    }
    if count < 2 {
        return Err(keys.fault("rescale_betas_zero_snr", "false for a schedule of one timestep"));
    }
    Ok(betas::alphas_cumprod(&betas::rescale_zero_terminal_snr(&betas)))
}

fn multistep(keys: &Keys) -> Result<Multistep> {
    // What is refused in `refusals` may be anything here. Python's -Infinity, the default, arrives as a word.
    let lambda_min_clipped = match keys.get("lambda_min_clipped").and_then(|value| value.as_str()) {
        Some("-Infinity") => None,
        _ => keys.number("lambda_min_clipped", "a number, or -Infinity", |_| true)?,
    };
    Ok(Multistep {
        order: keys.get("solver_order").and_then(|order| order.as_u64()).unwrap_or(2).clamp(1, 3) as usize,
        stochastic: keys.get("algorithm_type").and_then(|value| value.as_str()) == Some("sde-dpmsolver++"),
        correction: match keys.get("solver_type").and_then(|value| value.as_str()) {
            Some("heun") => Correction::Heun,
            _ => Correction::Midpoint,
        },
        lower_order_final: keys.flag("lower_order_final")?.unwrap_or(true),
        euler_at_final: keys.flag("euler_at_final")?.unwrap_or(false),
        lambda_min_clipped: lambda_min_clipped.unwrap_or(f64::NEG_INFINITY),
    })
}

/// What single samplers cannot honour, by the keys their diffusers classes read.
fn refusals(keys: &Keys) -> Result<Vec<Refusal>> {
    use SamplerKind::{Ddim, Ddpm, DpmPp2m, Euler};

    let mut refusals = Vec::new();
    let mut refuse = |kinds: &[SamplerKind], key: &'static str, supported: &'static str| {
        refusals.extend(kinds.iter().map(|&kind| Refusal { kind, key, value: keys.shown(key), supported }));
    };
    for (key, readers) in [
        ("thresholding", &[Ddpm, Ddim, DpmPp2m][..]),
        ("use_exponential_sigmas", &[Euler, DpmPp2m]),
        ("use_beta_sigmas", &[Euler, DpmPp2m]),
        ("use_lu_lambdas", &[DpmPp2m]),
        ("use_flow_sigmas", &[DpmPp2m]),
    ] {
        if keys.flag(key)? == Some(true) {
            refuse(readers, key, "false");
        }
    }
    let word = |key: &str| keys.get(key).map(|value| value.as_str().unwrap_or_default());
    if keys.contains("variance_type") && !keys.shown("variance_type").eq("null") {
        let variance = word("variance_type").unwrap_or_default();
        if !["fixed_small", "fixed_small_log", "fixed_large"].contains(&variance) {
            refuse(&[Ddpm], "variance_type", "null, \"fixed_small\", \"fixed_small_log\", \"fixed_large\"");
        }
        if variance.starts_with("learned") {
            refuse(&[DpmPp2m], "variance_type", "null");
        }
    }
    if word("interpolation_type").is_some_and(|word| word != "linear") {
        refuse(&[Euler], "interpolation_type", "\"linear\"");
    }
    if word("timestep_type") == Some("continuous") && word("prediction_type") == Some("v_prediction") {
        refuse(&[Euler], "timestep_type", "\"discrete\"");
    }
    // "deis" is another class's word, which diffusers reads as "dpmsolver++".
    if word("algorithm_type").is_some_and(|word| !["dpmsolver++", "sde-dpmsolver++", "deis"].contains(&word)) {
        refuse(&[DpmPp2m], "algorithm_type", "\"dpmsolver++\", \"sde-dpmsolver++\"");
    }
    // The last three are other classes' words too, which diffusers reads as "midpoint".
    if word("solver_type").is_some_and(|word| !["midpoint", "heun", "logrho", "bh1", "bh2"].contains(&word)) {
        refuse(&[DpmPp2m], "solver_type", "\"midpoint\", \"heun\"");
    }
    if keys.get("solver_order").is_some_and(|order| ![Some(1), Some(2), Some(3)].contains(&order.as_u64())) {
        refuse(&[DpmPp2m], "solver_order", "1, 2, 3");
    }
    Ok(refusals)
}
