//! The last two dimensions swapped, in tiles that stay in a first-level cache on both sides.

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::values;

const TILE: usize = 16;
/// Numbers moved before the next thread is asked.
const AT_ONCE: usize = 1 << 15;

/// x: (N, A, B) -> (N, B, A), contiguous.
pub fn transposed(x: &Tensor) -> Result<Tensor> {
    match (x.device(), x.dtype()) {
        (Device::Cpu, DType::F32) => x.contiguous()?.apply_op1_no_bwd(&TransposedOp),
        #[cfg(feature = "cuda")]
        _ if super::cuda::takes(x) => super::cuda::transposed(x),
        _ => transposed_plain(x),
    }
}

/// The same by the tensor library's own operations.
pub fn transposed_plain(x: &Tensor) -> Result<Tensor> {
    x.transpose(1, 2)?.contiguous()
}

struct TransposedOp;

impl CustomOp1 for TransposedOp {
    fn name(&self) -> &'static str {
        "transposed"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, lines, width) = layout.shape().dims3()?;
        let x = values(x, layout)?;
        let mut out = vec![0f32; x.len()];
        if !out.is_empty() {
            // Up to sixteen lines of the output; the last of a sample may be fewer.
            let samples = out.par_chunks_exact_mut(lines * width).zip(x.par_chunks_exact(lines * width));
            samples.with_min_len(AT_ONCE.div_ceil(lines * width)).for_each(|(out, x)| {
                let parts = out.par_chunks_mut(TILE * lines).enumerate();
                parts.with_min_len(AT_ONCE.div_ceil(TILE * lines)).for_each(|(part, out)| {
                    for first in (0..lines).step_by(TILE) {
                        tile(&x[first * width..], (part * TILE, width), (first, lines), out);
                    }
                });
            });
        }
        Ok((CpuStorage::F32(out), Shape::from((n, width, lines))))
    }
}

/// Up to sixteen lines of `x`, `width` wide, from their column `from` on, to the columns from `first` of the lines of `out`,
/// `lines` wide.
fn tile(x: &[f32], (from, width): (usize, usize), (first, lines): (usize, usize), out: &mut [f32]) {
    let count = TILE.min(lines - first);
    for (k, out) in out.chunks_exact_mut(lines).enumerate() {
        for (j, out) in out[first..][..count].iter_mut().enumerate() {
            *out = x[j * width + from + k];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_its_plain_twin() -> Result<()> {
        for shape in [(1, 1, 1), (2, 5, 40), (3, 64, 256), (1, 300, 130), (2, 17, 3), (2, 0, 3)] {
            let x = Tensor::randn(0f32, 1.0, shape, &Device::Cpu)?;
            assert_eq!(transposed(&x)?.to_vec3::<f32>()?, transposed_plain(&x)?.to_vec3::<f32>()?);
        }
        Ok(())
    }
}
