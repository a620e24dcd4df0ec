//! 2-D convolution as sums over shifted pictures, with the weights laid out for the inner loop once.
//!
//! Patches are never written: pictures are laid out (`bands`) so that a vector of neighbouring outputs takes a vector of
//! neighbouring inputs for every weight. Where a vector runs over the end of a line or of a sample its numbers are not used.

use std::cell::Cell;

use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Result, Shape, Tensor, bail};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::bands::{Band, Geometry, Places};
use super::sums::{PANEL, ROWS, add_shifted, side_by_side};
use super::{ALONE, bias_or_zeros, values, widened};

/// Numbers that are laid out at a time, over all threads (16 MiB).
const LAID_OUT: usize = 1 << 22;

thread_local! {
    /// Room to lay out in, kept from one convolution to the next: fresh memory costs as much as what is written to it.
    static ROOM: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// A square convolution with zero padding all round.
#[derive(Debug)]
pub struct PackedConv2d {
    /// On a CPU (outputs / 8 rounded up, inputs * k * k, 8), else (outputs, inputs, k, k).
    weight: Tensor,
    /// Zeros where the layer has none.
    bias: Tensor,
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "zeros are added where that is as fast"))]
    has_bias: bool,
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only GPUs know TF32"))]
    tf32: bool,
    outputs: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    packed: bool,
}

impl PackedConv2d {
    /// weight: (outputs, inputs, k, k), bias: (outputs,) or none. In f32 on a CPU the weights are copied into their packed order;
    /// GPUs have convolutions of their own, other types take the tensor library's.
    pub fn new(weight: Tensor, bias: Option<Tensor>, stride: usize, padding: usize) -> Result<Self> {
        let (outputs, _, kernel, kernel_w) = weight.dims4()?;
        if kernel != kernel_w || stride == 0 {
            bail!("a convolution of {:?} with stride {stride}", weight.dims());
        }
        let (has_bias, bias) = (bias.is_some(), bias_or_zeros(bias, &weight)?);
        let packed = matches!(weight.device(), Device::Cpu) && weight.dtype() == DType::F32;
        let weight = if packed { pack(&weight)? } else { weight };
        Ok(Self { weight, bias, has_bias, tf32: false, outputs, kernel, stride, padding, packed })
    }

    /// The same, which in f32 may round its factors to TF32 (10 bits) on a GPU that is faster so.
    #[must_use]
    pub fn allowing_tf32(self, tf32: bool) -> Self {
        Self { tf32, ..self }
    }

    /// x: (N, inputs, H, W) -> (N, outputs, H', W').
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if super::cuda::takes(x) {
            return self.forward_on_gpu(x, None);
        }
        if !self.packed {
            return conv2d_plain(x, &self.weight, &self.bias, self.stride, self.padding);
        }
        let (_, channels, height, width) = x.dims4()?;
        let geometry = Geometry::new((channels, height, width), self.kernel, self.stride, self.padding)?;
        x.contiguous()?.apply_op3_no_bwd(
            &self.weight,
            &self.bias,
            &Conv2dOp { geometry, outputs: self.outputs, arch: Arch::new() },
        )
    }

    /// [`Self::forward`] plus `other`, which has its shape.
    pub fn forward_added(&self, x: &Tensor, other: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if super::cuda::takes(x) {
            return self.forward_on_gpu(x, Some(other));
        }
        self.forward(x)? + other
    }

    #[cfg(feature = "cuda")]
    fn forward_on_gpu(&self, x: &Tensor, other: Option<&Tensor>) -> Result<Tensor> {
        let out = super::cuda::conv2d(x, &self.weight, (self.stride, self.padding), self.tf32)?;
        let (_, _, h, w) = out.dims4()?;
        match (self.has_bias, other) {
            (true, Some(other)) => super::cuda::add_bias_and(&out, &self.bias, other, h * w)?,
            (true, None) => super::cuda::add_bias(&out, &self.bias, h * w)?,
            (false, Some(other)) => return out + other,
            (false, None) => {}
        }
        Ok(out)
    }
}

/// The same by the tensor library's own operations; weight: (outputs, inputs, k, k).
pub fn conv2d_plain(x: &Tensor, weight: &Tensor, bias: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    let map = widened(x)?.conv2d(&widened(weight)?, padding, stride, 1, 1)?;
    map.broadcast_add(&widened(bias)?.reshape((1, bias.dim(0)?, 1, 1))?)?.to_dtype(x.dtype())
}

