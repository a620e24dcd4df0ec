//! Sigma schedules and step rules as `f64` arithmetic; no tensors, no noise, no network.
//!
//! Almost every sampler is linear in what it combines, so a [`SamplingPlan`] is a table of numbers computed before the
//! first step, one row a model evaluation. The engine applies row `i` of it to sample tensors:
//!
//! ```text
//! model_input  = input_scale * x
//! output       = network(model_input, timestep)
//! raw          = denoised_from.sample * x + denoised_from.output * output      (prediction type and sigma are in here)
//! denoised     = clip(raw, -clip_denoised, +clip_denoised)                     (only when the checkpoint asks for it)
//! x'           = next(x, held, denoised, output, remembered, noise)            (a `Mix`: a weighted sum)
//! held'        = hold(the same), where the row has one
//! remembered'  = remember(the same) before what was remembered, where the row has one
//! ```
//!
//! A rule of several evaluations a step (Heun's, say) holds the sample its step began with; a multistep rule remembers
//! what earlier evaluations said; a stochastic one draws noise (n ~ N(0, I), from the sample's own generator) where a
//! weight of it is not 0, and may weigh the draw before it again (`earlier_noise`). The engine knows none of them by name.
//!
//! One file a step rule; [`training`] reads what the checkpoint says of itself, [`classes`] what the reference takes for
//! granted and [`refusals`] what cannot be honoured, [`betas`] makes the table of noise levels, [`levels`] and [`schedules`]
//! pick the ones to visit.
//!
//! Choosing a sampler means what `X.from_config(pipe.scheduler.config)` means in diffusers: a key that
//! `scheduler_config.json` lacks has class X's own default, and X's own way to read it. `dpmpp_2s_a` and `dpmpp_3m_sde`, which
//! diffusers lacks, are k-diffusion's.
//!
//! # How exact
//!
//! diffusers computes its table `alphas_cumprod` in single precision, and every number of a step from that table. Here
//! the table is the same, bit for bit (with `rescale_betas_zero_snr`: to 2e-5, since the square root of PyTorch's CPU
//! build is not correctly rounded), and everything after it is `f64`. So a plan agrees with the reference's own code
//! evaluated in double precision to 1e-9, and with the reference as it runs to the rounding of its single-precision
//! steps. `tests/it/golden/samplers.rs` holds both.

mod beta_distribution;
mod betas;
mod classes;
mod cut;
mod ddim;
mod ddpm;
mod deis;
mod dpm2;
mod dpm_solver;
mod dpmpp_2m;
mod dpmpp_2s_ancestral;
mod dpmpp_3m_sde;
mod dpmpp_sde;
mod error;
mod euler;
mod euler_ancestral;
mod heun;
mod keys;
mod lcm;
mod levels;
mod lms;
mod plan_step;
mod pndm;
mod prediction;
mod refusals;
mod schedules;
mod tcd;
mod training;
mod unipc;

pub use error::{Error, Result};
pub use levels::TimestepSpacing;
pub use plan_step::{DenoisedFrom, Mix, Noised, PlanStep};
pub use prediction::PredictionType;
pub use training::TrainingSchedule;

use crate::domain::{GenerationRequest, SamplerKind, SigmaSchedule};

/// What a request says about sampling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlanRequest {
    /// The step rule.
    pub kind: SamplerKind,
    /// Which noise levels it visits.
    pub sigma_schedule: SigmaSchedule,
    /// Steps a person counts, at least 1 and at most the training schedule's timesteps; some samplers evaluate the network
    /// more often.
    pub steps: u32,
    /// DDIM's share of fresh noise or TCD's gamma, 0 to 1; the others ignore it.
    pub eta: f64,
    /// Steps left out at the beginning, fewer than `steps`: the levels are those of all steps, the run begins later, with
    /// nothing remembered (diffusers' `t_start` of image to image).
    pub skip: u32,
    /// Share of the training schedule, within 0 and 1, at which the run begins instead, on latents that were left there
    /// (diffusers `denoising_start`).
    pub denoising_start: Option<f64>,
    /// Share at which it ends, its latents left with the noise they have there (diffusers `denoising_end`).
    pub denoising_end: Option<f64>,
}

impl PlanRequest {
    /// What a request asks for.
    pub fn of(request: &GenerationRequest) -> Self {
        Self {
            kind: request.sampler(),
            sigma_schedule: request.sigma_schedule(),
            steps: request.steps(),
            eta: request.eta(),
            skip: request.skipped_steps(),
            denoising_start: request.denoising_start(),
            denoising_end: request.denoising_end(),
        }
    }

    /// A whole run of so many steps.
    pub fn plain(kind: SamplerKind, sigma_schedule: SigmaSchedule, steps: u32) -> Self {
        Self { kind, sigma_schedule, steps, eta: 0.0, skip: 0, denoising_start: None, denoising_end: None }
    }

    /// Steps of this run before the one of this index, which may be one that is left out.
    fn age(&self, index: usize) -> usize {
        index.saturating_sub(self.skip as usize)
    }
}

