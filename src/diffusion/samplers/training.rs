//! What a checkpoint says of its training and of how it wants to be sampled: `scheduler_config.json`.

use crate::domain::{SamplerKind, SigmaSchedule};

use std::borrow::Cow;

use super::betas::{BetaSchedule, BetaTable};
use super::classes::Class;
use super::keys::Keys;
use super::refusals::{Refusal, refusals};
use super::{Error, PredictionType, Result, TimestepSpacing};

/// More timesteps than any checkpoint has; keeps a broken file from asking for gigabytes.
const MOST_TIMESTEPS: usize = 100_000;

/// A checkpoint's noise levels and the options of its `scheduler_config.json`.
///
/// Options keep whether the file named them, because samplers differ in what they take for granted otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingSchedule {
    /// The class of the sampler that reads this: what it takes for granted, and minds.
    class: Class,
    /// The one of the file's `_class_name`.
    own_sampler: Option<SamplerKind>,
    betas: BetaTable,
    /// Share of signal left at each timestep; falls, and ends at exactly 0 with zero terminal SNR.
    pub(super) alphas_cumprod: Vec<f32>,
    pub(super) prediction_type: PredictionType,
    pub(super) timestep_spacing: Option<TimestepSpacing>,
    steps_offset: Option<usize>,
    clip_sample: Option<bool>,
    clip_sample_range: f64,
    set_alpha_to_one: Option<bool>,
    pub(super) variance: Variance,
    pub(super) final_sigma: FinalSigma,
    pub(super) sigma_min: Option<f64>,
    pub(super) sigma_max: Option<f64>,
    /// Of `use_karras_sigmas` and its kin.
    wished: SigmaSchedule,
    pub(super) multistep: Multistep,
    /// Corrector steps that UniPC leaves out, by the index of the step before them.
    pub(super) disable_corrector: Vec<usize>,
    pub(super) unipc_bh1: bool,
    skip_prk_steps: Option<bool>,
    /// Steps of the teacher that an LCM or TCD model was distilled from.
    pub(super) original_inference_steps: usize,
    pub(super) timestep_scaling: f64,
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

