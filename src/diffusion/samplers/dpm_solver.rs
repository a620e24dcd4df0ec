//! DPM-Solver++, singlestep (Lu et al. 2022, algorithm 1 and its third-order kin); diffusers
//! `DPMSolverSinglestepScheduler`, `solver_order` 1 to 3 (2 when the file is silent), `solver_type`, deterministic or
//! `sde-dpmsolver++`.
//!
//! A group of steps starts at one held sample: its first step is of first order, its second of second, its third of
//! third. One evaluation a step. The class knows no `timestep_spacing`: it is always `linspace`.

use super::dpmpp_2m::{alpha_of, least_clipped, linspace_timesteps, step};
use super::levels::Levels;
use super::training::{Correction, FinalSigma};
use super::{Mix, PlanRequest, PlanStep, Result, SamplingPlan, TrainingSchedule};

pub(super) fn plan(training: &TrainingSchedule, request: &PlanRequest) -> Result<SamplingPlan> {
    let count = request.steps as usize;
    let timesteps = linspace_timesteps(count, least_clipped(training));
    let levels = Levels::whole(training, request, timesteps).ending_at(training.last_sigma());
    let orders = orders(training, count);
    let mut steps = Vec::with_capacity(count);
    for (index, (timestep, from, to)) in levels.steps().enumerate() {
        let order = orders[index].min(request.age(index) + 1);
        // Where the step leads, where its group starts, and the group's other levels in the order they were visited.
        let visited = &levels.sigmas[index + 1 - order..=index];
        let at = step(training, timestep, from);
        let mut next = mix(training, visited, to);
        if order == 1 {
            next.sample = std::mem::take(&mut next.held);
        }
        let hold = (order == 1).then(Mix::sample);
        steps.push(PlanStep { next, hold, remember: Some(Mix::denoised()), ..at });
    }
    Ok(SamplingPlan::new(1.0, steps))
}

/// The order of each step, as the reference lists them.
fn orders(training: &TrainingSchedule, count: usize) -> Vec<usize> {
    let most = training.multistep.order;
    let ends_clean = training.final_sigma == FinalSigma::Zero;
    let lower = training.multistep.lower_order_final.unwrap_or(false) || !count.is_multiple_of(most) || ends_clean;
    let mut orders: Vec<usize> = (0..count).map(|index| index % most + 1).collect();
    if lower && most > 1 {
        // The last step is of first order; where that would cut a whole group of three, so is the start of the new one.
        orders[count - 1] = if most == 3 && count % 3 == 2 { 2 } else { 1 };
    }
    if ends_clean {
        orders[count - 1] = 1;
    }
    orders
}

/// The step from `visited[0]` to `to`, with the denoised samples at all of `visited` (the last one is this evaluation's).
fn mix(training: &TrainingSchedule, visited: &[f64], to: f64) -> Mix {
    let options = &training.multistep;
    let start = visited[0];
    let (alpha, alpha_start) = (alpha_of(to), alpha_of(start));
    // Infinite where the step leads to no noise at all; only first-order steps do.
    let h = (start / to).ln();
    let span = if options.stochastic { 2.0 * h } else { h };
    let phi_1 = -(-span).exp_m1();
    let phi_2 = 1.0 - phi_1 / span;
    // Differences from the start's denoised sample, over their share of the step, as weights of those samples.
    let share = |k: usize| (start / visited[k]).ln() / h;
    let mut weights = vec![0.0; visited.len()];
    let mut difference = |weight: f64, k: usize| {
        weights[k] += weight / share(k);
        weights[0] -= weight / share(k);
    };
    match (visited.len(), options.correction) {
        (1, _) => {}
        (2, Correction::Midpoint) => difference(0.5 * phi_1, 1),
        (2, Correction::Heun) => difference(phi_2, 1),
        (_, Correction::Midpoint) => difference(phi_2, 2),
        (_, Correction::Heun) => {
            let (near, far) = (share(1), share(2));
            let third = 2.0 * third_order(options.stochastic, span) / (far - near);
            difference(phi_2 * far / (far - near) - third, 1);
            difference(third - phi_2 * near / (far - near), 2);
        }
    }
    weights[0] += phi_1;
    let newest = visited.len() - 1;
    Mix {
        held: to * alpha / (start * alpha_start) * if options.stochastic { (-h).exp() } else { 1.0 },
        denoised: alpha * weights[newest],
        remembered: weights[..newest].iter().rev().map(|weight| alpha * weight).collect(),
        noise: if options.stochastic { to * alpha * phi_1.sqrt() } else { 0.0 },
        ..Mix::default()
    }
}

/// Weight of the second difference; the stochastic form's sign is the reference's own.
fn third_order(stochastic: bool, span: f64) -> f64 {
    let decay = (-span).exp();
    if stochastic { (1.0 - decay - span) / (span * span) - 0.5 } else { 0.5 - (decay - 1.0 + span) / (span * span) }
}
