//! DDPM ancestral sampling (Ho et al. 2020, algorithm 2 and equation 7); diffusers `DDPMScheduler`.

use super::levels::{VpStep, finite_sigma_of};
use super::training::Variance;
use super::{Error, Mix, Noised, PlanRequest, PlanStep, Result, SamplingPlan, TrainingSchedule};

pub(super) fn plan(training: &TrainingSchedule, request: &PlanRequest) -> Result<SamplingPlan> {
    let steps = steps(training, request)?;
    if training.zero_snr_is_blind(&steps) {
        return Err(Error::ZeroSnr { kind: request.kind });
    }
    let steps = steps.iter().map(|step| rule(training, step)).collect();
    Ok(SamplingPlan::new(1.0, steps))
}

/// Each timestep's next one in the list is where its step leads.
fn steps(training: &TrainingSchedule, request: &PlanRequest) -> Result<Vec<VpStep>> {
    let count = request.steps as usize;
    if let Some(steps) = VpStep::scheduled(training, request) {
        return Ok(steps);
    }
    let timesteps = VpStep::whole_timesteps(training, count).map_err(|timestep| training.beyond(request, timestep))?;
    let share = |timestep: usize| f64::from(training.alphas_cumprod[timestep]);
    let step = |index: usize| VpStep {
        timestep: timesteps[index] as f64,
        from: share(timesteps[index]),
        to: timesteps.get(index + 1).map_or(1.0, |&next| share(next)),
    };
    Ok((0..count).map(step).collect())
}

fn rule(training: &TrainingSchedule, step: &VpStep) -> PlanStep {
    /// The reference keeps variances above this, as it may take their logarithm.
    const LEAST_VARIANCE: f64 = 1e-20;

    let &VpStep { timestep, from, to } = step;
    let alpha = from / to;
    let beta = 1.0 - alpha;
    let variance = match training.variance {
        Variance::FixedSmall => ((1.0 - to) / (1.0 - from) * beta).max(LEAST_VARIANCE),
        Variance::FixedLarge => beta,
    };
    PlanStep {
        clip_denoised: training.clip_denoised(),
        next: Mix {
            sample: alpha.sqrt() * (1.0 - to) / (1.0 - from),
            denoised: to.sqrt() * beta / (1.0 - from),
            // Only the last step adds none; a sigma schedule may tell several that they stand at timestep 0.
            noise: if timestep > 0.0 || to < 1.0 { variance.sqrt() } else { 0.0 },
            ..Mix::default()
        },
        ..PlanStep::at(
            timestep,
            finite_sigma_of(from),
            Noised::vp(from),
            training.prediction_type.denoised_vp(from.sqrt(), (1.0 - from).sqrt()),
        )
    }
}

impl TrainingSchedule {
    /// Whether a step begins without any signal and the network speaks of the noise alone.
    pub(super) fn zero_snr_is_blind(&self, steps: &[VpStep]) -> bool {
        self.prediction_type == super::PredictionType::Epsilon && steps.iter().any(|step| step.from <= 0.0)
    }

    pub(super) fn beyond(&self, request: &PlanRequest, timestep: usize) -> Error {
        Error::Beyond {
            kind: request.kind,
            steps: request.steps,
            timestep,
            last: self.num_train_timesteps() - 1,
            offset: self.steps_offset(),
        }
    }
}
