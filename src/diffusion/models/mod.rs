//! Networks, tensors in and out; built from each checkpoint's own config.json. No sampling, no text, no pictures.
//!
//! They reach convolutions, products, attention, norms and activations through [`layers`] alone, so that faster kernels can
//! take their place beneath. Row i of every output depends on row i of the inputs alone, in f32 to the last bit on CPU: a
//! matrix product may take another path for another number of rows, so `kernels` works sample by sample.
//!
//! U-Nets and ControlNets hold their weights in f32, f16 or bf16 and compute in that; what goes in and comes out is f32.

pub mod adapters;
pub mod autoencoders;
pub mod layers;
pub mod text_encoders;
pub mod unets;

use crate::diffusion::weights;

/// What can be wrong with a network's configuration or files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checkpoint's files.
    #[error(transparent)]
    Weights(#[from] weights::Error),
    /// A configuration value that cannot be honoured.
    #[error("config.json: `{key}` is {value}; supported: {supported}")]
    Unsupported {
        /// Which key.
        key: &'static str,
        /// What stands there.
        value: String,
        /// What could.
        supported: &'static str,
    },
    /// The tensor library.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

/// Of this room.
pub type Result<T> = std::result::Result<T, Error>;

/// Refuses a configuration value unless `holds`.
pub(crate) fn require(
    holds: bool,
    key: &'static str,
    value: impl std::fmt::Debug,
    supported: &'static str,
) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::Unsupported { key, value: format!("{value:?}"), supported }) }
}
