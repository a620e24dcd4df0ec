//! Checkpoint files to tensors: diffusers folders, embedded files, and single files in the original code's names, which are
//! seen as such folders ([`Checkpoint`]).
//!
//! A header is checked before anything is read by it ([`Header`]). Every fault of a file is one error naming the file, the tensor and what was expected; hostile files neither panic nor
//! allocate what their headers claim. Does not know networks.

mod changes;
mod checkpoint;
mod clip_vocabulary;
mod disk;
mod embeddings;
mod header;
mod identity;
mod inspect;
mod lora;
mod names;
mod single_file;
mod tensors;
pub mod variants;

pub use changes::{Changed, Changes};
pub use checkpoint::{Checkpoint, EmbeddedFiles, SingleFile};
pub use embeddings::TextEmbedding;
pub use header::{Dtype, Header, TensorInfo};
pub use identity::Hashing;
pub use inspect::{ComponentReport, FileReport, Hashes, Inspection, inspect};
pub use lora::{LoraFile, LoraLayer, LoraLibrary, LoraPart, LoraTarget, LoraTensors};
pub use names::{NameMap, View};
pub use single_file::{
    ControlNetFile, Family, Layout, OriginalLevel, Prediction, TinyFile, VaeFile, original_unet_names,
};
pub use tensors::Weights;

/// What can be wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {file}: {reason}")]
    Read {
        /// Which file.
        file: String,
        /// The system's word.
        reason: String,
    },
    /// A JSON or text file does not say what it must.
    #[error("{file} is not usable: {reason}")]
    Malformed {
        /// Which file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// A tensor the configuration asks for is not there.
    #[error("{file} has no tensor `{tensor}`")]
    Missing {
        /// Which file.
        file: String,
        /// Full name.
        tensor: String,
    },
    /// A tensor has another shape than the configuration asks for.
    #[error("{file}: tensor `{tensor}` has shape {found:?}, its config.json asks for {expected:?}")]
    Shape {
        /// Which file.
        file: String,
        /// Full name.
        tensor: String,
        /// As stored.
        found: Vec<usize>,
        /// As configured.
        expected: Vec<usize>,
    },
    /// A tensor that is added to a layer does not fit it.
    #[error("{file}: tensor `{tensor}` has shape {found:?}; the model's layer takes {expected:?}")]
    Misfit {
        /// Which file.
        file: String,
        /// Full name.
        tensor: String,
        /// As stored.
        found: Vec<usize>,
        /// What would fit.
        expected: Vec<usize>,
    },
    /// A tensor's numbers are of a type that cannot be read.
    #[error("{file}: tensor `{tensor}` has dtype {dtype}; F32, F16 and BF16 are supported")]
    Dtype {
        /// Which file.
        file: String,
        /// Full name.
        tensor: String,
        /// As stored.
        dtype: String,
    },
    /// A tensor holds a number that would spoil every picture.
    #[error("{file}: tensor `{tensor}` holds {value} at index {index}; weights must be finite")]
    NotFinite {
        /// Which file.
        file: String,
        /// Full name.
        tensor: String,
        /// NaN or an infinity.
        value: f32,
        /// The first of its kind, counted in the order of storage.
        index: usize,
    },
    /// A tensor holds a number that the dtype it is read in has no place for.
    #[error("{file}: tensor `{tensor}` holds {value} at index {index}, which {dtype} cannot hold; f32 can")]
    Overflow {
        /// Which file.
        file: String,
        /// Full name.
        tensor: String,
        /// It.
        value: f32,
        /// The first of its kind, counted in the order of storage.
        index: usize,
        /// `f16` or `bf16`.
        dtype: &'static str,
    },
    /// The device did not take it.
    #[error("cannot place tensor `{tensor}` of {file} on the device: {reason}")]
    Device {
        /// Which file.
        file: String,
        /// Full name.
        tensor: String,
        /// The tensor library's word.
        reason: String,
    },
}

/// Of this room.
pub type Result<T> = std::result::Result<T, Error>;
