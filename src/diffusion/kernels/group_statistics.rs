//! Group normalisation of maps that are held in bands of rows: what it must know of the whole map, and one band by that.

use std::ops::Deref;

use candle_core::{CpuStorage, CustomOp3, D, Device, Layout, Result, Shape, Storage, Tensor, bail};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::group_norm::{After, BLOCK, LANES, normalise};
use super::values;

/// Mean and 1/sqrt(variance + eps) of every group of every sample.
#[derive(Clone, Debug)]
pub struct GroupStatistics {
    groups: usize,
    each: Each,
}

#[derive(Clone, Debug)]
enum Each {
    /// On a CPU, sample by sample, group by group.
    Held(Vec<(f32, f32)>),
    /// On another device, both (N, groups, 1): to read them here would be to wait for all that the device was asked for.
    Elsewhere { mean: Tensor, scale: Tensor },
    /// To be taken where the map is normalised: it is in one piece, and a kernel does both.
    #[cfg(feature = "cuda")]
    ToBeTaken { eps: f64, height: usize },
}

/// Of a map (N, C, H, W) in bands (N, C, rows, W), from top to bottom: at least one. On a CPU they are, to the bit, what
/// [`super::group_norm()`] takes of the whole map, wherever it is cut. `at_once`: the map is going to be normalised in one piece.
pub fn group_statistics(
    bands: &[&Tensor],
    groups: usize,
    eps: f64,
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "only a GPU has a kernel for both"))]
    at_once: bool,
) -> Result<GroupStatistics> {
    let Some(first) = bands.first() else { bail!("group statistics of no map") };
    let (samples, channels, _, _) = first.dims4()?;
    if channels % groups != 0 {
        bail!("group norm of {channels} channels in {groups} groups");
    }
    #[cfg(feature = "cuda")]
    if bands.len() == 1 && at_once && super::cuda::takes(first) {
        return Ok(GroupStatistics { groups, each: Each::ToBeTaken { eps, height: first.dim(2)? } });
    }
    if !matches!(first.device(), Device::Cpu) {
        return group_statistics_plain(bands, groups, eps);
    }
    let held: Vec<_> = bands.iter().map(|band| band.storage_and_layout()).collect();
    let numbers = held.iter().map(|(storage, layout)| match storage.deref() {
        Storage::Cpu(storage) => values(storage, layout),
        _ => bail!("bands of one map on several devices"),
    });
    let numbers: Vec<&[f32]> = numbers.collect::<Result<_>>()?;
    let arch = Arch::new();
    let spans = (0..samples * groups).into_par_iter().map(|span| {
        let parts = parts(&numbers, samples * channels, span * (channels / groups)..(span + 1) * (channels / groups));
        arch.dispatch(MeanAndScale { parts: &parts, eps })
    });
    Ok(GroupStatistics { groups, each: Each::Held(spans.collect()) })
}

/// The same by the tensor library's own operations.
fn group_statistics_plain(bands: &[&Tensor], groups: usize, eps: f64) -> Result<GroupStatistics> {
    let samples = bands[0].dim(0)?;
    let flat = |band: &Tensor| band.reshape((samples, groups, band.elem_count() / (samples * groups)));
    let count = bands.iter().map(|band| band.elem_count()).sum::<usize>() / (samples * groups);
    let mean_of = |term: &dyn Fn(Tensor) -> Result<Tensor>| -> Result<Tensor> {
        let sums = bands.iter().map(|band| term(flat(band)?)?.sum_keepdim(D::Minus1));
        let total = sums.reduce(|total, sum| total? + sum?).unwrap_or_else(|| bail!("group statistics of no map"))?;
        total / count as f64
    };
    let mean = mean_of(&Ok)?;
    let variance = mean_of(&|band| band.broadcast_sub(&mean)?.sqr())?;
    let scale = (variance + eps)?.sqrt()?.recip()?;
    Ok(GroupStatistics { groups, each: Each::Elsewhere { mean, scale } })
}