/// (outputs, inputs, k, k) -> (blocks, inputs * k * k, 8): eight outputs' weights for one input side by side, zeros after
/// the last.
fn pack(weight: &Tensor) -> Result<Tensor> {
    let (outputs, inputs, kernel, _) = weight.dims4()?;
    let (terms, blocks) = (inputs * kernel * kernel, outputs.div_ceil(ROWS));
    let packed = side_by_side::<ROWS>(&weight.flatten_all()?.to_vec1::<f32>()?, terms);
    Tensor::from_vec(packed, (blocks, terms, ROWS), weight.device())
}

struct Conv2dOp {
    geometry: Geometry,
    outputs: usize,
    arch: Arch,
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
        let (geometry, outputs) = (&self.geometry, self.outputs);
        let (samples, channels, _, _) = x_layout.shape().dims4()?;
        let (_, terms, _) = weight_layout.shape().dims3()?;
        if terms != geometry.terms() {
            bail!("a convolution of {terms} weights an output with {channels} channels");
        }
        let (x, weight, bias) = (values(x, x_layout)?, values(weight, weight_layout)?, values(bias, bias_layout)?);
        let (out_height, out_width) = geometry.out;
        let mut out = vec![0f32; samples * outputs * out_height * out_width];
        let bands = geometry.bands(samples);
        if let Some(largest) = bands.first() {
            let mut tasks = tasks(&bands, outputs, geometry, &mut out);
            let places = geometry.places(largest);
            let at_once = (LAID_OUT / places.numbers).max(rayon::current_num_threads()).min(bands.len());
            let alone = terms * tasks.iter().flat_map(|task| &task.out).map(|out| out.len()).sum::<usize>() <= ALONE;
            let mut room = ROOM.take();
            room.resize(room.len().max(at_once * places.numbers), 0.0);
            for (bands, tasks) in bands.chunks(at_once).zip(tasks.chunks_mut(at_once * outputs.div_ceil(ROWS))) {
                let rooms = room.par_chunks_exact_mut(places.numbers).zip(bands);
                rooms.for_each(|(room, band)| band.lay_out(x, geometry, &places, room));
                let starts: Vec<Vec<usize>> = bands.iter().map(|band| band.starts(geometry)).collect();
                let run = |sums: &mut Vec<f32>, task: &mut Task<'_>| {
                    let index = task.band % at_once;
                    let laid_out = LaidOut {
                        band: &bands[index],
                        picture: &room[index * places.numbers..][..places.numbers],
                        places: &places,
                        starts: &starts[index],
                    };
                    task.run(self.arch, &laid_out, geometry, (weight, bias), sums);
                };
                if alone {
                    let mut sums = Vec::new();
                    tasks.iter_mut().for_each(|task| run(&mut sums, task));
                } else {
                    tasks.par_iter_mut().for_each_init(Vec::new, run);
                }
            }
            ROOM.set(room);
        }
        Ok((CpuStorage::F32(out), Shape::from((samples, outputs, out_height, out_width))))
    }
}

/// Up to eight outputs of one band.
struct Task<'a> {
    band: usize,
    block: usize,
    /// The band's lines of each of these outputs, sample by sample.
    out: Vec<&'a mut [f32]>,
}

/// Band by band, each with all its blocks.
fn tasks<'a>(bands: &[Band], outputs: usize, geometry: &Geometry, out: &'a mut [f32]) -> Vec<Task<'a>> {
    let (height, width) = geometry.out;
    let blocks = outputs.div_ceil(ROWS);
    let mut tasks: Vec<Task<'a>> = (0..bands.len())
        .flat_map(|band| (0..blocks).map(move |block| Task { band, block, out: Vec::with_capacity(ROWS) }))
        .collect();
    let lines = bands[0].lines.len();
    let bands_a_sample = height.div_ceil(lines);
    for (plane, numbers) in out.chunks_exact_mut(height * width).enumerate() {
        let (sample, output) = (plane / outputs, plane % outputs);
        for (part, numbers) in numbers.chunks_mut(lines * width).enumerate() {
            let band = sample / bands[0].samples.len() * bands_a_sample + part;
            tasks[band * blocks + output / ROWS].out.push(numbers);
        }
    }
    tasks
}

/// A band's numbers.
struct LaidOut<'a> {
    band: &'a Band,
    picture: &'a [f32],
    places: &'a Places,
    starts: &'a [usize],
}

