//! Which noise levels a sampler visits: timestep spacing, and where the levels of a sigma schedule lie.

use super::betas::BetaSchedule;
use super::schedules::{Ends, whole};
use super::training::FinalSigma;
use super::{PlanRequest, TrainingSchedule};
use crate::domain::SigmaSchedule;

/// How timesteps are spread over the training schedule (Lin et al. 2023, table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestepSpacing {
    /// Every k-th from 0, with `steps_offset` added; the last training timestep is not visited.
    Leading,
    /// Every k-th from the last one.
    Trailing,
    /// Evenly from the last to the first.
    Linspace,
}

/// Levels of a sampler that thinks in sigmas.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Levels {
    /// One a step.
    pub(super) timesteps: Vec<f64>,
    /// One a step, and the one after the last.
    pub(super) sigmas: Vec<f64>,
}

impl Levels {
    /// Of a sampler whose latents are `x0 + sigma * n` (`EulerDiscreteScheduler` and its kin), the last level still
    /// missing; timesteps may be fractional. A sigma schedule's curve runs between the first and the last spaced level.
    pub(super) fn fractional(training: &TrainingSchedule, request: &PlanRequest) -> Self {
        let spaced = Self::spaced(training, request.steps as usize);
        let schedule = training.sigma_schedule(request.sigma_schedule);
        // At least one step, so both ends exist.
        let ends = Ends { largest: spaced.sigmas[0], smallest: spaced.sigmas[spaced.sigmas.len() - 1] };
        let Some(sigmas) = training.scheduled(schedule, ends, request.steps as usize) else { return spaced };
        let log_sigmas = log_table(&training.sigmas());
        let timesteps = sigmas.iter().map(|&sigma| timestep_of(sigma, &log_sigmas)).collect();
        Self { timesteps, sigmas }
    }

    /// Of a sampler whose latents keep unit variance and whose timesteps are whole (`DPMSolverMultistepScheduler` and its
    /// kin), the last level still missing: by spacing, or by a sigma schedule whose curve runs over the whole table.
    pub(super) fn whole(training: &TrainingSchedule, request: &PlanRequest, spaced: Vec<f64>) -> Self {
        let table = training.sigmas();
        let schedule = training.sigma_schedule(request.sigma_schedule);
        let Some(sigmas) = training.scheduled(schedule, whole(&table), request.steps as usize) else {
            let sigmas = spaced.iter().map(|&timestep| interpolated(&table, timestep)).collect();
            return Self { timesteps: spaced, sigmas };
        };
        let log_sigmas = log_table(&table);
        let timesteps = sigmas.iter().map(|&sigma| training.whole_timestep(schedule, timestep_of(sigma, &log_sigmas)));
        Self { timesteps: timesteps.collect(), sigmas }
    }

    /// By the checkpoint's spacing, which is `linspace` when the file is silent.
    fn spaced(training: &TrainingSchedule, steps: usize) -> Self {
        let table = training.sigmas();
        let timesteps = training.sigma_spacing().timesteps(table.len(), steps, training.steps_offset());
        // Rounded in the reference before the sigmas are looked up.
        let exact = training.class().double_timesteps;
        let rounded = |timestep: f64| if exact { timestep } else { f64::from(timestep as f32) };
        let timesteps: Vec<f64> = timesteps.into_iter().map(rounded).collect();
        let sigmas = timesteps.iter().map(|&timestep| interpolated(&table, timestep)).collect();
        Self { timesteps, sigmas }
    }

    /// Adds the level after the last step.
    pub(super) fn ending_at(mut self, last: f64) -> Self {
        self.sigmas.push(last);
        self
    }

    /// (timestep, sigma before, sigma after) of each step.
    pub(super) fn steps(&self) -> impl Iterator<Item = (f64, f64, f64)> {
        let pairs = self.sigmas.iter().zip(self.sigmas.iter().skip(1));
        self.timesteps.iter().zip(pairs).map(|(&timestep, (&from, &to))| (timestep, from, to))
    }
}

impl TimestepSpacing {
    /// Timesteps from the noisiest down, by numpy's arithmetic; `linspace` gives fractions.
    pub(super) fn timesteps(self, train: usize, steps: usize, offset: usize) -> Vec<f64> {
        let trained = train as f64;
        match self {
            Self::Leading => {
                let ratio = train / steps;
                (0..steps).rev().map(|index| (index * ratio + offset) as f64).collect()
            }
            // The reference asks numpy for an open-ended range, which for some counts (61 steps of 1000, say) has one
            // entry more for a rounding error, at timestep -1; we take the steps that were asked for.
            Self::Trailing => {
                let stride = (trained - trained / steps as f64) - trained;
                (0..steps).map(|index| (trained + index as f64 * stride).round_ties_even() - 1.0).collect()
            }
            Self::Linspace => linspace(0.0, trained - 1.0, steps).into_iter().rev().collect(),
        }
    }
}

impl TrainingSchedule {
    /// The spacing of classes whose default is `linspace`.
    pub(super) fn sigma_spacing(&self) -> TimestepSpacing {
        self.timestep_spacing.unwrap_or(TimestepSpacing::Linspace)
    }

    /// Sigma of each training timestep, as the classes that think in sigmas see it: with zero terminal SNR the last
    /// share of signal is 2^-24 instead of 0, so that sigma is about 4096 and not infinite.
    pub(super) fn sigmas(&self) -> Vec<f64> {
        let mut alphas: Vec<f64> = self.alphas_cumprod.iter().map(|&alpha| f64::from(alpha)).collect();
        if self.zero_terminal_snr()
            && let Some(last) = alphas.last_mut()
        {
            *last = LEAST_ALPHA_CUMPROD;
        }
        alphas.into_iter().map(sigma_of).collect()
    }