/// The numbers of some planes (sample times channel), in their order in a whole map.
fn parts<'a>(bands: &[&'a [f32]], planes: usize, wanted: std::ops::Range<usize>) -> Vec<&'a [f32]> {
    let part = |plane: usize, band: &'a [f32]| &band[plane * (band.len() / planes)..][..band.len() / planes];
    wanted.flat_map(|plane| bands.iter().map(move |band| part(plane, band))).collect()
}

/// One band (N, C, rows, W) of a map with these statistics -> the same shape; weight and bias: (C,).
pub fn group_normalised(
    band: &Tensor,
    statistics: &GroupStatistics,
    weight: &Tensor,
    bias: &Tensor,
    after: After,
) -> Result<Tensor> {
    let groups = statistics.groups;
    match &statistics.each {
        Each::Held(each) => {
            let op = NormalisedOp { groups, each: each.clone(), after };
            band.contiguous()?.apply_op3_no_bwd(weight, bias, &op)
        }
        Each::Elsewhere { mean, scale } => group_normalised_plain(band, (mean, scale), (weight, bias), after),
        #[cfg(feature = "cuda")]
        Each::ToBeTaken { height, .. } if band.dim(2)? != *height => {
            bail!("a part of a map was to be normalised whole")
        }
        #[cfg(feature = "cuda")]
        Each::ToBeTaken { eps, .. } => super::cuda::group_norm(band, weight, bias, groups, *eps, after),
    }
}

/// The same by the tensor library's own operations; mean and scale: (N, groups, 1).
fn group_normalised_plain(
    band: &Tensor,
    (mean, scale): (&Tensor, &Tensor),
    (weight, bias): (&Tensor, &Tensor),
    after: After,
) -> Result<Tensor> {
    let (n, c, h, w) = band.dims4()?;
    let groups = mean.dim(1)?;
    let flat = band.reshape((n, groups, c / groups * h * w))?;
    let normed = flat.broadcast_sub(mean)?.broadcast_mul(scale)?;
    let out = normed.reshape((n, c, h, w))?.broadcast_mul(&weight.reshape((1, c, 1, 1))?)?;
    let out = out.broadcast_add(&bias.reshape((1, c, 1, 1))?)?;
    if after == After::Silu { out.silu() } else { Ok(out) }
}

struct NormalisedOp {
    groups: usize,
    each: Vec<(f32, f32)>,
    after: After,
}

impl CustomOp3 for NormalisedOp {
    fn name(&self) -> &'static str {
        "group-normalised"
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
        let (x, shape) = (values(x, x_layout)?, x_layout.shape());
        let (weight, bias) = (values(weight, weight_layout)?, values(bias, bias_layout)?);
        let (samples, channels, _, _) = shape.dims4()?;
        let Self { groups, each, .. } = self;
        if channels % groups != 0 || each.len() != samples * groups {
            bail!("group norm of {shape:?} by {} statistics in {groups} groups", each.len());
        }
        let (arch, per_group) = (Arch::new(), channels / groups);
        let mut out = vec![0f32; x.len()];
        let span = (x.len() / each.len()).max(1);
        let spans = out.par_chunks_mut(span).zip(x.par_chunks(span)).zip(each).enumerate();
        spans.for_each(|(at, ((out, x), mean_and_scale))| {
            let first = at % groups * per_group;
            let (weight, bias) = (&weight[first..][..per_group], &bias[first..][..per_group]);
            arch.dispatch(Normalise { x, weight, bias, mean_and_scale: *mean_and_scale, after: self.after, out });
        });
        Ok((CpuStorage::F32(out), shape.clone()))
    }
}

/// One group of one sample of a band.
struct Normalise<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    mean_and_scale: (f32, f32),
    after: After,
    out: &'a mut [f32],
}

impl WithSimd for Normalise<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        normalise(self.x, self.mean_and_scale, (self.weight, self.bias), self.after, self.out);
    }
}

