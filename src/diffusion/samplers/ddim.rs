//! DDIM (Song et al. 2021, equations 12 and 16); diffusers `DDIMScheduler`.

use super::levels::{VpStep, finite_sigma_of};
use super::{Error, Mix, Noised, PlanRequest, PlanStep, Result, SamplingPlan, TrainingSchedule};

pub(super) fn plan(training: &TrainingSchedule, request: &PlanRequest) -> Result<SamplingPlan> {
    let steps = steps(training, request)?;
    if training.zero_snr_is_blind(&steps) {
        return Err(Error::ZeroSnr { kind: request.kind });
    }
    let steps = steps.iter().map(|step| rule(training, step, request.eta)).collect();
    Ok(SamplingPlan::new(1.0, steps))
}

/// Each step leads a whole stride back, which with `linspace` and `trailing` need not be the next timestep of the list:
/// as the reference does it.
fn steps(training: &TrainingSchedule, request: &PlanRequest) -> Result<Vec<VpStep>> {
    let count = request.steps as usize;
    if let Some(steps) = VpStep::scheduled(training, request) {
        return Ok(steps);
    }
    let timesteps = VpStep::whole_timesteps(training, count).map_err(|timestep| training.beyond(request, timestep))?;
    let share = |timestep: usize| f64::from(training.alphas_cumprod[timestep]);
    let stride = training.num_train_timesteps() / count;
    let last = if training.set_alpha_to_one() { 1.0 } else { share(0) };
    let step = |timestep: usize| VpStep {
        timestep: timestep as f64,
        from: share(timestep),
        to: timestep.checked_sub(stride).map_or(last, share),
    };
    Ok(timesteps.into_iter().map(step).collect())
}

fn rule(training: &TrainingSchedule, step: &VpStep, eta: f64) -> PlanStep {
    let &VpStep { timestep, from, to } = step;
    let (alpha, sigma) = (from.sqrt(), (1.0 - from).sqrt());
    let variance = (1.0 - to) / (1.0 - from) * (1.0 - from / to);
    // At eta 1 a rounding error below zero would be no number.
    let noise = eta * variance.max(0.0).sqrt();
    let direction = (1.0 - to - noise * noise).max(0.0).sqrt();
    // The noise the network sees in x, before any clipping.
    let seen = training.prediction_type.noise_vp(alpha, sigma);
    PlanStep {
        clip_denoised: training.clip_denoised(),
        next: Mix {
            sample: direction * seen.sample,
            denoised: to.sqrt(),
            output: direction * seen.output,
            noise,
            ..Mix::default()
        },
        ..PlanStep::at(
            timestep,
            finite_sigma_of(from),
            Noised::vp(from),
            training.prediction_type.denoised_vp(alpha, sigma),
        )
    }
}