    /// The level after the last step, for the classes that read `final_sigmas_type`.
    pub(super) fn last_sigma(&self) -> f64 {
        match self.final_sigma {
            FinalSigma::Zero => 0.0,
            FinalSigma::SigmaMin => self.alphas_cumprod.first().map_or(0.0, |&alpha| sigma_of(f64::from(alpha))),
        }
    }

    /// How the classes with whole timesteps round those of a sigma schedule: exponential and beta levels down, others to
    /// the nearest, except Karras' with the cosine schedule in `DPMSolverMultistepScheduler`.
    fn whole_timestep(&self, schedule: SigmaSchedule, timestep: f64) -> f64 {
        let down = match schedule {
            SigmaSchedule::Exponential | SigmaSchedule::Beta => true,
            SigmaSchedule::Karras => {
                self.class().truncates_cosine && self.beta_schedule() == BetaSchedule::SquaredCosCapV2
            }
            _ => false,
        };
        if down { timestep.trunc() } else { timestep.round_ties_even() }
    }
}

/// Stands for no signal where a finite sigma is needed; float16's smallest number, as in the reference.
const LEAST_ALPHA_CUMPROD: f64 = 1.0 / 16_777_216.0;

/// Sigma of `x0 + sigma * n` where `alpha_cumprod` of the signal is left.
pub(super) fn sigma_of(alpha_cumprod: f64) -> f64 {
    ((1.0 - alpha_cumprod) / alpha_cumprod).sqrt()
}

/// The same, finite where nothing is left.
pub(super) fn finite_sigma_of(alpha_cumprod: f64) -> f64 {
    sigma_of(if alpha_cumprod > 0.0 { alpha_cumprod } else { LEAST_ALPHA_CUMPROD })
}

/// Logarithms with the roundings of the reference's float32 table: a timestep that is whole but for such a rounding is
/// rounded to the same side.
pub(super) fn log_table(sigmas: &[f64]) -> Vec<f64> {
    sigmas.iter().map(|&sigma| f64::from(f64::from(sigma as f32).ln() as f32)).collect()
}

/// `numpy.linspace`.
pub(super) fn linspace(start: f64, stop: f64, count: usize) -> Vec<f64> {
    if count < 2 {
        return vec![start; count];
    }
    let step = (stop - start) / (count - 1) as f64;
    let mut values: Vec<f64> = (0..count).map(|index| index as f64 * step + start).collect();
    values[count - 1] = stop;
    values
}

/// `numpy.interp` of a table at its indices; beyond either end the end's value.
pub(super) fn interpolated(table: &[f64], index: f64) -> f64 {
    let last = table.len() - 1;
    if index >= last as f64 {
        return table[last];
    }
    let low = index.max(0.0).floor();
    let at = low as usize;
    (table[at + 1] - table[at]) * (index.max(0.0) - low) + table[at]
}

/// The (fractional) timestep of a sigma, by its logarithm; the reference's `_sigma_to_t`.
pub(super) fn timestep_of(sigma: f64, log_sigmas: &[f64]) -> f64 {
    if log_sigmas.len() < 2 {
        return 0.0;
    }
    let log_sigma = sigma.max(1e-10).ln();
    let below = log_sigmas.partition_point(|&level| level <= log_sigma);
    let low = below.saturating_sub(1).min(log_sigmas.len() - 2);
    let share = (log_sigmas[low] - log_sigma) / (log_sigmas[low] - log_sigmas[low + 1]);
    let share = share.clamp(0.0, 1.0);
    (1.0 - share) * low as f64 + share * (low + 1) as f64
}

/// One step of a sampler whose latents keep unit variance, `x = sqrt(a) * x0 + sqrt(1 - a) * n`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct VpStep {
    pub(super) timestep: f64,
    /// `a` before the step; 0 with zero terminal SNR.
    pub(super) from: f64,
    /// `a` after it; 1 where nothing is left of the noise.
    pub(super) to: f64,
}

impl VpStep {
    /// The levels of a sigma schedule for these samplers, down to no noise; `None` for the checkpoint's own. Their classes
    /// have no such option: the levels are those of `EulerDiscreteScheduler`.
    pub(super) fn scheduled(training: &TrainingSchedule, request: &PlanRequest) -> Option<Vec<Self>> {
        if training.sigma_schedule(request.sigma_schedule) == SigmaSchedule::Default {
            return None;
        }
        let share = |sigma: f64| 1.0 / (sigma * sigma + 1.0);
        let levels = Levels::fractional(training, request).ending_at(0.0);
        Some(levels.steps().map(|(timestep, from, to)| Self { timestep, from: share(from), to: share(to) }).collect())
    }

    /// Whole timesteps of the classes whose default spacing is `leading`, or `None` where one lies beyond the schedule.
    pub(super) fn whole_timesteps(training: &TrainingSchedule, steps: usize) -> Result<Vec<usize>, usize> {
        let spacing = training.timestep_spacing.unwrap_or(TimestepSpacing::Leading);
        let train = training.num_train_timesteps();
        let timesteps = spacing.timesteps(train, steps, training.steps_offset());
        let timesteps = timesteps.into_iter().map(|timestep| match timestep.round_ties_even() as usize {
            inside if inside < train => Ok(inside),
            beyond => Err(beyond),
        });
        timesteps.collect()
    }
}
