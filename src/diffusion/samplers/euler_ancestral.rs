//! Euler steps that go too far down and add fresh noise (k-diffusion `sample_euler_ancestral`, eta 1); diffusers
//! `EulerAncestralDiscreteScheduler`, which knows epsilon and v-prediction; sample prediction is the same formula here.

use super::euler::{init_noise_sigma, step};
use super::levels::Levels;
use super::{Mix, PlanRequest, PlanStep, Result, SamplingPlan, TrainingSchedule};

pub(super) fn plan(training: &TrainingSchedule, request: &PlanRequest) -> Result<SamplingPlan> {
    // This class reads no `final_sigmas_type`: it always ends without noise.
    let levels = Levels::fractional(training, request).ending_at(0.0);
    let rule = |(timestep, from, to): (f64, f64, f64)| {
        // Not a number where the levels rise (a table whose end was lifted to sigma 4096 may): the plan is refused then.
        let down = to * to / from;
        let up = (to * to - down * down).sqrt();
        let kept = down / from;
        let next = Mix { sample: kept, denoised: 1.0 - kept, noise: up, ..Mix::default() };
        PlanStep { next, ..step(training, timestep, from) }
    };
    let steps = levels.steps().map(rule).collect();
    Ok(SamplingPlan::new(init_noise_sigma(training, &levels), steps))
}
