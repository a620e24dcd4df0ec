//! DPM-Solver++ (stochastic) with a midpoint in log sigma: k-diffusion `sample_dpmpp_sde`, eta 1, r 1/2, which is what A1111
//! calls "DPM++ SDE"; diffusers `DPMSolverSDEScheduler`. Two evaluations a step, but one in the last.
//!
//! Both evaluations of a step add noise of one Brownian path W over sigma: the first its change from the step's level to
//! the middle, the second its change from the step's level to the next one, each scaled to unit variance. So the second
//! noise holds part of the first. The references draw W from a Brownian tree (torchsde) that has a seed of its own or
//! none; here its two independent changes are drawn in turn from the request's generator, so a seed decides the picture,
//! but it is not the picture those draw.

use super::dpm2::ancestral;
use super::euler::{init_noise_sigma, step};
use super::levels::{Levels, log_table, timestep_of};
use super::{Mix, Noised, PlanRequest, PlanStep, Result, SamplingPlan, TrainingSchedule};

pub(super) fn plan(training: &TrainingSchedule, request: &PlanRequest) -> Result<SamplingPlan> {
    let levels = Levels::fractional(training, request).ending_at(0.0);
    let log_sigmas = log_table(&training.sigmas());
    let mut steps = Vec::new();
    for (timestep, from, to) in levels.steps() {
        let at = step(training, timestep, from);
        if to == 0.0 {
            steps.push(PlanStep { next: Mix::denoised(), ..at });
            continue;
        }
        let middle = (from * to).sqrt();
        let (down, up) = ancestral(from, middle);
        steps.push(PlanStep {
            next: Mix { sample: down / from, denoised: 1.0 - down / from, noise: up, ..Mix::default() },
            hold: Some(Mix::sample()),
            ends_step: false,
            ..at
        });
        let (down, up) = ancestral(from, to);
        // Of W's change over the whole step: what the first draw was, and what is left. The variance of a change is its length.
        let earlier = (from - middle) / (from - to);
        steps.push(PlanStep {
            next: Mix {
                held: down / from,
                denoised: 1.0 - down / from,
                earlier_noise: up * earlier.sqrt(),
                noise: up * (1.0 - earlier).sqrt(),
                ..Mix::default()
            },
            // As in the reference's `add_noise`, though the sample is at the middle.
            noised: Noised::ve(to),
            ..step(training, timestep_of(middle, &log_sigmas), middle)
        });
    }
    Ok(SamplingPlan::new(init_noise_sigma(training, &levels), steps))
}