/// Options of the solvers that combine several denoised samples (diffusers `DPMSolverMultistepScheduler` and its kin).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Multistep {
    /// 1 to 3.
    pub(super) order: usize,
    /// Adds noise each step (`sde-dpmsolver++`).
    pub(super) stochastic: bool,
    pub(super) correction: Correction,
    /// What the class takes for granted differs.
    pub(super) lower_order_final: Option<bool>,
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
        let betas = BetaTable::read(&keys, num_train_timesteps)?;
        let class = Class::of(SamplerKind::Ddim);
        let positive = |number: f64| number > 0.0;
        Ok(Self {
            class,
            own_sampler: own_sampler(&keys),
            alphas_cumprod: betas.alphas_cumprod(&class),
            betas,
            prediction_type: keys.word("prediction_type", PREDICTION_TYPES)?.unwrap_or(PredictionType::Epsilon),
            timestep_spacing: keys.word("timestep_spacing", SPACINGS)?,
            steps_offset: keys.count("steps_offset", num_train_timesteps)?,
            clip_sample: keys.flag("clip_sample")?,
            clip_sample_range: keys.number("clip_sample_range", "a number above 0", positive)?.unwrap_or(1.0),
            set_alpha_to_one: keys.flag("set_alpha_to_one")?,
            variance: match keys.get("variance_type").and_then(|value| value.as_str()) {
                Some("fixed_large") => Variance::FixedLarge,
                _ => Variance::FixedSmall,
            },
            final_sigma: keys.word("final_sigmas_type", FINAL_SIGMAS)?.unwrap_or(FinalSigma::Zero),
            sigma_min: keys.number("sigma_min", "null, or a number above 0", positive)?,
            sigma_max: keys.number("sigma_max", "null, or a number above 0", positive)?,
            wished: wished(&keys)?,
            multistep: multistep(&keys)?,
            disable_corrector: keys
                .numbers("disable_corrector")?
                .unwrap_or_default()
                .into_iter()
                .map(|at| at as usize)
                .collect(),
            unipc_bh1: keys.get("solver_type").and_then(|value| value.as_str()) == Some("bh1"),
            skip_prk_steps: keys.flag("skip_prk_steps")?,
            original_inference_steps: keys.count("original_inference_steps", MOST_TIMESTEPS)?.unwrap_or(50),
            timestep_scaling: keys.number("timestep_scaling", "a number above 0", positive)?.unwrap_or(10.0),
            refusals: refusals(&keys, num_train_timesteps)?,
        })
    }

    /// As diffusers' `StableDiffusionPipeline` (and its image-to-image kin, but not the SDXL ones) mends
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

    /// As diffusers' `StableDiffusionInpaintPipeline` mends it: where the file names them, `steps_offset` becomes 1 and
    /// `skip_prk_steps` true.
    #[must_use]
    pub fn mended_for_inpainting(mut self) -> Self {
        self.steps_offset = self.steps_offset.map(|_| 1);
        self.skip_prk_steps = self.skip_prk_steps.map(|_| true);
        self
    }

    /// Noise levels the network was trained with.
    pub fn num_train_timesteps(&self) -> usize {
        self.alphas_cumprod.len()
    }

    /// The sampler that the file is the configuration of, where it is one of ours.
    pub fn own_sampler(&self) -> Option<SamplerKind> {
        self.own_sampler
    }

    /// Whether the file is one for a network distilled to draw in a few steps without guidance: samplers made for such
    /// networks, or Euler's with spacing `trailing` and predicted noise, as of SD-Turbo, SDXL-Turbo and SDXL-Lightning.
    pub fn is_for_few_steps(&self) -> bool {
        match self.own_sampler {
            Some(SamplerKind::Lcm | SamplerKind::Tcd) => true,
            Some(SamplerKind::Euler | SamplerKind::EulerAncestral) => {
                self.timestep_spacing == Some(TimestepSpacing::Trailing)
                    && self.prediction_type == PredictionType::Epsilon
                    && !self.betas.zero_terminal_snr(&Class::of(SamplerKind::Euler))
            }
            _ => false,
        }
    }

    /// What the network's output means.
    pub fn prediction_type(&self) -> PredictionType {
        self.prediction_type
    }

    /// Share of signal left at each timestep, as the reference's `alphas_cumprod` in float32; what the file lacks as in
    /// `DDIMScheduler`.
    pub fn alphas_cumprod(&self) -> &[f32] {
        &self.alphas_cumprod
    }

    /// Added to every timestep of spacing `leading`; every class of diffusers takes 0 for granted.
    pub(super) fn steps_offset(&self) -> usize {
        self.steps_offset.unwrap_or(0)
    }

    /// Where the denoised sample is clipped, by a class that knows clipping.
    pub(super) fn clip_denoised(&self) -> Option<f64> {
        let clips = self.class.clips.is_some_and(|default| self.clip_sample.unwrap_or(default));
        clips.then_some(self.clip_sample_range)
    }

    /// Whether PNDM leaves out its Runge-Kutta steps.
    pub(super) fn skip_prk_steps(&self) -> bool {
        self.skip_prk_steps.unwrap_or(false)
    }

    /// Whether the step that leads below the first timestep ends without noise.
    pub(super) fn set_alpha_to_one(&self) -> bool {
        self.set_alpha_to_one.unwrap_or(self.class.set_alpha_to_one)
    }

    /// Which levels: as the request says or, when it says nothing, as the file does and the sampler's class reads it.
    pub(super) fn sigma_schedule(&self, asked: SigmaSchedule) -> SigmaSchedule {
        if asked == SigmaSchedule::Default && self.class.reads_sigma_wishes { self.wished } else { asked }
    }

    pub(super) fn class(&self) -> &Class {
        &self.class
    }

    pub(super) fn beta_schedule(&self) -> BetaSchedule {
        self.betas.schedule(&self.class)
    }

    pub(super) fn zero_terminal_snr(&self) -> bool {
        self.betas.zero_terminal_snr(&self.class)
    }

    /// As the class of this sampler reads the file: its own defaults for what the file lacks.
    pub(super) fn read_by(&self, kind: SamplerKind) -> Cow<'_, Self> {
        let class = Class::of(kind);
        if class == self.class {
            return Cow::Borrowed(self);
        }
        Cow::Owned(Self { class, alphas_cumprod: self.betas.alphas_cumprod(&class), ..self.clone() })
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

fn own_sampler(keys: &Keys) -> Option<SamplerKind> {
    let class = keys.get("_class_name")?.as_str()?;
    match (SamplerKind::ALL.iter().find(|kind| kind.diffusers_class() == Some(class))?, keys.get("algorithm_type")) {
        (SamplerKind::DpmPp2m, Some(kind)) if kind == "sde-dpmsolver++" => Some(SamplerKind::DpmPp2mSde),
        (kind, _) => Some(*kind),
    }
}

fn wished(keys: &Keys) -> Result<SigmaSchedule> {
    let mut wished = SigmaSchedule::Default;
    // Where several are true, the classes that read them refuse the file (see `refusals`).
    for (key, schedule) in SIGMA_WISHES {
        if keys.flag(key)? == Some(true) {
            wished = *schedule;
        }
    }
    Ok(wished)
}

/// Keys that ask for a sigma schedule.
pub(super) const SIGMA_WISHES: &[(&str, SigmaSchedule)] = &[
    ("use_karras_sigmas", SigmaSchedule::Karras),
    ("use_exponential_sigmas", SigmaSchedule::Exponential),
    ("use_beta_sigmas", SigmaSchedule::Beta),
];

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
        lower_order_final: keys.flag("lower_order_final")?,
        euler_at_final: keys.flag("euler_at_final")?.unwrap_or(false),
        lambda_min_clipped: lambda_min_clipped.unwrap_or(f64::NEG_INFINITY),
    })
}
