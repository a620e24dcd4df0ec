//! The header of a safetensors file, checked before anything is read by it.
//!
//! The format: 8 bytes, the header's length as u64 (little-endian); the header, a JSON object of tensors by name; the
//! data, without holes (<https://github.com/huggingface/safetensors#format>). What is accepted here is accepted by the
//! format's own reader (a test compares the two); beyond it, a name may stand there only once, and a fault names its tensor.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::fmt;

use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

/// As in the format's own reader.
const LONGEST_HEADER: u64 = 100_000_000;
/// Networks have at most five dimensions.
const MOST_DIMENSIONS: usize = 8;
const LENGTH_BYTES: usize = 8;

/// How the numbers of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[expect(non_camel_case_types, missing_docs, reason = "the format's own names")]
pub enum Dtype {
    BOOL,
    F4,
    F6_E2M3,
    F6_E3M2,
    U8,
    I8,
    F8_E5M2,
    F8_E4M3,
    F8_E8M0,
    F8_E4M3FNUZ,
    F8_E5M2FNUZ,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
}

impl Dtype {
    /// Size of one number.
    pub fn bits(self) -> u64 {
        match self {
            Self::F4 => 4,
            Self::F6_E2M3 | Self::F6_E3M2 => 6,
            Self::BOOL | Self::U8 | Self::I8 => 8,
            Self::F8_E5M2 | Self::F8_E4M3 | Self::F8_E8M0 | Self::F8_E4M3FNUZ | Self::F8_E5M2FNUZ => 8,
            Self::I16 | Self::U16 | Self::F16 | Self::BF16 => 16,
            Self::I32 | Self::U32 | Self::F32 => 32,
            Self::C64 | Self::F64 | Self::I64 | Self::U64 => 64,
        }
    }
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its full name.
    pub name: String,
    /// How its numbers are stored.
    pub dtype: Dtype,
    /// As stored; empty for a single number.
    pub shape: Vec<usize>,
    /// Bytes from..to in the file.
    pub bytes: std::ops::Range<usize>,
}

impl TensorInfo {
    /// How many numbers it has.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A header that holds what it promises.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// In the order of their data.
    pub tensors: Vec<TensorInfo>,
    /// `__metadata__`: what the writer said about the file.
    pub metadata: BTreeMap<String, String>,
}

impl Header {
    /// Reads the header of a whole file's bytes.
    ///
    /// Allocates in proportion to the header's real length, whatever it claims.
    ///
    /// # Errors
    /// The first fault, as a sentence that names the tensor where one is at fault.
    pub fn parse(file: &[u8]) -> Result<Self, String> {
        let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
            return Err(format!("it has {} bytes, fewer than the {LENGTH_BYTES} of a header's length", file.len()));
        };
        let claimed = u64::from_le_bytes(*length);
        if claimed > LONGEST_HEADER {
            return Err(format!("its header claims {claimed} bytes; at most {LONGEST_HEADER} are allowed"));
        }
        let length = claimed as usize;
        let Some((text, data)) = rest.split_at_checked(length) else {
            return Err(format!("its header claims {claimed} bytes; {} are left in the file", rest.len()));
        };
        let text = std::str::from_utf8(text)
            .map_err(|fault| format!("its header is not UTF-8: byte {}", fault.valid_up_to()))?;
        if !text.starts_with('{') {
            return Err("its header is no JSON object: it does not begin with `{`".to_owned());
        }
        let raw: RawHeader = serde_json::from_str(text).map_err(|fault| shortened(&fault.to_string()))?;
        let tensors = laid_out(raw.tensors, LENGTH_BYTES + length, data.len())?;
        Ok(Self { tensors, metadata: raw.metadata })
    }
}

