//! Sinusoidal embedding of timesteps (Vaswani et al. 2017; Ho et al. 2020).

use candle_core::{Device, Result, Tensor};

/// (N,) timesteps to (N, width) f32: `[cos, sin]` when `flip_sin_to_cos`, else `[sin, cos]`. Computed in f32, as the
/// reference does (diffusers `get_timestep_embedding`): a timestep of 999 times a frequency rounds visibly in f32.
pub fn timestep_embedding(
    timesteps: &[f64],
    width: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
    device: &Device,
) -> Result<Tensor> {
    let half = width / 2;
    let frequencies: Vec<f32> =
        (0..half).map(|k| (-(10_000f64.ln()) as f32 * k as f32 / (half as f64 - freq_shift) as f32).exp()).collect();
    let mut values = vec![0f32; timesteps.len() * width];
    for (row, timestep) in values.chunks_exact_mut(width).zip(timesteps) {
        for (k, frequency) in frequencies.iter().enumerate() {
            let (sin, cos) = (*timestep as f32 * frequency).sin_cos();
            let (first, second) = if flip_sin_to_cos { (cos, sin) } else { (sin, cos) };
            row[k] = first;
            row[half + k] = second;
        }
    }
    Tensor::from_vec(values, (timesteps.len(), width), device)
}