/// Of the numbers of one group, in parts.
struct MeanAndScale<'a> {
    parts: &'a [&'a [f32]],
    eps: f64,
}

impl WithSimd for MeanAndScale<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> (f32, f32) {
        let count = self.parts.iter().map(|part| part.len()).sum::<usize>() as f64;
        let mean = (sum(self.parts, |value| value) / count) as f32;
        let variance = sum(self.parts, |value| (value - mean) * (value - mean)) / count;
        (mean, (1.0 / (variance + self.eps).sqrt()) as f32)
    }
}

/// The sum that [`super::group_norm()`] makes of the parts in one piece, to the bit: blocks go on from one part to the next.
#[inline(always)]
fn sum(parts: &[&[f32]], term: impl Fn(f32) -> f32) -> f64 {
    let mut lanes = [0f64; LANES];
    let (mut partial, mut at) = ([0f32; LANES], 0);
    for part in parts {
        let mut rest = *part;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(BLOCK - at));
            rest = later;
            let (head, now) = now.split_at(now.len().min((LANES - at % LANES) % LANES));
            for (lane, value) in partial[at % LANES..].iter_mut().zip(head) {
                *lane += term(*value);
            }
            let (whole, tail) = now.as_chunks::<LANES>();
            for values in whole {
                for (lane, value) in partial.iter_mut().zip(values) {
                    *lane += term(*value);
                }
            }
            for (lane, value) in partial.iter_mut().zip(tail) {
                *lane += term(*value);
            }
            at += head.len() + now.len();
            if at == BLOCK {
                lanes.iter_mut().zip(partial).for_each(|(lane, value)| *lane += f64::from(value));
                (partial, at) = ([0f32; LANES], 0);
            }
        }
    }
    lanes.iter_mut().zip(partial).for_each(|(lane, value)| *lane += f64::from(value));
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::super::group_norm;
    use super::*;

    fn bits(x: &Tensor) -> Vec<u32> {
        x.flatten_all().and_then(|x| x.to_vec1::<f32>()).expect("f32").into_iter().map(f32::to_bits).collect()
    }

    /// Rows of bands that begin and end within blocks and within vectors.
    #[test]
    fn bands_have_the_bits_of_the_whole_map() -> Result<()> {
        for (shape, groups, cuts) in [
            ((2, 32, 17, 15), 8, vec![1, 2, 9]),
            ((1, 8, 64, 64), 4, vec![16, 32, 48]),
            ((1, 6, 40, 33), 3, vec![7, 8, 39]),
            ((3, 4, 5, 1), 2, vec![]),
        ] {
            let (_, channels, height, _) = shape;
            let x = (Tensor::randn(0f32, 3.0, shape, &Device::Cpu)? + 1.5)?;
            let weight = Tensor::randn(1f32, 0.3, channels, &Device::Cpu)?;
            let bias = Tensor::randn(0f32, 0.3, channels, &Device::Cpu)?;
            let ends: Vec<usize> = cuts.iter().copied().chain([height]).collect();
            let starts = [0].into_iter().chain(cuts);
            let bands: Vec<Tensor> =
                starts.zip(ends).map(|(from, to)| x.narrow(2, from, to - from)?.contiguous()).collect::<Result<_>>()?;
            let bands: Vec<&Tensor> = bands.iter().collect();
            let statistics = group_statistics(&bands, groups, 1e-6, false)?;
            let plain = group_statistics_plain(&bands, groups, 1e-6)?;
            for after in [After::Nothing, After::Silu] {
                let whole = group_norm(&x, &weight, &bias, groups, 1e-6, after)?;
                let each = |statistics| {
                    let parts = bands.iter().map(|band| group_normalised(band, statistics, &weight, &bias, after));
                    Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 2)
                };
                assert!(bits(&each(&statistics)?) == bits(&whole), "{shape:?} {after:?}");
                super::super::assert_close("plain", &each(&plain)?, &whole, 2e-6);
            }
        }
        Ok(())
    }
}
