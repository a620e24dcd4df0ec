//! Linear multistep (Adams-Bashforth of order up to 4 over sigma, with uneven strides); k-diffusion `sample_lms`, diffusers
//! `LMSDiscreteScheduler`.

use super::euler::{init_noise_sigma, step};
use super::levels::Levels;
use super::{Mix, PlanRequest, PlanStep, Result, SamplingPlan, TrainingSchedule};

/// Most slopes that a step combines.
const ORDER: usize = 4;

pub(super) fn plan(training: &TrainingSchedule, request: &PlanRequest) -> Result<SamplingPlan> {
    let levels = Levels::fractional(training, request).ending_at(0.0);
    let rule = |(index, (timestep, from, _)): (usize, (f64, f64, f64))| {
        let order = ORDER.min(index + 1);
        // This level and the ones before it, the latest first.
        let visited: Vec<f64> = (0..order).map(|back| levels.sigmas[index - back]).collect();
        let weights: Vec<f64> = (0..order).map(|k| integral(&visited, k, levels.sigmas[index + 1])).collect();
        // The slope: (x - denoised) / sigma.
        let slope = |weight: f64| Mix { sample: weight / from, denoised: -weight / from, ..Mix::default() };
        let now = slope(weights[0]);
        // A run that begins late has the weights of the slopes it lacks, but not those slopes: as in the reference.
        let remembered = weights[1..].iter().take(request.age(index)).copied().collect();
        PlanStep {
            next: Mix { sample: 1.0 + now.sample, remembered, ..now },
            remember: Some(slope(1.0)),
            ..step(training, timestep, from)
        }
    };
    let steps = levels.steps().enumerate().map(rule).collect();
    Ok(SamplingPlan::new(init_noise_sigma(training, &levels), steps))
}

/// Integral of the `k`-th Lagrange polynomial through `visited` from the first of them to `to`. It is a cubic at most, for
/// which Gauss' rule of two points is exact (the reference integrates numerically, to single precision).
fn integral(visited: &[f64], k: usize, to: f64) -> f64 {
    let (middle, half) = (0.5 * (visited[0] + to), 0.5 * (to - visited[0]));
    let offset = half / 3.0_f64.sqrt();
    let polynomial = |sigma: f64| -> f64 {
        let others = visited.iter().enumerate().filter(|(j, _)| *j != k);
        others.map(|(_, other)| (sigma - other) / (visited[k] - other)).product()
    };
    half * (polynomial(middle - offset) + polynomial(middle + offset))
}
