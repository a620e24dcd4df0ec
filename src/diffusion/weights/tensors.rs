//! Safetensors bytes to tensors, by name and expected shape.

use std::borrow::Cow;
use std::fmt::Display;
use std::sync::Arc;

use candle_core::{Device, Shape, Tensor};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

use super::{Error, Result};

/// A file's bytes: mapped from disk or held in memory.
pub(super) enum Bytes {
    Mapped(memmap2::Mmap),
    Held(Cow<'static, [u8]>),
}

impl Bytes {
    #[expect(unsafe_code, reason = "mapping a file is unsafe by nature")]
    pub(super) fn map(file: &std::fs::File) -> std::io::Result<Self> {
        // SAFETY: the map is read-only and every value read from it is copied before use; a checkpoint changed by someone
        // else while it loads gives wrong numbers or SIGBUS when truncated, as with any program that maps its data.
        Ok(Self::Mapped(unsafe { memmap2::Mmap::map(file)? }))
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Held(bytes) => bytes,
        }
    }
}

/// One safetensors file whose header has been checked.
pub(super) struct Shard {
    file: String,
    bytes: Bytes,
}

impl Shard {
    pub(super) fn parse(file: String, bytes: Bytes) -> Result<Self> {
        // The crate checks the header's length, that offsets neither overlap nor leave the file, and sizes against dtypes.
        SafeTensors::deserialize(bytes.as_ref()).map_err(|error| Error::Malformed {
            file: file.clone(),
            reason: format!("not a whole safetensors file ({error})"),
        })?;
        Ok(Self { file, bytes })
    }

    fn views(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(self.bytes.as_ref()).expect("parsed when opened. This is a bug in weights.")
    }
}

struct Files {
    shards: Vec<Shard>,
    /// Full name -> shard, dtype, shape, bytes from..to in the shard's data.
    index: std::collections::HashMap<String, Entry>,
    device: Device,
}

struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    from: usize,
    to: usize,
}

/// The tensors of one component below a name prefix; cloning is cheap.
#[derive(Clone)]
pub struct Weights {
    files: Arc<Files>,
    prefix: String,
}

impl Weights {
    pub(super) fn open(shards: Vec<Shard>, device: &Device) -> Result<Self> {
        let mut index = std::collections::HashMap::new();
        for (number, shard) in shards.iter().enumerate() {
            let start = shard.bytes.as_ref().as_ptr() as usize;
            for (name, view) in shard.views().iter() {
                let from = view.data().as_ptr() as usize - start;
                let entry = Entry {
                    shard: number,
                    dtype: view.dtype(),
                    shape: view.shape().to_vec(),
                    from,
                    to: from + view.data().len(),
                };
                index.insert(name.to_owned(), entry);
            }
        }
        Ok(Self { files: Arc::new(Files { shards, index, device: device.clone() }), prefix: String::new() })
    }

    /// The weights one name further down.
    #[must_use]
    pub fn pp(&self, part: impl Display) -> Self {
        let dot = if self.prefix.is_empty() { "" } else { "." };
        Self { files: self.files.clone(), prefix: format!("{}{dot}{part}", self.prefix) }
    }

    /// Whether there is such a tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.files.index.contains_key(&self.full(name))
    }

    /// The device tensors are placed on.
    pub fn device(&self) -> &Device {
        &self.files.device
    }

    fn full(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }

    fn file_names(&self) -> String {
        self.files.shards.iter().map(|shard| shard.file.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// One tensor as f32, of exactly this shape.
    ///
    /// # Errors
    /// Missing, of another shape, or of a dtype other than F32, F16, BF16.
    pub fn get(&self, name: &str, shape: impl Into<Shape>) -> Result<Tensor> {
        let (shape, tensor) = (shape.into(), self.full(name));
        let Some(entry) = self.files.index.get(&tensor) else {
            return Err(Error::Missing { file: self.file_names(), tensor });
        };
        let shard = &self.files.shards[entry.shard];
        if entry.shape != shape.dims() {
            let (found, expected) = (entry.shape.clone(), shape.dims().to_vec());
            return Err(Error::Shape { file: shard.file.clone(), tensor, found, expected });
        }
        let bytes = &shard.bytes.as_ref()[entry.from..entry.to];
        let values: Vec<f32> = match entry.dtype {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            other => return Err(Error::Dtype { file: shard.file.clone(), tensor, dtype: format!("{other:?}") }),
        };
        Tensor::from_vec(values, shape, &self.files.device).map_err(|error| Error::Device {
            file: shard.file.clone(),
            tensor,
            reason: error.to_string(),
        })
    }
}