/// Checks sizes, and that the tensors fill the data from its first byte to its last.
fn laid_out(
    mut tensors: Vec<(String, RawTensor)>,
    data_start: usize,
    data_length: usize,
) -> Result<Vec<TensorInfo>, String> {
    tensors.sort_by_key(|(_, tensor)| tensor.data_offsets);
    let mut checked: Vec<TensorInfo> = Vec::with_capacity(tensors.len());
    let mut end = 0;
    for (name, RawTensor { dtype, shape: Dimensions(shape), data_offsets: (from, to) }) in tensors {
        let fault = |reason: String| Err(format!("tensor `{}`: {reason}", shown(&name)));
        let offsets = format!("its data_offsets are [{from}, {to}]");
        let bits = shape.iter().try_fold(dtype.bits(), |bits, side| bits.checked_mul(*side));
        let Some(bits) = bits else { return fault(format!("shape {shape:?} of {dtype:?} overflows")) };
        if bits % 8 != 0 {
            return fault(format!("shape {shape:?} of {dtype:?} is no whole number of bytes"));
        }
        if to < from {
            return fault(format!("{offsets}, backwards"));
        }
        if to > data_length as u64 {
            return fault(format!("{offsets}; the file has {data_length} bytes of data"));
        }
        if to - from != bits / 8 {
            return fault(format!("{offsets}, {} bytes; shape {shape:?} of {dtype:?} has {}", to - from, bits / 8));
        }
        if from < end {
            let before = checked.last().map(|tensor| shown(&tensor.name)).unwrap_or_default();
            return fault(format!("{offsets}; they overlap with those of `{before}`, which end at {end}"));
        }
        if from > end {
            return fault(format!("{offsets}; the bytes from {end} on belong to no tensor"));
        }
        end = to;
        // All are at most the file's length by now.
        let bytes = data_start + from as usize..data_start + to as usize;
        checked.push(TensorInfo { name, dtype, shape: shape.into_iter().map(|side| side as usize).collect(), bytes });
    }
    if end != data_length as u64 {
        return Err(format!("its tensors have {end} bytes of data, the file has {data_length}"));
    }
    Ok(checked)
}

/// A name from a file, fit for a message: no control characters, not endless.
pub(super) fn shown(name: &str) -> String {
    shortened(&name.escape_debug().to_string())
}

fn shortened(text: &str) -> String {
    const MOST: usize = 200;
    match text.char_indices().nth(MOST) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: Dtype,
    shape: Dimensions,
    data_offsets: (u64, u64),
}

/// A short list of sides.
struct Dimensions(Vec<u64>);

impl<'de> Deserialize<'de> for Dimensions {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Sides;
        impl<'de> Visitor<'de> for Sides {
            type Value = Dimensions;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a shape of at most {MOST_DIMENSIONS} whole numbers")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut sides: A) -> Result<Dimensions, A::Error> {
                let mut shape = Vec::with_capacity(4);
                while let Some(side) = sides.next_element()? {
                    if shape.len() == MOST_DIMENSIONS {
                        return Err(A::Error::invalid_length(MOST_DIMENSIONS + 1, &self));
                    }
                    shape.push(side);
                }
                Ok(Dimensions(shape))
            }
        }
        deserializer.deserialize_seq(Sides)
    }
}

struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors by name")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let (mut tensors, mut metadata, mut known) = (Vec::new(), None, HashSet::new());
                while let Some(name) = map.next_key::<String>()? {
                    if !known.insert(name.clone()) {
                        return Err(A::Error::custom(format!("tensor `{}` is there twice", shown(&name))));
                    }
                    if name == "__metadata__" {
                        metadata = map.next_value::<Option<BTreeMap<String, String>>>()?;
                    } else {
                        let tensor = map.next_value::<RawTensor>();
                        let named = |fault| A::Error::custom(format!("tensor `{}`: {fault}", shown(&name)));
                        tensors.push((name.clone(), tensor.map_err(named)?));
                    }
                }
                Ok(RawHeader { tensors, metadata: metadata.unwrap_or_default() })
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// What a file that is no safetensors file seems to be, and what to do about it.
pub(super) fn hint(file: &[u8]) -> Option<&'static str> {
    // A ZIP archive (PyTorch since 1.6), or a bare pickle of protocol 2 to 5.
    let pickled = file.starts_with(b"PK\x03\x04") || matches!(file, [0x80, 2..=5, ..]);
    if pickled {
        return Some(PICKLED);
    }
    if file.starts_with(b"version https://git-lfs") {
        return Some("it is the pointer of Git LFS, not the file itself; fetch it with `git lfs pull`");
    }
    file.trim_ascii_start().starts_with(b"<").then_some("it is a web page, as a failed download leaves it")
}

/// Why pickle files are refused, and the way out.
pub(super) const PICKLED: &str = "it is a pickle file, which can run any code when it is opened; convert it where you trust it: \
    python -c \"import sys, torch; from safetensors.torch import save_file; d = torch.load(sys.argv[1], 'cpu', \
    weights_only=True); d = d.get('state_dict', d); save_file({k: v.contiguous().clone() for k, v in d.items() \
    if torch.is_tensor(v)}, sys.argv[2])\" IN.ckpt OUT.safetensors";
