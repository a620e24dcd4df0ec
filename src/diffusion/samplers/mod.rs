//! Sigma schedules and step rules as `f64` arithmetic; no tensors.
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

/// Everything a sampler will do to one sample, before it begins.
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
    /// Noise level before the step, as sigma of `x0 + sigma * n`.
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
    /// How many earlier denoised samples must be kept.
    pub fn history_len(&self) -> usize {
        self.steps.iter().map(|step| step.history.len()).max().unwrap_or(0)
    }
}
