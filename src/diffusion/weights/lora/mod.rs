//! LoRA files (Hu et al. 2021) and their kin: small tensors that are added to layers of a network that stays as it is.
//!
//! What can be read: LoRA and LoCon (products of two or three small layers), LoHa (a Hadamard product of two such) and
//! LoKr (a Kronecker product), in the names of kohya, LyCORIS, PEFT and diffusers ([`LoraPart`] tells the shapes). What the
//! layers are called in a network, and what is computed of the tensors, is told by `models`.

mod file;
mod keys;
mod library;

pub use file::{LoraFile, LoraLayer, LoraTensors};
pub use keys::{LoraPart, LoraTarget};
pub use library::LoraLibrary;
