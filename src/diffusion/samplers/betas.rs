//! The noise a checkpoint was trained with: betas and their cumulated products, in the reference's single precision.
//!
//! diffusers makes these tables with float32 tensors, and its pictures follow from the rounded numbers. So the roundings
//! are repeated here: which products are fused and which sums are kept in double precision is how PyTorch's CPU kernels
//! compute (`linspace` fuses, `cumprod` accumulates in double).

/// How betas grow over the timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BetaSchedule {
    Linear,
    ScaledLinear,
    /// The cosine schedule (Nichol and Dhariwal 2021, equation 17), capped at 0.999.
    SquaredCosCapV2,
}

/// One beta a timestep.
pub(super) fn betas(schedule: BetaSchedule, start: f64, end: f64, count: usize) -> Vec<f32> {
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
pub(super) fn alphas_cumprod(betas: &[f32]) -> Vec<f32> {
    let running = betas.iter().scan(1.0_f64, |product, &beta| {
        *product *= f64::from(1.0 - beta);
        Some(*product as f32)
    });
    running.collect()
}

/// Betas shifted so that nothing of the signal is left at the last timestep (Lin et al. 2023, algorithm 1).
pub(super) fn rescale_zero_terminal_snr(betas: &[f32]) -> Vec<f32> {
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
