//! The noise levels a request may ask for instead of the checkpoint's own spacing.
//!
//! `karras`, `exponential` and `beta` are diffusers' `use_karras_sigmas`, `use_exponential_sigmas` and `use_beta_sigmas`:
//! a curve between two ends, which each class takes from levels of its own. The others are ComfyUI's of the same names
//! (comfy/samplers.py, and comfy_extras/nodes_align_your_steps.py): picked from the training schedule, or a curve from
//! its noisiest level. What follows the last level is the sampler's own business, 0 for most.

use super::TrainingSchedule;
use super::beta_distribution::beta_quantile;
use super::levels::{interpolated, linspace};
use crate::domain::SigmaSchedule;

/// The least and the largest level of a curve.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) smallest: f64,
    pub(super) largest: f64,
}

impl TrainingSchedule {
    /// So many levels, falling; `None` for the checkpoint's own.
    pub(super) fn scheduled(&self, schedule: SigmaSchedule, ends: Ends, steps: usize) -> Option<Vec<f64>> {
        let table = self.sigmas();
        let bounded = self.bounded(schedule, ends);
        Some(match schedule {
            SigmaSchedule::Default => return None,
            SigmaSchedule::Karras => karras(bounded, steps),
            SigmaSchedule::Exponential => exponential(bounded, steps),
            SigmaSchedule::Beta => beta(bounded, steps),
            SigmaSchedule::Simple => simple(&table, steps),
            SigmaSchedule::SgmUniform => sgm_uniform(&table, steps),
            SigmaSchedule::DdimUniform => ddim_uniform(&table, steps),
            SigmaSchedule::KlOptimal => kl_optimal(whole(&table), steps),
            SigmaSchedule::LinearQuadratic => linear_quadratic(whole(&table).largest, steps),
            SigmaSchedule::AlignYourSteps => align_your_steps(steps),
        })
    }

    /// The ends, or what the file has in their place: `sigma_min` and `sigma_max`.
    fn bounded(&self, schedule: SigmaSchedule, ends: Ends) -> Ends {
        if schedule == SigmaSchedule::Karras && !self.class().karras_minds_bounds {
            return ends;
        }
        Ends { smallest: self.sigma_min.unwrap_or(ends.smallest), largest: self.sigma_max.unwrap_or(ends.largest) }
    }
}

/// The ends of a table, which has at least one entry.
pub(super) fn whole(table: &[f64]) -> Ends {
    Ends { smallest: table[0], largest: table[table.len() - 1] }
}

/// Karras et al. 2022, equation 5, with rho = 7.
fn karras(ends: Ends, steps: usize) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (low, high) = (ends.smallest.powf(1.0 / RHO), ends.largest.powf(1.0 / RHO));
    linspace(0.0, 1.0, steps).into_iter().map(|ramp| (high + ramp * (low - high)).powf(RHO)).collect()
}

/// Equal strides of the logarithm.
fn exponential(ends: Ends, steps: usize) -> Vec<f64> {
    linspace(ends.largest.ln(), ends.smallest.ln(), steps).into_iter().map(f64::exp).collect()
}

/// Quantiles of the beta distribution B(0.6, 0.6) (Lee et al. 2024, "Beta Sampling is All You Need"), which crowd at both
/// ends. diffusers spreads the levels themselves so; ComfyUI's schedule of this name spreads the timesteps.
fn beta(ends: Ends, steps: usize) -> Vec<f64> {
    let share = |ramp: f64| beta_quantile(1.0 - ramp);
    let level = |ramp: f64| ends.smallest + share(ramp) * (ends.largest - ends.smallest);
    linspace(0.0, 1.0, steps).into_iter().map(level).collect()
}

/// Entries of the table at equal strides from its noisiest one.
fn simple(table: &[f64], steps: usize) -> Vec<f64> {
    let stride = table.len() as f64 / steps as f64;
    (0..steps).map(|index| table[table.len() - 1 - (index as f64 * stride) as usize]).collect()
}

/// Equal strides of the timestep from the last one, of which the one that ends at timestep 0 is left out.
fn sgm_uniform(table: &[f64], steps: usize) -> Vec<f64> {
    let log_sigmas: Vec<f64> = table.iter().map(|sigma| sigma.ln()).collect();
    let timesteps = linspace(table.len() as f64 - 1.0, 0.0, steps + 1);
    timesteps.into_iter().take(steps).map(|timestep| interpolated(&log_sigmas, timestep).exp()).collect()
}

/// Entries 1, 1 + k, 1 + 2k ... of the table. ComfyUI visits all of them, which for step counts that do not divide the
/// table is more than were asked for; here the noisiest of those are left out, as DDIM's own `leading` spacing does.
fn ddim_uniform(table: &[f64], steps: usize) -> Vec<f64> {
    let stride = (table.len() / steps).max(1);
    (0..steps).rev().map(|index| table[(1 + index * stride).min(table.len() - 1)]).collect()
}

/// Equal strides of the angle whose tangent is sigma (Sabour et al. 2024, "Align Your Steps", section 3.1).
fn kl_optimal(ends: Ends, steps: usize) -> Vec<f64> {
    let (low, high) = (ends.smallest.atan(), ends.largest.atan());
    linspace(0.0, 1.0, steps).into_iter().map(|ramp| (ramp * low + (1.0 - ramp) * high).tan()).collect()
}

/// Half of the steps go down linearly, by a fortieth of the whole way; the others quadratically, down to 0 (Mochi's schedule).
fn linear_quadratic(largest: f64, steps: usize) -> Vec<f64> {
    /// Share of the way that the linear half goes.
    const THRESHOLD: f64 = 0.025;

    let linear = steps / 2;
    if linear == 0 {
        return vec![largest; steps];
    }
    let (first, all) = (linear as f64, steps as f64);
    let (rest, missing) = (all - first, first - THRESHOLD * all);
    let bend = missing / (first * rest * rest);
    let slope = THRESHOLD / first - 2.0 * missing / (rest * rest);
    let gone = |index: usize| {
        let at = index as f64;
        if index < linear { at * THRESHOLD / first } else { bend * at * at + slope * at + bend * first * first }
    };
    (0..steps).map(|index| (1.0 - gone(index)) * largest).collect()
}

/// Levels optimised for Stable Diffusion 1.x in ten steps (Sabour et al. 2024, "Align Your Steps": the table of
/// research.nvidia.com/labs/toronto-ai/AlignYourSteps/howto.html); other step counts interpolate their logarithms.
fn align_your_steps(steps: usize) -> Vec<f64> {
    const LEVELS: [f64; 11] = [
        14.614_641_229_3,
        6.474_576_095_6,
        3.863_674_598_5,
        2.694_615_152_0,
        1.884_192_117_7,
        1.394_380_509_2,
        0.964_258_390_4,
        0.652_368_601_6,
        0.397_745_627_2,
        0.151_523_266_2,
        0.029_167_158_2,
    ];
    let logarithms = LEVELS.map(f64::ln);
    let last = (LEVELS.len() - 1) as f64;
    // The last of these stands for what follows the last step.
    let places = linspace(0.0, last, steps + 1);
    places.into_iter().take(steps).map(|place| interpolated(&logarithms, place).exp()).collect()
}