impl Task<'_> {
    /// `sums` is room to work in.
    fn run(
        &mut self,
        arch: Arch,
        laid_out: &LaidOut<'_>,
        geometry: &Geometry,
        (weight, bias): (&[f32], &[f32]),
        sums: &mut Vec<f32>,
    ) {
        let LaidOut { band, picture, places, starts } = *laid_out;
        let columns = starts.len() * PANEL;
        sums.clear();
        for output in 0..ROWS {
            let bias = bias.get(self.block * ROWS + output).copied().unwrap_or(0.0);
            sums.resize((output + 1) * columns, bias);
        }
        let terms = geometry.terms();
        let weights = weight[self.block * terms * ROWS..][..terms * ROWS].as_chunks().0;
        arch.dispatch(Shifted { weights, picture, offsets: &places.offsets, starts, out: sums });
        let outputs = self.out.len() / band.samples.len();
        let width = geometry.out.1;
        for (index, out) in self.out.iter_mut().enumerate() {
            let sums = &sums[index % outputs * columns + band.column(geometry, index / outputs)..];
            if geometry.pitch == width {
                out.copy_from_slice(&sums[..out.len()]);
                continue;
            }
            for (out, sums) in out.chunks_exact_mut(width).zip(sums.chunks(geometry.pitch)) {
                out.copy_from_slice(&sums[..width]);
            }
        }
    }
}

struct Shifted<'a> {
    weights: &'a [[f32; ROWS]],
    picture: &'a [f32],
    offsets: &'a [usize],
    starts: &'a [usize],
    out: &'a mut [f32],
}

impl WithSimd for Shifted<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        add_shifted(simd, self.weights, self.picture, (self.offsets, self.starts), self.out);
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
            ((40, 5, 4, 4), 17, 3, 1, 1),
            ((1, 3, 30, 20), 3, 8, 8, 0),
            ((2, 3, 11, 13), 3, 5, 1, 1),
            ((1, 120, 8, 8), 16, 3, 1, 1),
            ((1, 2, 3, 2000), 2, 3, 1, 1),
            ((1, 2, 70, 40), 2, 3, 1, 1),
            ((3, 2, 5, 40), 2, 3, 1, 0),
            ((2, 3, 40, 36), 3, 1, 1, 1),
            ((2, 3, 6, 5), 3, 1, 2, 1),
            ((2, 3, 1, 3), 3, 5, 1, 2),
            ((5, 7, 32, 32), 9, 3, 2, 1),
            ((2, 3, 8, 8), 9, 3, 1, 0),
            ((2, 3, 33, 70), 9, 3, 2, 0),
            ((2, 3, 9, 9), 2, 2, 3, 1),
            ((1, 2100, 6, 6), 3, 3, 1, 1),
        ];
        for (shape, outputs, kernel, stride, padding) in cases {
            let x = Tensor::randn(0f32, 1.0, shape, &Device::Cpu)?;
            let weight = Tensor::randn(0f32, 1.0, (outputs, shape.1, kernel, kernel), &Device::Cpu)?;
            let bias = Tensor::randn(0f32, 1.0, outputs, &Device::Cpu)?;
            let plain = conv2d_plain(&x, &weight, &bias, stride, padding)?;
            let geometry = Geometry::new((shape.1, shape.2, shape.3), kernel, stride, padding)?;
            for arch in super::super::levels() {
                let op = Conv2dOp { geometry: geometry.clone(), outputs, arch };
                let fast = x.apply_op3_no_bwd(&pack(&weight)?, &bias, &op)?;
                assert_eq!(fast.dims(), plain.dims());
                super::super::assert_close(&format!("{arch:?}, convolution of {shape:?}"), &fast, &plain, 2e-6);
            }
        }
        Ok(())
    }

    #[test]
    fn a_sample_is_the_same_alone() -> Result<()> {
        for (side, stride) in [(4, 1), (7, 1), (16, 1), (16, 2), (40, 1)] {
            let weight = Tensor::randn(0f32, 1.0, (20, 70, 3, 3), &Device::Cpu)?;
            let layer = PackedConv2d::new(weight, Some(Tensor::randn(0f32, 1.0, 20, &Device::Cpu)?), stride, 1)?;
            let x = Tensor::randn(0f32, 1.0, (37, 70, side, side), &Device::Cpu)?;
            let together = layer.forward(&x)?;
            for sample in [0, 1, 17, 36] {
                let alone = layer.forward(&x.narrow(0, sample, 1)?)?;
                let numbers = |x: Tensor| x.flatten_all()?.to_vec1::<f32>();
                assert_eq!(numbers(alone)?, numbers(together.narrow(0, sample, 1)?)?);
            }
        }
        Ok(())
    }
}
