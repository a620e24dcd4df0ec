//! DPM-Solver++ (3M) SDE: k-diffusion `sample_dpmpp_3m_sde`, eta 1. The noise of its steps does not overlap, so it is drawn
//! afresh each step, from the request's generator (there: from a Brownian tree).
//!
//! diffusers has no such class: the levels are those of its `EulerDiscreteScheduler`, ending without noise. (Its
//! `DPMSolverMultistepScheduler` with `solver_order=3` and `algorithm_type="sde-dpmsolver++"` has another sign in its
//! third-order term; see `dpmpp_2m`.)

use super::euler::{init_noise_sigma, step};
use super::levels::Levels;
use super::{Mix, PlanRequest, PlanStep, Result, SamplingPlan, TrainingSchedule};

pub(super) fn plan(training: &TrainingSchedule, request: &PlanRequest) -> Result<SamplingPlan> {
    let levels = Levels::fractional(training, request).ending_at(0.0);
    // Strides of log sigma, one a step; the last one, down to no noise, is not used.
    let strides: Vec<f64> = levels.steps().map(|(_, from, to)| (from / to).ln()).collect();
    let rule = |(index, (timestep, from, to)): (usize, (f64, f64, f64))| {
        let next = if to == 0.0 { Mix::denoised() } else { mix(to, &strides[index - request.age(index)..=index]) };
        PlanStep { next, remember: Some(Mix::denoised()), ..step(training, timestep, from) }
    };
    let steps = levels.steps().enumerate().map(rule).collect();
    Ok(SamplingPlan::new(init_noise_sigma(training, &levels), steps))
}

/// `strides`: of all steps so far, this one's last.
fn mix(to: f64, strides: &[f64]) -> Mix {
    let h = strides[strides.len() - 1];
    // eta 1: the deterministic step's exponent, twice.
    let span = 2.0 * h;
    let phi_1 = -(-span).exp_m1();
    let phi_2 = 1.0 - phi_1 / span;
    let phi_3 = phi_2 / span - 0.5;
    // Divided differences of the denoised samples, as weights of (this one, the one before, the one before that).
    let older = strides.len().checked_sub(2).map(|k| h / strides[k]);
    let oldest = strides.len().checked_sub(3).map(|k| h / strides[k]);
    let weights = match (older, oldest) {
        (Some(older), Some(oldest)) => {
            let (near, far) = ([older, -older, 0.0], [0.0, oldest, -oldest]);
            let (r_0, r_1) = (1.0 / older, 1.0 / oldest);
            let bend: [f64; 3] = std::array::from_fn(|k| (near[k] - far[k]) / (r_0 + r_1));
            std::array::from_fn(|k| phi_2 * (near[k] + r_0 * bend[k]) - phi_3 * bend[k])
        }
        (Some(older), None) => [phi_2 * older, -phi_2 * older, 0.0],
        (None, _) => [0.0; 3],
    };
    let known = strides.len().min(3);
    Mix {
        sample: (-span).exp(),
        denoised: phi_1 + weights[0],
        remembered: weights[1..known].to_vec(),
        noise: to * phi_1.sqrt(),
        ..Mix::default()
    }
}
