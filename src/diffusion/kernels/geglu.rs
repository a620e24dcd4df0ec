//! The gate of a transformer's feed-forward layers, GEGLU (Shazeer 2020), in one pass.

use candle_core::{CpuStorage, CustomOp1, D, DType, Device, Layout, Result, Shape, Tensor, bail};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::exp::exp;
use super::values;

/// Numbers worked on before the next thread is asked.
const AT_ONCE: usize = 1 << 14;

/// x: (..., 2 * inner), values and then gates -> values * GELU(gates): (..., inner). GELU is the exact one, by erf.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    match (x.device(), x.dtype()) {
        (Device::Cpu, DType::F32) => x.contiguous()?.apply_op1_no_bwd(&GegluOp { arch: Arch::new() }),
        #[cfg(feature = "cuda")]
        _ if super::cuda::takes(x) => super::cuda::geglu(x),
        _ => geglu_plain(x),
    }
}

/// The same by the tensor library's own operations.
pub fn geglu_plain(x: &Tensor) -> Result<Tensor> {
    let inner = x.dim(D::Minus1)? / 2;
    // candle's `gelu` is the tanh approximation.
    let gate = x.narrow(D::Minus1, inner, inner)?.contiguous()?.gelu_erf()?;
    x.narrow(D::Minus1, 0, inner)? * gate
}

struct GegluOp {
    arch: Arch,
}

impl CustomOp1 for GegluOp {
    fn name(&self) -> &'static str {
        "geglu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut dims = layout.dims().to_vec();
        let Some(last) = dims.last_mut().filter(|last| **last > 0 && last.is_multiple_of(2)) else {
            bail!("geglu of {:?}", layout.dims());
        };
        *last /= 2;
        let inner = *last;
        let x = values(x, layout)?;
        let mut out = vec![0f32; x.len() / 2];
        let rows = out.par_chunks_exact_mut(inner).zip(x.par_chunks_exact(2 * inner));
        rows.with_min_len(AT_ONCE.div_ceil(inner)).for_each(|(out, x)| {
            let (values, gates) = x.split_at(inner);
            self.arch.dispatch(Row { values, gates, out });
        });
        Ok((CpuStorage::F32(out), Shape::from(dims)))
    }
}

struct Row<'a> {
    values: &'a [f32],
    gates: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for Row<'_> {
    type Output = ();

    /// A plain loop: the compiler makes it as wide as the processor's vectors.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (out, (value, gate)) in self.out.iter_mut().zip(self.values.iter().zip(self.gates)) {
            *out = value * gelu(*gate);
        }
    }
}

/// x Phi(x) to within 3e-7 of it or of 1, whichever is larger (measured: 2.1e-7, at -3.1).
///
/// Phi(-|x|) = erfc(|x| / sqrt 2) / 2 by Abramowitz & Stegun, Handbook of Mathematical Functions, 7.1.26.
#[inline(always)]
fn gelu(x: f32) -> f32 {
    const P: f32 = 0.327_591_1;
    const POLYNOMIAL: [f32; 5] = [1.061_405_4, -1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6];

    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + P * z);
    let tail = 0.5 * POLYNOMIAL.iter().fold(0.0, |sum, factor| sum * t + factor) * t * exp(-z * z);
    x * if x < 0.0 { tail } else { 1.0 - tail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gelu_is_close_to_the_true_value() -> Result<()> {
        let x: Vec<f32> = (-12_000..=12_000).map(|step| step as f32 / 1000.0).collect();
        let exact = Tensor::new(x.as_slice(), &Device::Cpu)?.to_dtype(DType::F64)?.gelu_erf()?.to_vec1::<f64>()?;
        for (x, exact) in x.into_iter().zip(exact) {
            let fast = f64::from(gelu(x));
            assert!((fast - exact).abs() < 3e-7 * exact.abs().max(1.0), "GELU({x}): {fast}, not {exact}");
        }
        assert_eq!((gelu(0.0), gelu(-1e30), gelu(1e30)), (0.0, 0.0, 1e30));
        assert!(gelu(f32::NAN).is_nan());
        Ok(())
    }

    #[test]
    fn agrees_with_its_plain_twin() -> Result<()> {
        for shape in [vec![2], vec![3, 14], vec![2, 5, 100], vec![1, 300, 256]] {
            let x = Tensor::randn(0f32, 2.0, shape, &Device::Cpu)?;
            let plain = geglu_plain(&x)?;
            for arch in super::super::levels() {
                let fast = x.apply_op1_no_bwd(&GegluOp { arch })?;
                assert_eq!(fast.dims(), plain.dims());
                // Of each number by itself, in the terms in which the GELU is exact.
                let halves = x.chunk(2, D::Minus1)?;
                let most = (halves[0].abs()? * halves[1].gelu_erf()?.abs()?.maximum(1f32)?)?.affine(1e-6, 0.0)?;
                let off = ((fast - &plain)?.abs()? - most)?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
                assert!(off <= 0.0, "geglu, {arch:?}: {off} beyond what is allowed");
            }
        }
        Ok(())
    }
}
