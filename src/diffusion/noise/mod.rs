//! Random numbers per sample: the generators that give a seed the meaning it has elsewhere. No tensors.
//!
//! A sample owns its generator, so what it draws never depends on who shares its batch. The main type is
//! [`NoiseGenerator`]: `seed` gives the noise that `torch.Generator(device).manual_seed(seed)` gives in PyTorch, on the CPU
//! ([`TorchCpuGenerator`], Mersenne Twister) or on an NVIDIA GPU ([`TorchCudaGenerator`], Philox), wherever this runs.
//!
//! What it does not do: draw seeds (a front door does, from the operating system), or place noise in a picture.

mod box_muller;
mod mt19937;
mod philox;
mod torch_cpu;
mod torch_cuda;

pub use torch_cpu::{TorchCpuGenerator, TorchCpuState};
pub use torch_cuda::TorchCudaGenerator;

use serde::{Deserialize, Serialize};

use crate::domain::NoiseSource;

/// Where a generator stands: small, and enough to go on from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoiseState {
    /// [`NoiseSource::TorchCpu`]
    TorchCpu(TorchCpuState),
    /// [`NoiseSource::TorchCuda`]
    TorchCuda(TorchCudaGenerator),
}

/// One of PyTorch's generators.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "one lives as long as its sample, and a picture's latents are larger")]
pub enum NoiseGenerator {
    /// [`NoiseSource::TorchCpu`]
    TorchCpu(TorchCpuGenerator),
    /// [`NoiseSource::TorchCuda`]
    TorchCuda(TorchCudaGenerator),
}

impl NoiseGenerator {
    /// Seeded, before its first draw.
    pub fn new(source: NoiseSource, seed: u64) -> Self {
        match source {
            NoiseSource::TorchCpu => Self::TorchCpu(TorchCpuGenerator::new(seed)),
            NoiseSource::TorchCuda => Self::TorchCuda(TorchCudaGenerator::new(seed)),
        }
    }

    /// Where it stands now.
    pub fn state(&self) -> NoiseState {
        match self {
            Self::TorchCpu(generator) => NoiseState::TorchCpu(generator.state()),
            Self::TorchCuda(generator) => NoiseState::TorchCuda(*generator),
        }
    }

    /// A generator that goes on where another stood; `None` where that was of another source or seed, or claims to have
    /// drawn more than `most` words (PyTorch's CPU generator) or calls (its CUDA generator). Takes about a nanosecond a word.
    pub fn resume(state: NoiseState, (source, seed): (NoiseSource, u64), most: u64) -> Option<Self> {
        match (state, source) {
            (NoiseState::TorchCpu(state), NoiseSource::TorchCpu) if state.seed == seed && state.words <= most => {
                Some(Self::TorchCpu(TorchCpuGenerator::resume(state)))
            }
            (NoiseState::TorchCuda(generator), NoiseSource::TorchCuda) if generator.is_of(seed, most) => {
                Some(Self::TorchCuda(generator))
            }
            _ => None,
        }
    }

    /// Fills `out` as one call of `torch.randn` for so many values does.
    pub fn standard_normal(&mut self, out: &mut [f32]) {
        match self {
            Self::TorchCpu(generator) => generator.standard_normal(out),
            Self::TorchCuda(generator) => generator.standard_normal(out),
        }
    }
}
