//! DEIS, log-rho multistep (Zhang and Chen 2023, section 3); diffusers `DEISMultistepScheduler`, `solver_order` 1 to 3.
//!
//! As there, the last step leads to the first training timestep's level and not to 0; with Karras', exponential and beta
//! levels it stands still, since the reference repeats the last of them.

use super::dpmpp_2m::{alpha_of, step, whole_timesteps};
use super::levels::Levels;
use super::{Mix, PlanRequest, PlanStep, Result, SamplingPlan, TrainingSchedule};
use crate::domain::SigmaSchedule;

pub(super) fn plan(training: &TrainingSchedule, request: &PlanRequest) -> Result<SamplingPlan> {
    let count = request.steps as usize;
    let timesteps = whole_timesteps(training, count, training.num_train_timesteps());
    let levels = Levels::whole(training, request, timesteps);
    let last = match training.sigma_schedule(request.sigma_schedule) {
        SigmaSchedule::Karras | SigmaSchedule::Exponential | SigmaSchedule::Beta => levels.sigmas[count - 1],
        _ => training.sigmas()[0],
    };
    let levels = levels.ending_at(last);
    let rule = |(index, (timestep, from, to)): (usize, (f64, f64, f64))| {
        let order = order_at(training, index, count).min(request.age(index) + 1);
        let visited: Vec<f64> = (0..order).map(|back| levels.sigmas[index - back]).collect();
        let weights = weights(&visited, to);
        // The noise in x: (x - alpha * denoised) / (alpha * sigma).
        let (alpha, alpha_to) = (alpha_of(from), alpha_of(to));
        let noise = |weight: f64| Mix { sample: weight / (alpha * from), denoised: -weight / from, ..Mix::default() };
        let now = noise(alpha_to * weights[0]);
        PlanStep {
            next: Mix {
                sample: alpha_to / alpha + now.sample,
                remembered: weights[1..].iter().map(|weight| alpha_to * weight).collect(),
                ..now
            },
            remember: Some(noise(1.0)),
            ..step(training, timestep, from)
        }
    };
    let steps = levels.steps().enumerate().map(rule).collect();
    Ok(SamplingPlan::new(1.0, steps))
}

/// How many predictions of the noise a step may combine; in the first steps there are fewer.
fn order_at(training: &TrainingSchedule, index: usize, count: usize) -> usize {
    /// Below this many steps the reference takes lower orders at the end, for stability.
    const FEW_STEPS: usize = 15;

    let careful = training.multistep.lower_order_final.unwrap_or(true) && count < FEW_STEPS;
    let most = if careful { count - index } else { 3 };
    most.min(training.multistep.order)
}

/// Integrals over sigma, from the first of `visited` to `to`, of the Lagrange polynomials in log sigma through `visited`.
///
/// In units of the first level: the differences below are of the order of a step squared (1e-8 among hundreds of steps), and
/// the logarithms of large levels would round them a hundred times as much.
fn weights(visited: &[f64], to: f64) -> Vec<f64> {
    let from = visited[0];
    let logs: Vec<f64> = visited.iter().map(|sigma| (sigma / from).ln()).collect();
    let weight = |k: usize| {
        let others: Vec<f64> = (0..logs.len()).filter(|j| *j != k).map(|j| logs[j]).collect();
        let scale: f64 = others.iter().map(|other| logs[k] - other).product();
        from * (antiderivative(&others, to / from) - antiderivative(&others, 1.0)) / scale
    };
    (0..visited.len()).map(weight).collect()
}

/// Of the product of `ln(sigma) - r` over `roots`, of which there are two at most.
fn antiderivative(roots: &[f64], sigma: f64) -> f64 {
    let log = sigma.ln();
    match roots {
        [] => sigma,
        [r] => sigma * (log - 1.0 - r),
        [r, s] => sigma * (log * log - 2.0 * log + 2.0 - (r + s) * (log - 1.0) + r * s),
        _ => unreachable!("the order is 3 at most. This is a bug in samplers."),
    }
}
