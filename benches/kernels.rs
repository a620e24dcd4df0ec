//! Our convolution, product, attention, gate and group norm against their plain twins (the tensor library's own operations), at the shapes
//! of the built-in model and of Stable Diffusion 1.5, two rows each.
//!
//! `cargo bench --bench kernels`; `RAYON_NUM_THREADS` says on how many threads.

use std::hint::black_box;
use std::time::Duration;

use candle_core::{Device, Tensor};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use darkroom::diffusion::kernels::{
    After, PackedConv2d, PackedLinear, conv2d_plain, geglu, geglu_plain, group_norm, group_norm_plain, linear_plain,
    scaled_dot_product, scaled_dot_product_plain,
};

const ROWS: usize = 2;
/// Of every group norm here.
const EPS: f64 = 1e-5;

fn normal(shape: impl Into<candle_core::Shape>) -> Tensor {
    Tensor::randn(0f32, 1.0, shape, &Device::Cpu).expect("memory for an operand")
}

fn quick<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    group
}

/// Inputs, outputs, side, kernel, stride.
const CONVOLUTIONS: [(&str, [usize; 5]); 11] = [
    ("pinhole 4-48 32px", [4, 48, 32, 3, 1]),
    ("pinhole 48-48 32px", [48, 48, 32, 3, 1]),
    ("pinhole 80-80 16px", [80, 80, 16, 3, 1]),
    ("pinhole 112-112 8px", [112, 112, 8, 3, 1]),
    ("pinhole 256-128 4px", [256, 128, 4, 3, 1]),
    ("pinhole 80-80 16px stride 2", [80, 80, 16, 3, 2]),
    ("pinhole vae 16-16 128px", [16, 16, 128, 3, 1]),
    ("sd1.5 320-320 64px", [320, 320, 64, 3, 1]),
    ("sd1.5 640-640 32px", [640, 640, 32, 3, 1]),
    ("sd1.5 1280-1280 8px", [1280, 1280, 8, 3, 1]),
    ("sd1.5 320-320 64px 1x1", [320, 320, 64, 1, 1]),
];

fn convolutions(criterion: &mut Criterion) {
    let mut group = quick(criterion, "conv2d");
    for (name, [inputs, outputs, side, kernel, stride]) in CONVOLUTIONS {
        let x = normal((ROWS, inputs, side, side));
        let (weight, bias) = (normal((outputs, inputs, kernel, kernel)), normal(outputs));
        let ours = PackedConv2d::new(weight.clone(), Some(bias.clone()), stride, kernel / 2).expect("shapes fit");
        group.bench_function(format!("{name}/ours"), |bencher| {
            bencher.iter(|| black_box(ours.forward(&x).expect("shapes fit")))
        });
        group.bench_function(format!("{name}/plain"), |bencher| {
            bencher.iter(|| black_box(conv2d_plain(&x, &weight, &bias, stride, kernel / 2).expect("shapes fit")))
        });
    }
    group.finish();
}

/// Tokens a row, inputs, outputs.
const PRODUCTS: [(&str, [usize; 3]); 6] = [
    ("pinhole time 1x192-192", [1, 192, 192]),
    ("pinhole ff 64x112-896", [64, 112, 896]),
    ("pinhole text 32x128-512", [32, 128, 512]),
    ("sd1.5 time 1x1280-1280", [1, 1280, 1280]),
    ("sd1.5 ff 4096x320-2560", [4096, 320, 2560]),
    ("sd1.5 ff 1024x640-5120", [1024, 640, 5120]),
];

fn products(criterion: &mut Criterion) {
    let mut group = quick(criterion, "linear");
    for (name, [tokens, inputs, outputs]) in PRODUCTS {
        let (x, weight, bias) = (normal((ROWS, tokens, inputs)), normal((outputs, inputs)), normal(outputs));
        let ours = PackedLinear::new(weight.clone(), Some(bias.clone())).expect("shapes fit");
        group.bench_function(format!("{name}/ours"), |bencher| {
            bencher.iter(|| black_box(ours.forward(&x).expect("shapes fit")))
        });
        group.bench_function(format!("{name}/plain"), |bencher| {
            bencher.iter(|| black_box(linear_plain(&x, &weight, &bias).expect("shapes fit")))
        });
    }
    group.finish();
}

/// Heads, their width, queries, keys.
const ATTENTIONS: [(&str, [usize; 4]); 4] = [
    ("pinhole 4x16 256-256", [4, 16, 256, 256]),
    ("pinhole 4x28 64-32", [4, 28, 64, 32]),
    ("sd1.5 8x40 4096-4096", [8, 40, 4096, 4096]),
    ("sd1.5 8x40 4096-77", [8, 40, 4096, 77]),
];

fn attentions(criterion: &mut Criterion) {
    let mut group = quick(criterion, "attention");
    for (name, [heads, width, queries, keys]) in ATTENTIONS {
        let q = normal((ROWS, queries, heads * width));
        let (k, v) = (normal((ROWS, keys, heads * width)), normal((ROWS, keys, heads * width)));
        group.bench_function(format!("{name}/ours"), |bencher| {
            bencher.iter(|| black_box(scaled_dot_product(&q, &k, &v, heads, None).expect("shapes fit")))
        });
        group.bench_function(format!("{name}/plain"), |bencher| {
            bencher.iter(|| black_box(scaled_dot_product_plain(&q, &k, &v, heads, None).expect("shapes fit")))
        });
    }
    group.finish();
}

/// Tokens, inner width.
const GATES: [(&str, [usize; 2]); 2] = [("pinhole 256x256", [256, 256]), ("sd1.5 4096x1280", [4096, 1280])];

fn gates(criterion: &mut Criterion) {
    let mut group = quick(criterion, "geglu");
    for (name, [tokens, inner]) in GATES {
        let x = normal((ROWS, tokens, 2 * inner));
        group.bench_function(format!("{name}/ours"), |bencher| {
            bencher.iter(|| black_box(geglu(&x).expect("shapes fit")))
        });
        group.bench_function(format!("{name}/plain"), |bencher| {
            bencher.iter(|| black_box(geglu_plain(&x).expect("shapes fit")))
        });
    }
    group.finish();
}

/// Channels, side, groups.
const NORMS: [(&str, [usize; 3]); 5] = [
    ("pinhole 48 32px", [48, 32, 8]),
    ("pinhole 128 4px", [128, 4, 8]),
    ("pinhole vae 16 128px", [16, 128, 8]),
    ("sd1.5 320 64px", [320, 64, 32]),
    ("sd1.5 vae 128 512px", [128, 512, 32]),
];

fn norms(criterion: &mut Criterion) {
    let mut group = quick(criterion, "group norm and silu");
    for (name, [channels, side, groups]) in NORMS {
        let (x, weight, bias) = (normal((ROWS, channels, side, side)), normal(channels), normal(channels));
        group.bench_function(format!("{name}/ours"), |bencher| {
            bencher.iter(|| black_box(group_norm(&x, &weight, &bias, groups, EPS, After::Silu).expect("shapes fit")))
        });
        group.bench_function(format!("{name}/plain"), |bencher| {
            bencher
                .iter(|| black_box(group_norm_plain(&x, &weight, &bias, groups, EPS, After::Silu).expect("shapes fit")))
        });
    }
    group.finish();
}

criterion_group!(benches, convolutions, products, attentions, gates, norms);
criterion_main!(benches);
