//! What choosing a forward costs: a step of 64 rows while 10,000 jobs wait, on top of the network's own time.
//!
//! `cargo bench --bench batching`. One iteration is all that the batcher does between two forwards: whoever is done leaves and
//! another comes, every sample aboard is a step further, the next batch is made up within a bound of memory, what it could use
//! besides is worked out, what the forward is expected to cost is asked for, and its time and memory are learnt from.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use darkroom::diffusion::batching::{BatchCaps, BatchKey, Batcher, SampleId, SampleMeta};
use darkroom::domain::{BatchingPolicy, ModelId, QueuePlace};
use uuid::Uuid;

const ROWS: u32 = 64;
const WAITING: u64 = 10_000;
const STEPS: [u32; 3] = [20, 30, 50];

/// A batcher and the samples it knows of.
struct Traffic {
    batcher: Batcher,
    samples: BTreeMap<SampleId, SampleMeta>,
    keys: Vec<Arc<BatchKey>>,
    next: u64,
}

impl Traffic {
    fn new(keys: usize) -> Self {
        let key = |k: usize| BatchKey {
            latent_shape: (4, 64, 64 + 8 * k),
            tokens: [77, 77],
            width: 512 + 64 * k as u32,
            height: 512,
            model: ModelId::new("m"),
            adapters: "".into(),
        };
        let caps = BatchCaps { max_rows: ROWS, max_row_pixels: u64::MAX };
        let mut traffic = Self {
            batcher: Batcher::new(BatchingPolicy::Continuous, caps),
            samples: BTreeMap::new(),
            keys: (0..keys).map(|k| Arc::new(key(k))).collect(),
            next: 0,
        };
        traffic.batcher.bound_memory(Some(64 << 30));
        (0..WAITING + u64::from(ROWS)).for_each(|_| traffic.come());
        traffic
    }

    fn come(&mut self) {
        let n = self.next;
        self.next += 1;
        let steps = STEPS[(n / 7 % 3) as usize];
        let key = self.keys[(n / 3) as usize % self.keys.len()].clone();
        // 20 jobs a second; every tenth is a bulk one.
        let rank_ms = 50 * n as i64 + if n % 10 == 9 { 300_000 } else { 0 };
        let place = QueuePlace { rank_ms, id: Uuid::from_u128(u128::from(n)).into() };
        let sample = SampleMeta { id: SampleId(n), key, steps, left: steps, rows: 1, rows_now: 1, place };
        self.batcher.add(sample.clone());
        self.samples.insert(sample.id, sample);
    }

    fn step(&mut self) -> usize {
        let batch = self.batcher.next_batch().expect("samples wait");
        black_box(self.batcher.demand());
        let rows = batch.rows.len();
        black_box((self.batcher.cost(&batch.key), self.batcher.memory(&batch.key)));
        self.batcher.observe(&batch.key, rows as u32, 0.020 + 0.001 * rows as f64);
        self.batcher.observe_bytes(&batch.key, rows as u32, (100 + rows as u64) << 20);
        for id in batch.samples() {
            let sample = self.samples.get_mut(&id).expect("it came");
            sample.left -= 1;
            if sample.left > 0 {
                self.batcher.advanced(sample);
            } else {
                self.samples.remove(&id);
                self.batcher.remove(id);
                self.come();
            }
        }
        rows
    }
}

fn scheduling(criterion: &mut Criterion) {
    for keys in [1, 4] {
        let mut traffic = Traffic::new(keys);
        // The costs are learnt first, so that all 64 rows are worth it.
        for _ in 0..200 {
            black_box(traffic.step());
        }
        assert_eq!(traffic.step(), ROWS as usize, "full batches");
        criterion.bench_function(&format!("a step of 64 rows, 10,000 waiting, {keys} resolutions"), |bencher| {
            bencher.iter(|| black_box(traffic.step()));
        });
    }
}

criterion_group!(benches, scheduling);
criterion_main!(benches);
