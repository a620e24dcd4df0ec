//! What can be wrong with a checkpoint's training schedule or a request's sampling.

use crate::domain::SamplerKind;

use super::PlanRequest;

/// Of this room.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The file is not JSON.
    #[error("scheduler_config.json cannot be read: {reason}")]
    Json {
        /// What the reader said.
        reason: String,
    },
    /// A key's value cannot be honoured by any sampler.
    #[error("scheduler_config.json: `{key}` is {value}; supported: {supported}")]
    Config {
        /// The key.
        key: String,
        /// Its value, as JSON.
        value: String,
        /// What would be.
        supported: String,
    },
    /// A key's value cannot be honoured by this sampler.
    #[error(
        "sampler `{kind}` cannot draw with this model: scheduler_config.json has `{key}` = {value}; `{kind}` supports: \
         {supported}"
    )]
    Sampler {
        /// The sampler.
        kind: SamplerKind,
        /// The key.
        key: String,
        /// Its value, as JSON.
        value: String,
        /// What would be.
        supported: String,
    },
    /// No steps, or more than there are levels.
    #[error("`steps` is {steps}; this model takes 1 to {most}")]
    Steps {
        /// What was asked.
        steps: u32,
        /// Timesteps of the training schedule.
        most: usize,
    },
    /// Fewer steps than the rule needs to begin.
    #[error(
        "`steps` is {steps}; sampler `{kind}` takes at least {least} with this model (its scheduler_config.json lacks \
         `skip_prk_steps` = true)"
    )]
    FewSteps {
        /// The sampler.
        kind: SamplerKind,
        /// What was asked.
        steps: u32,
        /// What would do.
        least: usize,
    },
    /// More steps than the teacher of a distilled model took.
    #[error("`steps` is {steps}; sampler `{kind}` takes 1 to {most} with this model (`original_inference_steps`)")]
    StepsOfTeacher {
        /// The sampler.
        kind: SamplerKind,
        /// What was asked.
        steps: u32,
        /// What would do.
        most: usize,
    },
    /// Nothing would be left to do.
    #[error("of {steps} steps {skip} cannot be left out; at least one must be taken")]
    Skip {
        /// What was asked to leave out.
        skip: u32,
        /// Of so many.
        steps: u32,
    },
    /// A run that ends or begins at this share of the training schedule has no evaluation.
    #[error(
        "`{key}` {share} leaves none of {steps} steps of sampler `{kind}` to take; use more steps or another share"
    )]
    Cut {
        /// `denoising_start` or `denoising_end`.
        key: &'static str,
        /// Of the training schedule.
        share: f64,
        /// What was asked.
        steps: u32,
        /// The sampler.
        kind: SamplerKind,
    },
    /// The rule's first steps cannot be left out.
    #[error(
        "sampler `{kind}` cannot begin at step {skip} with this model, since its scheduler_config.json lacks \
         `skip_prk_steps` = true: the first steps are of another kind; use another sampler, or `strength` 1"
    )]
    Begin {
        /// The sampler.
        kind: SamplerKind,
        /// Where it would begin.
        skip: u32,
    },
    /// Out of range or not a number.
    #[error("`eta` is {eta}; supported: 0 to 1")]
    Eta {
        /// What was asked.
        eta: f64,
    },
    /// A timestep would lie beyond the training schedule.
    #[error(
        "`steps` {steps} with sampler `{kind}` reaches timestep {timestep}, beyond this model's last one, {last} (its \
         scheduler_config.json has `steps_offset` = {offset}); use fewer steps"
    )]
    Beyond {
        /// The sampler.
        kind: SamplerKind,
        /// What was asked.
        steps: u32,
        /// Where it would lead.
        timestep: usize,
        /// Where the schedule ends.
        last: usize,
        /// Added to every timestep.
        offset: usize,
    },
    /// An epsilon network says nothing of the picture where the sample is pure noise.
    #[error(
        "sampler `{kind}` would begin at zero signal-to-noise ratio (scheduler_config.json has `rescale_betas_zero_snr`), \
         where `prediction_type` \"epsilon\" says nothing of the picture; supported there: \"v_prediction\", \"sample\", or \
         one of the samplers `euler`, `euler_a`, `dpmpp_2m`, `unipc`"
    )]
    ZeroSnr {
        /// The sampler.
        kind: SamplerKind,
    },
    /// A coefficient is not finite: two levels of a multistep rule coincide, or the schedule overflows.
    #[error(
        "`steps` {} with sampler `{}` and sigma schedule `{}` has no finite numbers at step {step} (the noise levels of this \
         model coincide or overflow there); use fewer steps or another sampler",
        request.steps, request.kind, request.sigma_schedule
    )]
    Unsound {
        /// What was asked.
        request: PlanRequest,
        /// The first bad step, from 0.
        step: usize,
    },
}

/// Of this room.
pub type Result<T> = std::result::Result<T, Error>;
