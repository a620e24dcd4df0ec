//! Random numbers per sample: the generators that give a seed the meaning it has elsewhere. No tensors.
//!
//! A sample owns its generator, so what it draws never depends on who shares its batch. The main type is
//! [`TorchCpuGenerator`]: `seed` gives the noise that `torch.Generator("cpu").manual_seed(seed)` gives in PyTorch.
//!
//! What it does not do: draw seeds (a front door does, from the operating system), or place noise in a picture.

mod box_muller;
mod mt19937;
mod torch_cpu;

pub use torch_cpu::{TorchCpuGenerator, TorchCpuState};
