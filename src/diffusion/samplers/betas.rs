//! The noise a checkpoint was trained with: betas and their cumulated products, in the reference's single precision.
//!
//! diffusers makes these tables with float32 tensors, and its pictures follow from the rounded numbers. So the roundings
//! are repeated here: which products are fused and which sums are kept in double precision is how PyTorch's CPU kernels
//! compute (`linspace` fuses, `cumprod` accumulates in double).

use super::Result;
use super::classes::Class;
use super::keys::Keys;

/// How betas grow over the timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BetaSchedule {
    Linear,
    ScaledLinear,
    /// The cosine schedule (Nichol and Dhariwal 2021, equation 17), capped at 0.999.
    SquaredCosCapV2,
}

/// What the file says of its betas.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct BetaTable {
    schedule: Option<BetaSchedule>,
    start: Option<f64>,
    end: Option<f64>,
    trained: Option<Vec<f32>>,
    count: usize,
    zero_terminal_snr: bool,
}

const BETA_SCHEDULES: &[(&str, BetaSchedule)] = &[
    ("linear", BetaSchedule::Linear),
    ("scaled_linear", BetaSchedule::ScaledLinear),
    ("squaredcos_cap_v2", BetaSchedule::SquaredCosCapV2),
];

impl BetaTable {
    pub(super) fn read(keys: &Keys, count: usize) -> Result<Self> {
        let share = |number: f64| number > 0.0 && number < 1.0;
        let trained = match keys.numbers("trained_betas")? {
            None => None,
            Some(trained) if trained.len() == count && trained.iter().all(|beta| share(*beta)) => {
                Some(trained.into_iter().map(|beta| beta as f32).collect())
            }
            Some(_) => {
                let supported = format!("null, or `num_train_timesteps` = {count} numbers between 0 and 1");
                return Err(keys.fault("trained_betas", &supported));
            }
        };
        let zero_terminal_snr = keys.flag("rescale_betas_zero_snr")?.unwrap_or(false);
        if zero_terminal_snr && count < 2 {
            return Err(keys.fault("rescale_betas_zero_snr", "false for a schedule of one timestep"));
        }
        Ok(Self {
            schedule: keys.word("beta_schedule", BETA_SCHEDULES)?,
            start: keys.number("beta_start", "a number between 0 and 1", share)?,
            end: keys.number("beta_end", "a number between 0 and 1", share)?,
            trained,
            count,
            zero_terminal_snr,
        })
    }

    /// Share of signal left at each timestep, as this class makes the table.
    pub(super) fn alphas_cumprod(&self, class: &Class) -> Vec<f32> {
        let (start, end) = (self.start.unwrap_or(class.beta_start), self.end.unwrap_or(class.beta_end));
        let betas = match &self.trained {
            Some(trained) => trained.clone(),
            None => betas(self.schedule(class), start, end, self.count),
        };
        alphas_cumprod(&if self.zero_terminal_snr(class) { rescale_zero_terminal_snr(&betas) } else { betas })
    }

    pub(super) fn schedule(&self, class: &Class) -> BetaSchedule {
        self.schedule.unwrap_or(class.beta_schedule)
    }

    pub(super) fn zero_terminal_snr(&self, class: &Class) -> bool {
        self.zero_terminal_snr && class.reads_zero_snr
    }
}

/// One beta a timestep.
fn betas(schedule: BetaSchedule, start: f64, end: f64, count: usize) -> Vec<f32> {
    match schedule {
        BetaSchedule::Linear => linspace(start as f32, end as f32, count),
        BetaSchedule::ScaledLinear => {
            linspace(start.sqrt() as f32, end.sqrt() as f32, count).into_iter().map(|root| root * root).collect()
        }
        BetaSchedule::SquaredCosCapV2 => {
            let alpha_bar = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::PI / 2.0).cos().powi(2);
            let at = |index: usize| alpha_bar(index as f64 / count as f64);
            (0..count).map(|index| (1.0 - at(index + 1) / at(index)).min(0.999) as f32).collect()
        }
    }
}

/// The share of signal left at each timestep: the running product of `1 - beta`.
fn alphas_cumprod(betas: &[f32]) -> Vec<f32> {
    let running = betas.iter().scan(1.0_f64, |product, &beta| {
        *product *= f64::from(1.0 - beta);
        Some(*product as f32)
    });
    running.collect()
}

/// Betas shifted so that nothing of the signal is left at the last timestep (Lin et al. 2023, algorithm 1).
fn rescale_zero_terminal_snr(betas: &[f32]) -> Vec<f32> {
    let mut roots: Vec<f32> = alphas_cumprod(betas).into_iter().map(f32::sqrt).collect();
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else {
        return Vec::new();
    };
    let scale = first / (first - last);
    for root in &mut roots {
        *root = (*root - last) * scale;
    }
    let mut before = 1.0_f32;
    let rescaled = roots.into_iter().map(|root| {
        let alpha_bar = root * root;
        let beta = 1.0 - alpha_bar / before;
        before = alpha_bar;
        beta
    });
    rescaled.collect()
}

/// `torch.linspace` in float32: from both ends to the middle.
fn linspace(start: f32, end: f32, count: usize) -> Vec<f32> {
    if count == 1 {
        return vec![start];
    }
    let step = (end - start) / (count as f32 - 1.0);
    let at = |index: usize| {
        if index < count / 2 {
            step.mul_add(index as f32, start)
        } else {
            (-step).mul_add((count - 1 - index) as f32, end)
        }
    };
    (0..count).map(at).collect()
}
