//! Sigma schedules and step rules as `f64` arithmetic; no tensors, no noise, no network.
//!
//! Almost every sampler is linear in what it combines, so a [`SamplingPlan`] is a table of numbers computed before the
//! first step. The engine applies row `i` of it to sample tensors:
//!
//! ```text
//! model_input  = input_scale * x
//! output       = network(model_input, timestep)
//! raw          = denoised_from.sample * x + denoised_from.output * output      (prediction type and sigma are in here)
//! denoised     = clip(raw, -clip_denoised, +clip_denoised)                     (only when the checkpoint asks for it)
//! x'           = sample * x + denoised_weight * denoised + output_weight * output
//!              + sum_k history[k] * denoised_of_k_steps_ago + noise * n        (n ~ N(0, I), from the sample's own generator)
//! ```
//!
//! One file a step rule ([`ddpm`], [`ddim`], [`euler`], [`euler_ancestral`], [`dpmpp_2m`]); [`training`] reads what the
//! checkpoint says of itself, [`betas`] makes its table of noise levels, [`levels`] picks the ones to visit.
//!
//! Choosing a sampler means what `X.from_config(pipe.scheduler.config)` means in diffusers: a key that
//! `scheduler_config.json` lacks has class X's own default, and X's own way to read it.
//!
//! # How exact
//!
//! diffusers computes its table `alphas_cumprod` in single precision, and every number of a step from that table. Here
//! the table is the same, bit for bit (with `rescale_betas_zero_snr`: to 2e-5, since the square root of PyTorch's CPU
//! build is not correctly rounded), and everything after it is `f64`. So a plan agrees with the reference's own code
//! evaluated in double precision to 1e-9, and with the reference as it runs to the rounding of its single-precision
//! steps. `tests/it/golden/samplers.rs` holds both.

mod betas;
mod ddim;
mod ddpm;
mod dpmpp_2m;
mod error;
mod euler;
mod euler_ancestral;
mod keys;
mod levels;
mod prediction;
mod training;

pub use error::{Error, Result};
pub use levels::TimestepSpacing;
pub use prediction::PredictionType;
pub use training::TrainingSchedule;

use crate::domain::{SamplerKind, SigmaSchedule};

/// What a request says about sampling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlanRequest {
    /// The step rule.
    pub kind: SamplerKind,
    /// Which noise levels it visits.
    pub sigma_schedule: SigmaSchedule,
    /// Model evaluations, at least 1 and at most the training schedule's timesteps.
    pub steps: u32,
    /// DDIM's share of fresh noise, 0 to 1; the others ignore it.
    pub eta: f64,
}

/// Everything a sampler will do to one sample, before it begins. Every number in it is finite.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingPlan {
    /// The first latents are this times standard normal noise (diffusers `init_noise_sigma`).
    pub init_noise_sigma: f64,
    /// One row a model evaluation, first to last.
    pub steps: Vec<PlanStep>,
}

/// One model evaluation and the update after it; the module's head comment has the formula.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanStep {
    /// What the network is told, in the units of the training schedule (0 to 999 for 1000 steps; may be fractional).
    pub timestep: f64,
    /// Noise level before the step, as sigma of `x0 + sigma * n`; about 4096 where it is infinite (zero terminal SNR): for people, no
    /// rule uses it.
    pub sigma: f64,
    /// The network's input is this times `x`.
    pub input_scale: f64,
    /// How `x` and the network's output give the denoised sample.
    pub denoised_from: DenoisedFrom,
    /// Clip the denoised sample to plus/minus this (diffusers `clip_sample_range`).
    pub clip_denoised: Option<f64>,
    /// Weight of `x`.
    pub sample: f64,
    /// Weight of the (clipped) denoised sample.
    pub denoised: f64,
    /// Weight of the network's raw (guided) output.
    pub output: f64,
    /// Weights of earlier denoised samples, the latest first.
    pub history: Vec<f64>,
    /// Weight of fresh standard normal noise; 0 draws none.
    pub noise: f64,
}

/// `denoised = sample * x + output * network_output`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DenoisedFrom {
    /// Weight of `x`.
    pub sample: f64,
    /// Weight of the network's output.
    pub output: f64,
}

impl SamplingPlan {
    /// The numbers of every step.
    ///
    /// # Errors
    /// [`Error::Steps`] and [`Error::Eta`] for a request out of range, [`Error::Sampler`] for a checkpoint this sampler
    /// cannot serve, [`Error::Unsound`] where the arithmetic has no answer; the reference refuses, fails or computes
    /// NaN in these cases. More steps than the checkpoint was trained with are refused for every sampler (diffusers
    /// lets some of its classes visit levels twice).
    pub fn build(training: &TrainingSchedule, request: &PlanRequest) -> Result<Self> {
        let most = training.num_train_timesteps();
        if request.steps == 0 || request.steps as usize > most {
            return Err(Error::Steps { steps: request.steps, most });
        }
        if !(0.0..=1.0).contains(&request.eta) {
            return Err(Error::Eta { eta: request.eta });
        }
        training.refusal(request.kind)?;
        let plan = match request.kind {
            SamplerKind::Ddpm => ddpm::plan(training, request),
            SamplerKind::Ddim => ddim::plan(training, request),
            SamplerKind::Euler => euler::plan(training, request),
            SamplerKind::EulerAncestral => euler_ancestral::plan(training, request),
            SamplerKind::DpmPp2m => dpmpp_2m::plan(training, request),
        }?;
        plan.refuse_unsound(request)?;
        Ok(plan)
    }

    /// Whether this sampler can draw with this checkpoint at all.
    ///
    /// Every sampler takes every sigma schedule: where diffusers' class has no Karras option (`ddpm`, `ddim`,
    /// `euler_a`), `karras` means the levels that `EulerDiscreteScheduler` visits with it.
    pub fn supports(training: &TrainingSchedule, kind: SamplerKind, sigma_schedule: SigmaSchedule) -> bool {
        let steps = (training.num_train_timesteps() as u32 - 1).clamp(1, 10);
        Self::build(training, &PlanRequest { kind, sigma_schedule, steps, eta: 0.0 }).is_ok()
    }

    /// How many earlier denoised samples must be kept.
    pub fn history_len(&self) -> usize {
        self.steps.iter().map(|step| step.history.len()).max().unwrap_or(0)
    }

    fn refuse_unsound(&self, request: &PlanRequest) -> Result<()> {
        let sound = |step: &PlanStep| step.numbers().all(f64::is_finite);
        match self.steps.iter().position(|step| !sound(step)) {
            None if self.init_noise_sigma.is_finite() => Ok(()),
            bad => Err(Error::Unsound { request: *request, step: bad.unwrap_or(0) }),
        }
    }
}

impl PlanStep {
    /// A step that does nothing yet.
    fn at(timestep: f64, sigma: f64, denoised_from: DenoisedFrom) -> Self {
        Self {
            timestep,
            sigma,
            input_scale: 1.0,
            denoised_from,
            clip_denoised: None,
            sample: 0.0,
            denoised: 0.0,
            output: 0.0,
            history: Vec::new(),
            noise: 0.0,
        }
    }

    fn numbers(&self) -> impl Iterator<Item = f64> {
        let fixed = [
            self.timestep,
            self.sigma,
            self.input_scale,
            self.denoised_from.sample,
            self.denoised_from.output,
            self.clip_denoised.unwrap_or(0.0),
            self.sample,
            self.denoised,
            self.output,
            self.noise,
        ];
        fixed.into_iter().chain(self.history.iter().copied())
    }
}

#[cfg(test)]
mod tests;
