//! PyTorch's CPU generator: `torch.randn(.., generator=g, dtype=torch.float32)`, bit for bit.

use serde::{Deserialize, Serialize};

use super::box_muller::{BLOCK, normal_block, normal_pair};
use super::mt19937::Mt19937;

/// `torch.Generator("cpu")` after `manual_seed(seed)`.
///
/// One call of [`standard_normal`](Self::standard_normal) is one `torch.randn` call: how many values a call asks for is
/// part of what it draws, there as here.
#[derive(Clone)]
pub struct TorchCpuGenerator {
    twister: Mt19937,
    state: TorchCpuState,
}

/// Where a generator stands: small, and enough to go on from ([`TorchCpuGenerator::resume`]).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TorchCpuState {
    /// What it was seeded with.
    pub seed: u64,
    /// 32-bit words drawn since.
    pub words: u64,
    /// The second half of a pair, kept for the next draw of fewer than 16 values: its bits, since not every reader of JSON
    /// gives a fraction back to the bit.
    pub spare: Option<u64>,
}

impl TorchCpuGenerator {
    /// `torch.Generator("cpu").manual_seed(seed)`. Only the seed's lower 32 bits count, in PyTorch too: seeds that are
    /// equal modulo 2^32 draw the same noise.
    pub fn new(seed: u64) -> Self {
        let state = TorchCpuState { seed, words: 0, spare: None };
        Self { twister: Mt19937::new((seed & 0xffff_ffff) as u32), state }
    }

    /// A generator that goes on where another stood. Takes about a nanosecond a word drawn.
    pub fn resume(state: TorchCpuState) -> Self {
        let mut generator = Self::new(state.seed);
        generator.twister.skip(state.words);
        generator.state = state;
        generator
    }

    /// Where it stands now.
    pub fn state(&self) -> TorchCpuState {
        self.state
    }

    /// Fills `out` as `torch.randn(out.len(), generator=g)` fills a contiguous float32 tensor of that many elements,
    /// whatever its shape.
    pub fn standard_normal(&mut self, out: &mut [f32]) {
        // PyTorch takes another road for short tensors: double precision, one value at a time.
        if out.len() < BLOCK {
            for value in out {
                *value = self.normal_f64() as f32;
            }
            return;
        }
        for value in out.iter_mut() {
            *value = self.uniform_f32();
        }
        let (blocks, tail) = out.as_chunks_mut::<BLOCK>();
        for block in blocks {
            normal_block(block);
        }
        // A length that is no multiple of 16: the last 16 values are drawn anew, over what was there.
        if !tail.is_empty() {
            let mut last = [0.0; BLOCK];
            for value in &mut last {
                *value = self.uniform_f32();
            }
            normal_block(&mut last);
            let start = out.len() - BLOCK;
            out[start..].copy_from_slice(&last);
        }
    }

    /// 24 bits of one word, in [0, 1).
    fn uniform_f32(&mut self) -> f32 {
        (self.word() & 0x00ff_ffff) as f32 * (1.0 / 16_777_216.0)
    }

    /// 53 bits of two words, in [0, 1).
    fn uniform_f64(&mut self) -> f64 {
        let high = u64::from(self.word());
        let low = u64::from(self.word());
        (((high << 32) | low) & ((1 << 53) - 1)) as f64 * (1.0 / 9_007_199_254_740_992.0)
    }

    fn normal_f64(&mut self) -> f64 {
        if let Some(spare) = self.state.spare.take() {
            return f64::from_bits(spare);
        }
        let u1 = self.uniform_f64();
        let u2 = self.uniform_f64();
        let (value, spare) = normal_pair(u1, u2);
        self.state.spare = Some(spare.to_bits());
        value
    }

    fn word(&mut self) -> u32 {
        self.state.words += 1;
        self.twister.next_word()
    }
}

impl std::fmt::Debug for TorchCpuGenerator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("TorchCpuGenerator").field(&self.state).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(generator: &mut TorchCpuGenerator, count: usize) -> Vec<f32> {
        let mut out = vec![0.0; count];
        generator.standard_normal(&mut out);
        out
    }

    #[test]
    fn a_resumed_generator_goes_on_with_the_same_bits() {
        for before in [vec![], vec![3], vec![16], vec![17, 5], vec![1024, 1, 1000, 7]] {
            let mut generator = TorchCpuGenerator::new(99);
            for count in &before {
                draw(&mut generator, *count);
            }
            let text = serde_json::to_string(&generator.state()).unwrap();
            let mut resumed = TorchCpuGenerator::resume(serde_json::from_str(&text).unwrap());
            for count in [5, 64, 2, 33] {
                assert_eq!(draw(&mut generator, count), draw(&mut resumed, count), "after draws of {before:?}");
            }
        }
    }

    #[test]
    fn only_the_lower_half_of_a_seed_counts() {
        let low = draw(&mut TorchCpuGenerator::new(5), 32);
        assert_eq!(low, draw(&mut TorchCpuGenerator::new((1 << 40) | 5), 32));
        assert_ne!(low, draw(&mut TorchCpuGenerator::new(6), 32));
    }

    #[test]
    fn the_moments_are_those_of_a_standard_normal() {
        let values = draw(&mut TorchCpuGenerator::new(1), 1 << 18);
        let n = values.len() as f64;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let variance = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n;
        // Five standard errors: 1/sqrt(n) of the mean, sqrt(2/n) of the variance.
        assert!(mean.abs() < 5.0 / n.sqrt(), "mean {mean}");
        assert!((variance - 1.0).abs() < 5.0 * (2.0 / n).sqrt(), "variance {variance}");
    }
}
