//! The built-in model at its own size: text encoding, network evaluations of 1 to 16 rows, decoding, a whole picture.
//!
//! `cargo bench --bench engine`; `RAYON_NUM_THREADS` says on how many threads. `darkroom bench engine` measures the same
//! stages without criterion, for a comparison with another engine in turn.

use std::time::Duration;

use criterion::{Bencher, Criterion, Throughput, criterion_group, criterion_main};
use darkroom::diffusion::engine::{EngineOptions, Stages};
use darkroom::diffusion::pipelines::{self, ModelSource};
use darkroom::domain::{DeviceSpec, Limits, RequestDraft};

fn prepared() -> Stages {
    let source = ModelSource::parse("pinhole").expect("this build has the model");
    let pipeline = pipelines::load(&source, DeviceSpec::Cpu).expect("the model loads");
    let draft = RequestDraft { prompt: Some("a red house in the snow at night".to_owned()), ..RequestDraft::default() };
    let request = draft.validate(pipeline.info(), &Limits::default(), 1).expect("the draft is valid");
    Stages::prepare(pipeline, request).expect("the prompt can be encoded")
}

/// The stage takes its own time, inputs made before its clock starts.
fn timed(bencher: &mut Bencher<'_>, mut stage: impl FnMut() -> Duration) {
    bencher.iter_custom(|count| (0..count).map(|_| stage()).sum());
}

fn stages(criterion: &mut Criterion) {
    let stages = prepared();
    let mut group = criterion.benchmark_group("pinhole");
    group.sample_size(20).measurement_time(Duration::from_secs(5));
    group.bench_function("text", |bencher| timed(bencher, || stages.text_encoder().expect("it encodes")));
    for rows in [1, 2, 4, 8, 16] {
        group.throughput(Throughput::Elements(rows));
        group.bench_function(format!("unet/{rows}"), |bencher| {
            timed(bencher, || stages.denoise(rows as usize).expect("it evaluates"))
        });
    }
    group.throughput(Throughput::Elements(1));
    group.bench_function("vae", |bencher| timed(bencher, || stages.decode().expect("it decodes")));
    let options = EngineOptions { preview_every: 0, ..EngineOptions::default() };
    group.sample_size(10);
    group.bench_function("picture", |bencher| timed(bencher, || stages.picture(&options).expect("it draws")));
    group.finish();
}

criterion_group!(benches, stages);
criterion_main!(benches);
