//! PyTorch's CUDA generator: `torch.randn(.., generator=g, device="cuda", dtype=torch.float32)`, computed here.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use super::box_muller::normal_pair_f32;
use super::philox::philox;

/// Threads of one block of PyTorch's kernel.
const BLOCK: u64 = 256;
/// Values of one Philox result.
const LANES: u64 = 4;

/// `torch.Generator("cuda")` after `manual_seed(seed)`; small and serialisable, so parking a sample keeps it as it is.
///
/// PyTorch's kernel (`aten/src/ATen/native/cuda/DistributionTemplates.h`) starts a thread for every value, in blocks of
/// 256, as far as the GPU holds threads at once. Thread t takes from cuRAND's `curand_init(seed, t, offset)` four normal
/// values a call, which become values t, t + T, t + 2T and t + 3T of the tensor, T the number of threads. So on a GPU that
/// holds as many threads as there are values each value is the first of its thread's four, and on a smaller GPU the
/// values from T on are others: what a seed draws there depends on the GPU. With 4 latent channels an RTX 4060 (24
/// multiprocessors of 1536 threads: 36,864) agrees with the larger ones up to 768 x 768 pixels, an A100 (108 of 2048) up to
/// 1880 x 1880. [`TorchCudaGenerator::new`] is the largest, as A1111's own copy of it is (its noise source `NV`).
///
/// The words and where they go are exact. Their logarithms and sines are the GPU's own approximations there and correctly
/// rounded ones here: values agree to about 1e-6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TorchCudaGenerator {
    seed: u64,
    /// Philox results that every thread has taken: PyTorch's `philox_offset` / 4.
    drawn: u64,
    /// `None`: as many as there are values.
    max_threads: Option<NonZeroU64>,
}

impl TorchCudaGenerator {
    /// `torch.Generator("cuda").manual_seed(seed)` on a GPU with a thread for every value.
    pub fn new(seed: u64) -> Self {
        Self { seed, drawn: 0, max_threads: None }
    }

    /// The same on a GPU that holds so many threads at once: multiprocessors times the threads of each, a multiple of 256.
    pub fn on_gpu(seed: u64, max_threads: NonZeroU64) -> Self {
        Self { max_threads: Some(max_threads), ..Self::new(seed) }
    }

    /// Whether it is as [`TorchCudaGenerator::new`] makes it of this seed, and has drawn no more than so many calls.
    pub(super) fn is_of(&self, seed: u64, most: u64) -> bool {
        *self == Self { drawn: self.drawn, ..Self::new(seed) } && self.drawn <= most
    }

    /// Fills `out` as `torch.randn(out.len(), generator=g, device="cuda")` fills a contiguous float32 tensor of that many
    /// elements, whatever its shape. One call here is one call there.
    pub fn standard_normal(&mut self, out: &mut [f32]) {
        let count = out.len() as u64;
        if count == 0 {
            return;
        }
        let wanted = count.next_multiple_of(BLOCK);
        let threads = self.max_threads.map_or(wanted, |most| wanted.min(most.get()));
        let key = halves(self.seed);
        for (index, value) in (0..).zip(out.iter_mut()) {
            let (thread, turn) = (index % threads, index / threads);
            let ([call_low, call_high], [low, high]) = (halves(self.drawn + turn / LANES), halves(thread));
            let words = philox([call_low, call_high, low, high], key);
            let lane = (turn % LANES) as usize;
            let pair = normal_pair_f32(words[lane & 2], words[(lane & 2) + 1]);
            *value = if lane & 1 == 0 { pair.0 } else { pair.1 };
        }
        self.drawn += count.div_ceil(threads * LANES);
    }
}

/// The lower half, then the upper.
fn halves(word: u64) -> [u32; 2] {
    [word as u32, (word >> 32) as u32]
}