/// Everything a sampler will do to one sample, before it begins. Every number in it is finite.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingPlan {
    /// The first latents are this times standard normal noise (diffusers `init_noise_sigma`).
    pub init_noise_sigma: f64,
    /// One row a model evaluation, first to last; at least one.
    pub steps: Vec<PlanStep>,
    /// Steps that people count, left out before the first row.
    pub left_out: u32,
}

impl SamplingPlan {
    /// A run from its first step on.
    fn new(init_noise_sigma: f64, steps: Vec<PlanStep>) -> Self {
        Self { init_noise_sigma, steps, left_out: 0 }
    }

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
        if request.skip >= request.steps {
            return Err(Error::Skip { skip: request.skip, steps: request.steps });
        }
        if !(0.0..=1.0).contains(&request.eta) {
            return Err(Error::Eta { eta: request.eta });
        }
        match request.denoising_start {
            Some(share) => Self::beginning_at(training, request, share),
            None => Self::of_steps(training, request),
        }
    }

    /// The rows after the skipped steps, up to the end.
    fn of_steps(training: &TrainingSchedule, request: &PlanRequest) -> Result<Self> {
        training.refusal(request.kind)?;
        let training = training.read_by(request.kind);
        let training = training.as_ref();
        let mut plan = match request.kind {
            SamplerKind::Ddpm => ddpm::plan(training, request),
            SamplerKind::Ddim => ddim::plan(training, request),
            SamplerKind::Euler => euler::plan(training, request),
            SamplerKind::EulerAncestral => euler_ancestral::plan(training, request),
            SamplerKind::Heun => heun::plan(training, request),
            SamplerKind::Dpm2 | SamplerKind::Dpm2Ancestral => dpm2::plan(training, request),
            SamplerKind::Lms => lms::plan(training, request),
            SamplerKind::DpmPp2m | SamplerKind::DpmPp2mSde => dpmpp_2m::plan(training, request),
            SamplerKind::DpmPp2sAncestral => dpmpp_2s_ancestral::plan(training, request),
            SamplerKind::DpmPpSde => dpmpp_sde::plan(training, request),
            SamplerKind::DpmPp3mSde => dpmpp_3m_sde::plan(training, request),
            SamplerKind::DpmSolver => dpm_solver::plan(training, request),
            SamplerKind::UniPc => unipc::plan(training, request),
            SamplerKind::Deis => deis::plan(training, request),
            SamplerKind::Pndm => pndm::plan(training, request),
            SamplerKind::Lcm => lcm::plan(training, request),
            SamplerKind::Tcd => tcd::plan(training, request),
        }?;
        if request.kind != SamplerKind::Pndm {
            plan.leave_out(request.skip as usize);
        }
        plan.left_out = request.skip;
        if let Some(share) = request.denoising_end {
            plan.end_at(training, request, share)?;
        }
        plan.refuse_unsound(request)?;
        Ok(plan)
    }

    /// Drops the first steps that people count. A rule that remembers has made the others so that they need none of them.
    fn leave_out(&mut self, steps: usize) {
        let ends = self.steps.iter().enumerate().filter(|(_, step)| step.ends_step);
        let evaluations = ends.map(|(index, _)| index + 1).take(steps).last().unwrap_or(0);
        self.steps.drain(..evaluations);
    }

    /// Whether this sampler can draw with this checkpoint at all.
    ///
    /// Every sampler takes every sigma schedule: where diffusers' class has no such option (`ddpm`, `ddim`, `euler_a`,
    /// `pndm`, `lcm`, `tcd`, and `karras`, `exponential` and `beta` alone for the others), the name means the levels that
    /// `EulerDiscreteScheduler` would visit with it.
    pub fn supports(training: &TrainingSchedule, kind: SamplerKind, sigma_schedule: SigmaSchedule) -> bool {
        let most = (training.num_train_timesteps() - 1).clamp(1, 10);
        let steps = match kind {
            SamplerKind::Lcm | SamplerKind::Tcd => most.min(training.original_inference_steps.max(1)),
            _ => most,
        };
        Self::build(training, &PlanRequest::plain(kind, sigma_schedule, steps as u32)).is_ok()
    }

    /// How many of the remembered tensors must be kept.
    pub fn memory_len(&self) -> usize {
        self.steps.iter().flat_map(PlanStep::mixes).map(|mix| mix.remembered.len()).max().unwrap_or(0)
    }

    /// Whether a draw of noise must be kept for the evaluation after it.
    pub fn keeps_noise(&self) -> bool {
        self.steps.iter().flat_map(PlanStep::mixes).any(|mix| mix.earlier_noise != 0.0)
    }

    fn refuse_unsound(&self, request: &PlanRequest) -> Result<()> {
        let sound = |step: &PlanStep| step.numbers().all(f64::is_finite);
        match self.steps.iter().position(|step| !sound(step)) {
            None if self.init_noise_sigma.is_finite() => Ok(()),
            bad => Err(Error::Unsound { request: *request, step: bad.unwrap_or(0) }),
        }
    }
}

#[cfg(test)]
mod tests;
