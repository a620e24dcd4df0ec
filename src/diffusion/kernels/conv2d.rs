//! 2-D convolution as products of the flattened weight with unfolded patches, tile by tile.

use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::product::{Matrix, add_product};
use super::values;

/// Unfolded patches of one tile, in numbers: about what a second-level cache holds.
const TILE_VALUES: usize = 1 << 18;

/// x: (N, C, H, W), weight: (O, C, k, k), bias: (O,) -> (N, O, H', W'), zero padding all round.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    match x.device() {
        Device::Cpu => x.contiguous()?.apply_op3_no_bwd(weight, bias, &Conv2dOp { stride, padding }),
        _ => conv2d_plain(x, weight, bias, stride, padding),
    }
}

/// The same by the tensor library's own operations.
pub fn conv2d_plain(x: &Tensor, weight: &Tensor, bias: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    x.conv2d(weight, padding, stride, 1, 1)?.broadcast_add(&bias.reshape((1, bias.dim(0)?, 1, 1))?)
}

struct Conv2dOp {
    stride: usize,
    padding: usize,
}

/// Sizes of one convolution.
#[derive(Clone, Copy)]
struct Sizes {
    channels: usize,
    height: usize,
    width: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    out_width: usize,
}

impl CustomOp3 for Conv2dOp {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n, channels, height, width) = x_layout.shape().dims4()?;
        let (outputs, inputs, kernel, kernel_w) = weight_layout.shape().dims4()?;
        let (stride, padding) = (self.stride, self.padding);
        let smallest = height.min(width) + 2 * padding;
        if inputs != channels || kernel != kernel_w || smallest < kernel || bias_layout.dims() != [outputs] {
            bail!("convolution of {:?} with {:?}", x_layout.dims(), weight_layout.dims());
        }
        let out_side = |side: usize| (side + 2 * padding - kernel) / stride + 1;
        let (out_height, out_width) = (out_side(height), out_side(width));
        let sizes = Sizes { channels, height, width, kernel, stride, padding, out_width };
        let (x, weight, bias) = (values(x, x_layout)?, values(weight, weight_layout)?, values(bias, bias_layout)?);
        let (pixels, inner) = (out_height * out_width, channels * kernel * kernel);

        // Tiles depend on the sizes of one sample alone. At least four of them, so that a single sample is shared out.
        let tile = (TILE_VALUES / inner).min(pixels.div_ceil(4)).max(64).min(pixels);
        let tiles: Vec<(usize, usize)> =
            (0..n).flat_map(|sample| (0..pixels).step_by(tile).map(move |from| (sample, from))).collect();
        let parts: Vec<Vec<f32>> = tiles
            .par_iter()
            .map_init(Vec::new, |patches, (sample, from)| {
                let count = tile.min(pixels - from);
                let picture = &x[sample * channels * height * width..][..channels * height * width];
                let rhs = if kernel == 1 && stride == 1 && padding == 0 {
                    Matrix { values: &picture[*from..], row_stride: pixels, col_stride: 1 }
                } else {
                    unfold(picture, sizes, *from, count, patches);
                    Matrix { values: patches, row_stride: count, col_stride: 1 }
                };
                let mut out: Vec<f32> = bias.iter().flat_map(|bias| std::iter::repeat_n(*bias, count)).collect();
                let lhs = Matrix { values: weight, row_stride: inner, col_stride: 1 };
                add_product((&mut out, count), (outputs, inner, count), lhs, rhs);
                out
            })
            .collect();

        let mut out = vec![0f32; n * outputs * pixels];
        for ((sample, from), part) in tiles.iter().zip(&parts) {
            let count = part.len() / outputs;
            for (channel, row) in part.chunks_exact(count).enumerate() {
                out[(sample * outputs + channel) * pixels + from..][..count].copy_from_slice(row);
            }
        }
        Ok((CpuStorage::F32(out), Shape::from((n, outputs, out_height, out_width))))
    }
}

/// Patches of the output pixels `from..from + count`: (channels * kernel * kernel, count), a row a weight.
fn unfold(picture: &[f32], sizes: Sizes, from: usize, count: usize, patches: &mut Vec<f32>) {
    let Sizes { channels, height, width, kernel, stride, padding, out_width } = sizes;
    patches.clear();
    patches.resize(channels * kernel * kernel * count, 0.0);
    let mut rows = patches.chunks_exact_mut(count);
    for channel in 0..channels {
        let plane = &picture[channel * height * width..][..height * width];
        for (ky, kx) in (0..kernel).flat_map(|ky| (0..kernel).map(move |kx| (ky, kx))) {
            let row = rows.next().expect("a row for each weight. This is a bug in kernels.");
            let mut at = 0;
            while at < count {
                // One run of output pixels on one line.
                let (oy, ox) = ((from + at) / out_width, (from + at) % out_width);
                let run = (out_width - ox).min(count - at);
                let y = (oy * stride + ky).wrapping_sub(padding);
                if y < height {
                    let line = &plane[y * width..][..width];
                    fill(&mut row[at..at + run], line, (ox * stride + kx) as isize - padding as isize, stride);
                }
                at += run;
            }
        }
    }
}

/// `out[k] = line[start + k * stride]` where that lies on the line; elsewhere `out` keeps its zero.
fn fill(out: &mut [f32], line: &[f32], start: isize, stride: usize) {
    if stride == 1 {
        let skip = (-start).max(0) as usize;
        let from = start.max(0) as usize;
        if skip < out.len() && from < line.len() {
            let count = (out.len() - skip).min(line.len() - from);
            out[skip..skip + count].copy_from_slice(&line[from..from + count]);
        }
        return;
    }
    for (k, out) in out.iter_mut().enumerate() {
        let x = start + (k * stride) as isize;
        if x >= 0 && (x as usize) < line.len() {
            *out = line[x as usize];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_its_plain_twin() -> Result<()> {
        let cases = [
            ((2, 3, 9, 7), 5, 3, 1, 1),
            ((1, 8, 17, 15), 4, 3, 2, 1),
            ((3, 8, 6, 6), 4, 1, 1, 0),
            ((1, 4, 9, 9), 6, 3, 2, 0),
            ((2, 4, 1, 1), 6, 3, 1, 1),
            ((1, 4, 64, 80), 8, 3, 1, 1),
        ];
        for (shape, outputs, kernel, stride, padding) in cases {
            let x = Tensor::randn(0f32, 1.0, shape, &Device::Cpu)?;
            let weight = Tensor::randn(0f32, 1.0, (outputs, shape.1, kernel, kernel), &Device::Cpu)?;
            let bias = Tensor::randn(0f32, 1.0, outputs, &Device::Cpu)?;
            let fast = conv2d(&x, &weight, &bias, stride, padding)?;
            let plain = conv2d_plain(&x, &weight, &bias, stride, padding)?;
            assert_eq!(fast.dims(), plain.dims());
            super::super::assert_close("convolution", &fast, &plain, 2e-6);
        }
        Ok(())
    }
}
