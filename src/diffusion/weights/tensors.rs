//! Safetensors bytes to tensors, by name and expected shape.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{DType, Device, Shape, Tensor};
use half::{bf16, f16};
use sha2::{Digest, Sha256};

use super::header::{Dtype, Header, TensorInfo, hint, shown};
use super::names::{NameMap, View};
use super::{Error, Result};
use crate::domain::hex;

/// Of each tensor, in its files' fingerprint.
const FIRST_BYTES: usize = 64;

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
    header: Header,
}

impl Shard {
    pub(super) fn parse(file: String, bytes: Bytes) -> Result<Arc<Self>> {
        match Header::parse(bytes.as_ref()) {
            Ok(header) => Ok(Arc::new(Self { file, bytes, header })),
            Err(fault) => {
                let reason = match hint(bytes.as_ref()) {
                    Some(hint) => hint.to_owned(),
                    None => format!("not a whole safetensors file: {fault}"),
                };
                Err(Error::Malformed { file, reason })
            }
        }
    }

    /// As messages name it.
    pub(super) fn file(&self) -> &str {
        &self.file
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    /// The first of these tensors that is not here.
    pub(super) fn lacking(&self, tensors: Vec<String>) -> Option<String> {
        let held: HashSet<&str> = self.header.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        tensors.into_iter().find(|tensor| !held.contains(tensor.as_str()))
    }
}

struct Files {
    shards: Vec<Arc<Shard>>,
    /// Name in the file -> its shard, and its place among the tensors of that shard.
    index: HashMap<String, (usize, usize)>,
    /// From the names asked for to those in the file; `None` where they are the same.
    names: Option<NameMap>,
    device: Device,
    /// Bytes of the tensors that were asked for.
    read: AtomicU64,
}

/// The tensors of one component below a name prefix; cloning is cheap.
#[derive(Clone)]
pub struct Weights {
    files: Arc<Files>,
    prefix: String,
    /// Of the tensors that are given, whatever they are stored as.
    dtype: DType,
    tf32: bool,
}

/// A tensor that was found: where it stands, and how it is seen.
struct Found<'a> {
    shard: &'a Shard,
    info: &'a TensorInfo,
    view: View,
}

impl Weights {
    pub(super) fn open(shards: Vec<Arc<Shard>>, names: Option<NameMap>, device: &Device) -> Result<Self> {
        let mut index = HashMap::new();
        for (number, shard) in shards.iter().enumerate() {
            for (place, tensor) in shard.header.tensors.iter().enumerate() {
                if let Some((first, _)) = index.insert(tensor.name.clone(), (number, place)) {
                    let (name, first) = (shown(&tensor.name), &shards[first].file);
                    let reason = format!("tensor `{name}` is in {first} as well");
                    return Err(Error::Malformed { file: shard.file.clone(), reason });
                }
            }
        }
        let files = Files { shards, index, names, device: device.clone(), read: AtomicU64::new(0) };
        Ok(Self { files: Arc::new(files), prefix: String::new(), dtype: DType::F32, tf32: false })
    }

    /// The same weights, with tensors given in this dtype: F32, F16 or BF16. F32 where nobody says.
    #[must_use]
    pub fn in_dtype(&self, dtype: DType) -> Self {
        Self { dtype, ..self.clone() }
    }

    /// The same weights, for a network that may round the factors of its f32 convolutions to TF32 (10 bits) where a GPU is faster so.
    #[must_use]
    pub fn allowing_tf32(&self) -> Self {
        Self { tf32: true, ..self.clone() }
    }

    /// Whether the network may.
    pub fn allows_tf32(&self) -> bool {
        self.tf32
    }

    /// The dtype of the tensors that are given.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The weights one name further down.
    #[must_use]
    pub fn pp(&self, part: impl Display) -> Self {
        let dot = if self.prefix.is_empty() { "" } else { "." };
        Self { prefix: format!("{}{dot}{part}", self.prefix), ..self.clone() }
    }

