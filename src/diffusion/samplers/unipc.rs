//! UniPC, predictor and corrector with one evaluation a step (Zhao et al. 2023, algorithms 7 and 8); diffusers
//! `UniPCMultistepScheduler`: `solver_order` 1 to 3, `solver_type` bh1 or bh2, `disable_corrector`.
//!
//! An evaluation first corrects the sample it was made at, starting again from the corrected sample before it; the next
//! step is predicted from there. So what is held is the last corrected sample, and not the one the network saw.

use super::dpmpp_2m::{alpha_of, step, whole_timesteps};
use super::levels::Levels;
use super::training::FinalSigma;
use super::{Mix, PlanRequest, PlanStep, Result, SamplingPlan, TrainingSchedule};
use crate::domain::SigmaSchedule;

pub(super) fn plan(training: &TrainingSchedule, request: &PlanRequest) -> Result<SamplingPlan> {
    let count = request.steps as usize;
    let timesteps = whole_timesteps(training, count, training.num_train_timesteps());
    let levels = Levels::whole(training, request, timesteps);
    let last = match training.sigma_schedule(request.sigma_schedule) {
        // The reference repeats the last of the levels that are not the checkpoint's own.
        schedule if schedule != SigmaSchedule::Default && training.final_sigma == FinalSigma::SigmaMin => {
            levels.sigmas[count - 1]
        }
        _ => training.last_sigma(),
    };
    let levels = levels.ending_at(last);
    let lower = training.multistep.lower_order_final.unwrap_or(true);
    let order_at = |index: usize| {
        let most = training.multistep.order.min(request.age(index) + 1);
        if lower { most.min(count - index) } else { most }
    };
    let mut steps = Vec::with_capacity(count);
    for (index, (timestep, from, to)) in levels.steps().enumerate() {
        // Levels visited so far, the latest first.
        let visited: Vec<f64> = levels.sigmas[..=index].iter().rev().copied().collect();
        let corrects = request.age(index) > 0 && !training.disable_corrector.contains(&(index - 1));
        let corrected = if corrects {
            let rule = Rule::of(training, &visited[1..], from);
            rule.corrector(order_at(index - 1))
        } else {
            Mix::sample()
        };
        let next = Rule::of(training, &visited, to).predictor(order_at(index)).after(&corrected);
        steps.push(PlanStep {
            next,
            hold: Some(corrected),
            remember: Some(Mix::denoised()),
            ..step(training, timestep, from)
        });
    }
    Ok(SamplingPlan::new(1.0, steps))
}

/// The step from the first of `visited` to a level beyond, both corrector's and predictor's.
struct Rule<'a> {
    visited: &'a [f64],
    /// Stride of lambda = -ln sigma.
    h: f64,
    /// Weight of the sample the step starts from.
    kept: f64,
    alpha: f64,
    bh1: bool,
}

impl<'a> Rule<'a> {
    fn of(training: &TrainingSchedule, visited: &'a [f64], to: f64) -> Self {
        let (from, alpha) = (visited[0], alpha_of(to));
        let kept = to * alpha / (from * alpha_of(from));
        Self { visited, h: (from / to).ln(), kept, alpha, bh1: training.unipc_bh1 }
    }

    /// `1 - exp(-h)`, the whole weight of the denoised samples but for alpha.
    fn phi_1(&self) -> f64 {
        -(-self.h).exp_m1()
    }

    /// The scale B(h) of the corrections, as it stands in the update: positive.
    fn scale(&self) -> f64 {
        if self.bh1 { self.h } else { self.phi_1() }
    }

    /// Where the `k`-th sample before the start lies, in strides of this step: negative.
    fn place(&self, k: usize) -> f64 {
        (self.visited[0] / self.visited[k]).ln() / self.h
    }

    /// The system R, b that the weights of the corrections solve, for samples at these places.
    fn solve(&self, places: &[f64]) -> Vec<f64> {
        let hh = -self.h;
        let b_h = -self.scale();
        let (mut phi, mut factorial) = (hh.exp_m1() / hh - 1.0, 1.0);
        let mut rows = Vec::new();
        for power in 0..places.len() {
            let mut row: Vec<f64> = places.iter().map(|place| place.powi(power as i32)).collect();
            row.push(phi * factorial / b_h);
            rows.push(row);
            factorial *= (power + 2) as f64;
            phi = phi / hh - 1.0 / factorial;
        }
        solved(rows)
    }

    /// Weights of (this evaluation's denoised sample, those before it ...) of the predictor, and of the held start.
    fn predictor(&self, order: usize) -> Prediction {
        let places: Vec<f64> = (1..order).map(|k| self.place(k)).collect();
        // The reference takes one half for the second order.
        let rhos = if order == 2 { vec![0.5] } else { self.solve(&places) };
        let mut weights = vec![0.0; order];
        weights[0] = self.alpha * self.phi_1();
        for (k, (rho, place)) in rhos.iter().zip(&places).enumerate() {
            let weight = self.alpha * self.scale() * rho / place;
            weights[k + 1] += weight;
            weights[0] -= weight;
        }
        Prediction { start: self.kept, weights }
    }

    /// The corrected sample: the step to where this evaluation was made, now with its denoised sample. The start is held,
    /// and its denoised sample is the latest remembered one.
    fn corrector(&self, order: usize) -> Mix {
        let mut places: Vec<f64> = (1..order).map(|k| self.place(k)).collect();
        places.push(1.0);
        let rhos = if order == 1 { vec![0.5] } else { self.solve(&places) };
        let mut remembered = vec![0.0; order];
        remembered[0] = self.alpha * self.phi_1();
        for (k, (rho, place)) in rhos[..order - 1].iter().zip(&places).enumerate() {
            let weight = self.alpha * self.scale() * rho / place;
            remembered[k + 1] += weight;
            remembered[0] -= weight;
        }
        let denoised = self.alpha * self.scale() * rhos[order - 1];
        remembered[0] -= denoised;
        Mix { held: self.kept, denoised, remembered, ..Mix::default() }
    }
}

struct Prediction {
    start: f64,
    weights: Vec<f64>,
}

impl Prediction {
    /// The prediction from a start that is itself a mix.
    fn after(&self, start: &Mix) -> Mix {
        let older = self.weights.len() - 1;
        let mut remembered = vec![0.0; older.max(start.remembered.len())];
        for (k, weight) in start.remembered.iter().enumerate() {
            remembered[k] += self.start * weight;
        }
        for (k, weight) in self.weights[1..].iter().enumerate() {
            remembered[k] += weight;
        }
        Mix {
            sample: self.start * start.sample,
            held: self.start * start.held,
            denoised: self.start * start.denoised + self.weights[0],
            remembered,
            ..Mix::default()
        }
    }
}

/// Solves a linear system of up to three rows, each with its right-hand side at the end: Gauss with pivots. Not numbers where
/// it has no answer.
fn solved(mut rows: Vec<Vec<f64>>) -> Vec<f64> {
    let count = rows.len();
    for column in 0..count {
        let pivot = (column..count).max_by(|a, b| rows[*a][column].abs().total_cmp(&rows[*b][column].abs()));
        rows.swap(column, pivot.unwrap_or(column));
        let pivot_row = rows[column].clone();
        for (other, row) in rows.iter_mut().enumerate().filter(|(other, _)| *other != column) {
            let factor = row[column] / pivot_row[column];
            debug_assert_ne!(other, column);
            row.iter_mut().zip(&pivot_row).for_each(|(value, pivot)| *value -= factor * pivot);
        }
    }
    (0..count).map(|k| rows[k][count] / rows[k][k]).collect()
}
