//! Heun's second-order method on the probability-flow ODE (Karras et al. 2022, algorithm 1 without churn); diffusers
//! `HeunDiscreteScheduler`. Two evaluations a step; the last step, which ends without noise, is Euler's.

use super::euler::{init_noise_sigma, step};
use super::levels::Levels;
use super::{Mix, PlanRequest, PlanStep, Result, SamplingPlan, TrainingSchedule};

pub(super) fn plan(training: &TrainingSchedule, request: &PlanRequest) -> Result<SamplingPlan> {
    let levels = Levels::fractional(training, request).ending_at(0.0);
    let mut steps = Vec::new();
    for (index, (timestep, from, to)) in levels.steps().enumerate() {
        let clip_denoised = training.clip_denoised();
        let kept = to / from;
        let euler = PlanStep {
            clip_denoised,
            next: Mix { sample: kept, denoised: 1.0 - kept, ..Mix::default() },
            ..step(training, timestep, from)
        };
        if to == 0.0 {
            steps.push(euler);
            continue;
        }
        steps.push(PlanStep { hold: Some(Mix::sample()), remember: Some(Mix::denoised()), ends_step: false, ..euler });
        // From the held sample, along the mean of the two slopes (x - denoised) / sigma.
        let (first, second) = (0.5 * (to - from) / from, 0.5 * (to - from) / to);
        steps.push(PlanStep {
            clip_denoised,
            next: Mix {
                held: 1.0 + first,
                remembered: vec![-first],
                sample: second,
                denoised: -second,
                ..Mix::default()
            },
            ..step(training, levels.timesteps[index + 1], to)
        });
    }
    Ok(SamplingPlan::new(init_noise_sigma(training, &levels), steps))
}
