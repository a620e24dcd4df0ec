//! Sinusoidal embeddings of timesteps (Vaswani et al. 2017; Ho et al. 2020) and of guidance scales.

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

/// (N,) guidance scales to (N, width) f32, as `[sin, cos]` of a thousand times what guidance adds: networks distilled with
/// guidance were trained on that (Meng et al. 2023; diffusers `get_guidance_scale_embedding`). In f32 like the reference.
pub fn guidance_embedding(scales: &[f64], width: usize, device: &Device) -> Result<Tensor> {
    let half = width / 2;
    let stride = 10_000f32.ln() / (half as f32 - 1.0);
    let frequencies: Vec<f32> = (0..half).map(|k| (k as f32 * -stride).exp()).collect();
    // An odd width's last column stays 0.
    let mut values = vec![0f32; scales.len() * width];
    for (row, scale) in values.chunks_exact_mut(width).zip(scales) {
        let added = (scale - 1.0) as f32 * 1000.0;
        for (k, frequency) in frequencies.iter().enumerate() {
            (row[k], row[half + k]) = (added * frequency).sin_cos();
        }
    }
    Tensor::from_vec(values, (scales.len(), width), device)
}