    /// The name that all names here begin with, as networks ask for it.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether there is such a tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.find(&self.full(name)).is_ok()
    }

    /// The device tensors are placed on.
    pub fn device(&self) -> &Device {
        &self.files.device
    }

    /// What the component's tensors take once they are read in this dtype, in bytes; told from the headers.
    pub fn bytes(&self) -> u64 {
        let is_of_it = |tensor: &&TensorInfo| self.files.names.as_ref().is_none_or(|names| names.holds(&tensor.name));
        let tensors = self.files.shards.iter().flat_map(|shard| &shard.header.tensors).filter(is_of_it);
        tensors.map(|tensor| (tensor.elements() * self.dtype.size_in_bytes()) as u64).sum()
    }

    /// Tells these files' numbers from others, whatever the files are called and when they were written: SHA-256 over each
    /// tensor's name, type, shape and first bytes, in hex. Over all bytes it would take as long as reading them. Numbers
    /// that are rounded to another dtype than F32 are others too.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        if self.dtype != DType::F32 {
            hash.update(self.dtype.as_str());
        }
        for shard in &self.files.shards {
            for TensorInfo { name, dtype, shape, bytes } in &shard.header.tensors {
                hash.update(format!("{name:?}{dtype:?}{shape:?}"));
                let end = bytes.end.min(bytes.start + FIRST_BYTES);
                hash.update(&shard.bytes.as_ref()[bytes.start..end]);
            }
        }
        hex(hash.finalize())
    }

    /// What the tensors that were read so far take, in bytes; one that was read twice counts twice.
    pub fn bytes_read(&self) -> u64 {
        self.files.read.load(Ordering::Relaxed)
    }

    fn full(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }

    fn file_names(&self) -> String {
        self.files.shards.iter().map(|shard| shard.file.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// By the full name networks ask for; where there is none, the name that the file should have.
    fn find(&self, asked: &str) -> std::result::Result<Found<'_>, String> {
        let (stored, view) = match &self.files.names {
            None => (asked.to_owned(), View::Whole),
            Some(names) => names.find(asked).ok_or_else(|| asked.to_owned())?,
        };
        match self.files.index.get(&stored) {
            None => Err(stored),
            Some((shard, place)) => {
                let shard = &self.files.shards[*shard];
                Ok(Found { shard, info: &shard.header.tensors[*place], view })
            }
        }
    }

    /// Bytes of half precision that are wanted as they are stored: nothing is converted. None where they are not, or where one of
    /// them is no finite number, which [`Self::get`] tells.
    fn as_stored(&self, bytes: &[u8], stored: Dtype, shape: &Shape) -> Option<candle_core::Result<Tensor>> {
        let words = bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b));
        let are_finite = |exponent: u16| words.clone().all(|word| word & exponent != exponent);
        let (device, shape) = (&self.files.device, shape.clone());
        match (stored, self.dtype) {
            (Dtype::F16, DType::F16) if are_finite(0x7c00) => {
                Some(Tensor::from_vec(words.map(f16::from_bits).collect::<Vec<_>>(), shape, device))
            }
            (Dtype::BF16, DType::BF16) if are_finite(0x7f80) => {
                Some(Tensor::from_vec(words.map(bf16::from_bits).collect::<Vec<_>>(), shape, device))
            }
            _ => None,
        }
    }

    /// One tensor of exactly this shape, in the dtype of these weights.
    ///
    /// # Errors
    /// Missing, of another shape, stored in a dtype other than F32, F16, BF16, or with a number that is not finite or that
    /// the dtype of these weights cannot hold.
    pub fn get(&self, name: &str, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        let Found { shard, info, view } = self
            .find(&self.full(name))
            .map_err(|stored| Error::Missing { file: self.file_names(), tensor: shown(&stored) })?;
        let (file, tensor) = (shard.file.clone(), info.name.clone());
        if view.shape(&info.shape).as_deref() != Some(shape.dims()) {
            let (found, expected) = (info.shape.clone(), view.stored(shape.dims()));
            return Err(Error::Shape { file, tensor, found, expected });
        }
        let bytes = &shard.bytes.as_ref()[info.bytes.clone()];
        let bytes = match view {
            View::Third(k) => &bytes[k * bytes.len() / 3..(k + 1) * bytes.len() / 3],
            _ => bytes,
        };
        if !matches!(view, View::Transposed)
            && let Some(placed) = self.as_stored(bytes, info.dtype, &shape)
        {
            self.files.read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            return placed.map_err(|error| Error::Device { file, tensor, reason: error.to_string() });
        }
        let mut values: Vec<f32> = match info.dtype {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            dtype => return Err(Error::Dtype { file, tensor, dtype: format!("{dtype:?}") }),
        };
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::NotFinite { file, tensor, value: values[index], index });
        }
        let limit = limit_of(self.dtype);
        if let Some(index) = values.iter().position(|value| value.abs() >= limit) {
            let dtype = self.dtype.as_str();
            return Err(Error::Overflow { file, tensor, value: values[index], index, dtype });
        }
        if let (View::Transposed, [rows, columns]) = (view, shape.dims()) {
            values = (0..rows * columns).map(|at| values[at % columns * rows + at / columns]).collect();
        }
        self.files.read.fetch_add((values.len() * self.dtype.size_in_bytes()) as u64, Ordering::Relaxed);
        let failed = |error: candle_core::Error| Error::Device { file, tensor, reason: error.to_string() };
        let placed = Tensor::from_vec(values, shape, &self.files.device);
        placed.and_then(|tensor| tensor.to_dtype(self.dtype)).map_err(failed)
    }
}

/// From here on f32 rounds to an infinity of this dtype: half a step beyond its largest number.
fn limit_of(dtype: DType) -> f32 {
    match dtype {
        DType::F16 => 65520.0,
        DType::BF16 => f32::from_bits(0x7f7f_8000),
        _ => f32::INFINITY,
    }
}
