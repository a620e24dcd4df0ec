//! DPM-Solver++ (2M) (Lu et al. 2022, algorithm 2) and its stochastic form; diffusers `DPMSolverMultistepScheduler`, for
//! `dpmpp_2m_sde` with `algorithm_type="sde-dpmsolver++"`.
//!
//! The class's options in `scheduler_config.json` are honoured: `solver_order` 1 to 3, `solver_type`, the stochastic
//! `sde-dpmsolver++`, and when to fall back to lower orders at the end.

use super::levels::{Levels, linspace};
use super::training::{Correction, FinalSigma, Multistep};
use super::{Mix, Noised, PlanRequest, PlanStep, Result, SamplingPlan, TimestepSpacing, TrainingSchedule};
use crate::domain::SamplerKind;

pub(super) fn plan(training: &TrainingSchedule, request: &PlanRequest) -> Result<SamplingPlan> {
    let count = request.steps as usize;
    let timesteps = whole_timesteps(training, count, least_clipped(training));
    let levels = Levels::whole(training, request, timesteps).ending_at(training.last_sigma());
    let mut options = training.multistep;
    options.stochastic |= request.kind == SamplerKind::DpmPp2mSde;
    let mut steps = Vec::with_capacity(count);
    for index in 0..count {
        let order = order_at(training, index, count).min(request.age(index) + 1);
        // The levels that matter: where the step leads, where it stands, and where the older denoised samples stood.
        let mut visited = [levels.sigmas[index + 1], levels.sigmas[index], 0.0, 0.0];
        for back in 1..order {
            visited[1 + back] = levels.sigmas[index - back];
        }
        let at = step(training, levels.timesteps[index], levels.sigmas[index]);
        steps.push(Weights::of(&options, order, visited).on(at));
    }
    Ok(SamplingPlan::new(1.0, steps))
}

/// A step of unit-variance latents that does nothing yet.
pub(super) fn step(training: &TrainingSchedule, timestep: f64, sigma: f64) -> PlanStep {
    let alpha = alpha_of(sigma);
    let noised = Noised { signal: alpha, noise: sigma * alpha };
    PlanStep::at(timestep, sigma, noised, training.prediction_type.denoised_vp(alpha, sigma * alpha))
}

/// How many timesteps `lambda_min_clipped` leaves, which cuts the noisiest ones off: lambda is -ln sigma, and falls with
/// the timestep.
pub(super) fn least_clipped(training: &TrainingSchedule) -> usize {
    let table = training.sigmas();
    let least = training.multistep.lambda_min_clipped;
    table.len() - table.iter().rev().take_while(|sigma| -sigma.ln() < least).count()
}

/// Whole timesteps below `last`: one more than asked for, with the last one dropped.
pub(super) fn whole_timesteps(training: &TrainingSchedule, count: usize, last: usize) -> Vec<f64> {
    let train = training.num_train_timesteps();
    let offset = training.steps_offset() as f64;
    match training.sigma_spacing() {
        TimestepSpacing::Linspace => linspace_timesteps(count, last),
        TimestepSpacing::Leading => {
            let ratio = last / (count + 1);
            (1..=count).rev().map(|index| (index * ratio) as f64 + offset).collect()
        }
        TimestepSpacing::Trailing => {
            let stride = (last as f64 - train as f64 / count as f64) - last as f64;
            (0..count).map(|index| (last as f64 + index as f64 * stride).round_ties_even() - 1.0).collect()
        }
    }
}

pub(super) fn linspace_timesteps(count: usize, last: usize) -> Vec<f64> {
    let all = linspace(0.0, last as f64 - 1.0, count + 1);
    all.into_iter().skip(1).rev().map(f64::round_ties_even).collect()
}

/// How many denoised samples a step may combine; in the first steps there are fewer.
fn order_at(training: &TrainingSchedule, index: usize, count: usize) -> usize {
    /// Below this many steps the reference takes lower orders at the end, for stability.
    const FEW_STEPS: usize = 15;

    let options = &training.multistep;
    let careful = options.lower_order_final.unwrap_or(true) && count < FEW_STEPS;
    let from_the_end = count - 1 - index;
    let most = match from_the_end {
        0 if options.euler_at_final || careful || training.final_sigma == FinalSigma::Zero => 1,
        1 if careful => 2,
        _ => 3,
    };
    most.min(options.order)
}

/// `x' = sample * x + sum_k denoised[k] * denoised_of_k_steps_ago + noise * n`.
struct Weights {
    sample: f64,
    denoised: [f64; 3],
    noise: f64,
    order: usize,
}

impl Weights {
    /// `sigmas`: where the step leads, where it stands, and the `order - 1` levels before.
    fn of(options: &Multistep, order: usize, sigmas: [f64; 4]) -> Self {
        let [to, from, before, long_before] = sigmas;
        let lambda = |sigma: f64| -sigma.ln();
        let alpha = alpha_of(to);
        // Infinite where the step leads to no noise at all; only first-order steps do.
        let h = lambda(to) - lambda(from);
        // The stochastic rule takes the deterministic one's step twice as long and replaces noise by fresh noise.
        let span = if options.stochastic { 2.0 * h } else { h };
        let decay = (-span).exp();
        let phi_1 = -(-span).exp_m1();
        let kept = to * alpha / (from * alpha_of(from)) * if options.stochastic { (-h).exp() } else { 1.0 };
        let noise = if options.stochastic { to * alpha * phi_1.sqrt() } else { 0.0 };

        // Newton's divided differences of the denoised samples over lambda, as weights of the samples themselves.
        let mut denoised = [alpha * phi_1, 0.0, 0.0];
        if order >= 2 {
            let h_0 = lambda(from) - lambda(before);
            let slope = [h / h_0, -h / h_0, 0.0];
            if order == 2 {
                let weight = match options.correction {
                    Correction::Midpoint => 0.5 * alpha * phi_1,
                    Correction::Heun => alpha * (1.0 - phi_1 / span),
                };
                add(&mut denoised, weight, slope);
            } else {
                let h_1 = lambda(before) - lambda(long_before);
                let older = [0.0, h / h_1, -h / h_1];
                let bend = std::array::from_fn(|k| (slope[k] - older[k]) * h / (h_0 + h_1));
                let first = std::array::from_fn(|k| slope[k] + (slope[k] - older[k]) * h_0 / (h_0 + h_1));
                add(&mut denoised, alpha * (1.0 - phi_1 / span), first);
                let third = if options.stochastic { 1.0 - decay - span } else { decay - 1.0 + span };
                let sign = if options.stochastic { 1.0 } else { -1.0 };
                add(&mut denoised, sign * alpha * (third / (span * span) - 0.5), bend);
            }
        }
        Self { sample: kept, denoised, noise, order }
    }

    fn on(self, step: PlanStep) -> PlanStep {
        PlanStep {
            next: Mix {
                sample: self.sample,
                denoised: self.denoised[0],
                remembered: self.denoised[1..self.order].to_vec(),
                noise: self.noise,
                ..Mix::default()
            },
            remember: Some(Mix::denoised()),
            ..step
        }
    }
}

fn add(total: &mut [f64; 3], weight: f64, weights: [f64; 3]) {
    for (sum, part) in total.iter_mut().zip(weights) {
        *sum += weight * part;
    }
}

/// Share of the picture in unit-variance latents whose noise is `sigma` times as large.
pub(super) fn alpha_of(sigma: f64) -> f64 {
    1.0 / (sigma * sigma + 1.0).sqrt()
}
