//! PyTorch's noise. Its CPU generator bit for bit: `tests/fixtures/noise/make_noise.py` made the reference. Its CUDA
//! generator against numbers that others published, from A1111's copy of it and from GPUs.

use std::num::NonZeroU64;

use darkroom::diffusion::noise::{TorchCpuGenerator, TorchCudaGenerator};
use half::f16;
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    seed: u64,
    draws: Vec<Draw>,
}

#[derive(Deserialize)]
struct Draw {
    length: usize,
    first: Vec<u32>,
    last: Vec<u32>,
    fnv1a: String,
}

#[test]
fn torch_randn_bit_for_bit() {
    let fixture: Fixture = serde_json::from_str(include_str!("../../fixtures/noise/noise.json")).unwrap();
    let mut values = 0;
    for case in &fixture.cases {
        let mut generator = TorchCpuGenerator::new(case.seed);
        for (index, draw) in case.draws.iter().enumerate() {
            let name = format!("seed {}, draw {index} of {} values", case.seed, draw.length);
            let mut out = vec![f32::NAN; draw.length];
            generator.standard_normal(&mut out);
            let bits: Vec<u32> = out.iter().map(|value| value.to_bits()).collect();
            assert_eq!(bits[..draw.first.len()], draw.first, "{name}: first values");
            assert_eq!(bits[bits.len() - draw.last.len()..], draw.last, "{name}: last values");
            assert_eq!(format!("{:016x}", fnv1a(&bits)), draw.fnv1a, "{name}: somewhere in between");
            values += draw.length;
        }
    }
    assert!(values > 2_000_000, "only {values} values compared: is the fixture whole?");
}

pub(super) fn fnv1a(words: &[u32]) -> u64 {
    words.iter().fold(0xcbf2_9ce4_8422_2325, |state, &word| (state ^ u64::from(word)).wrapping_mul(0x100_0000_01b3))
}

fn cuda(generator: &mut TorchCudaGenerator, count: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; count];
    generator.standard_normal(&mut out);
    out
}

/// What the head of A1111's `modules/rng_philox.py` (at 5ef669de) says its generator gives for seed 0.
#[test]
fn torch_cuda_draws_the_numbers_that_a1111_publishes() {
    // Largest difference measured: 5.1e-7. A1111's copy does not round to single precision on its way, as the GPU does.
    const TOLERANCE: f32 = 6e-7;
    let published = [
        [-0.924_662_6, -0.425_344_15, -2.643_845_8, 0.145_183_88],
        [-0.120_866_47, -0.579_725_6, -0.622_851_2, -0.328_387_08],
        [-1.074_542_3, -0.363_144_07, -1.671_050_7, 2.265_505],
    ];
    let drawn = cuda(&mut TorchCudaGenerator::new(0), 12);
    for (value, published) in drawn.iter().zip(published.as_flattened()) {
        assert!((value - published).abs() <= TOLERANCE, "{value} for {published}");
    }
}

/// Six calls of `torch.randn(4, device="cuda")` after `torch.manual_seed(42)`: the inputs of pytorch/pytorch#184415 as a
/// GPU printed them, to four decimals.
#[test]
fn torch_cuda_goes_on_from_call_to_call() {
    let published = [
        [0.1940, 2.1614, -0.1721, 0.8491],
        [0.1391, -0.1082, -0.7174, 0.7566],
        [-0.5187, 1.2268, 0.6255, -0.9117],
        [-0.6974, -1.8688, -0.8832, -1.6627],
        [-1.2682, -0.0383, -0.1029, 1.4400],
        [1.4640, -0.3238, 0.7740, 1.5892],
    ];
    let mut generator = TorchCudaGenerator::new(42);
    for published in published {
        // Parked and resumed between calls.
        let text = serde_json::to_string(&generator).unwrap();
        generator = serde_json::from_str(&text).unwrap();
        for (value, published) in cuda(&mut generator, 4).iter().zip(published) {
            assert!((value - published).abs() <= 0.000_051, "{value} for {published}");
        }
    }
}

/// The product of two matrices of `torch.randn((512, 512), device="cuda", dtype=torch.float16)` after
/// `torch.manual_seed(0)`, as Triton's tutorial on matrix multiplication prints its corners
/// (<https://triton-lang.org/main/getting-started/tutorials/03-matrix-multiplication.html>, made on an A100). A matrix has
/// more values than an A100 holds threads, so this fixes which of a thread's values go where, and the second call's start.
#[test]
fn torch_cuda_deals_values_to_threads_as_an_a100_does() {
    const SIDE: usize = 512;
    let published: [[f32; 6]; 6] = [
        [-10.9531, -4.7109, 15.6953, -28.4062, 4.3320, -26.4219],
        [26.8438, 10.0469, -5.4297, -11.2969, -8.5312, 30.7500],
        [-13.2578, 15.8516, 18.0781, -21.7656, -8.6406, 10.2031],
        [40.2812, 18.6094, -25.6094, -2.7598, -3.2441, 41.0000],
        [-6.1211, -16.8281, 4.4844, -21.0312, 24.7031, 15.0234],
        [-17.0938, -19.0000, -0.3831, 21.5469, -30.2344, -13.2188],
    ];
    let corners = [0, 1, 2, SIDE - 3, SIDE - 2, SIDE - 1];
    let halves = |values: Vec<f32>| -> Vec<f32> { values.into_iter().map(|x| f16::from_f32(x).to_f32()).collect() };
    let a100 = NonZeroU64::new(108 * 2048).unwrap();
    let mut generator = TorchCudaGenerator::on_gpu(0, a100);
    let (a, b) = (halves(cuda(&mut generator, SIDE * SIDE)), halves(cuda(&mut generator, SIDE * SIDE)));
    for (row, published) in corners.iter().zip(published) {
        for (column, published) in corners.iter().zip(published) {
            let product: f32 = (0..SIDE).map(|k| a[row * SIDE + k] * b[k * SIDE + column]).sum();
            // The tutorial's own bound is 1e-2; its product is rounded to half precision: 2^-11 of its size.
            let tolerance = published.abs() / 2048.0 + 1e-4;
            assert!((product - published).abs() <= tolerance, "{row}, {column}: {product} for {published}");
        }
    }
    let larger = cuda(&mut TorchCudaGenerator::new(0), SIDE * SIDE);
    let rounded = halves(larger);
    assert_eq!(rounded[..108 * 2048], a[..108 * 2048], "what a thread draws first is the same on every GPU");
    assert_ne!(rounded[108 * 2048..], a[108 * 2048..]);
}
