//! A parked job as bytes: a magic, a version, the length of a header, the header in JSON, the tensors' numbers as
//! little-endian f32 in the header's order, and SHA-256 of all that.
//!
//! The reader trusts nothing: no length is believed before the bytes are there, and the numbers fill the rest to the byte.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Basis, ParkedJob, ParkedSample, ParkedTensor};
use crate::diffusion::noise::NoiseState;
use crate::domain::Artifact;

const MAGIC: &[u8; 8] = b"DARKPARK";
const VERSION: u32 = 1;
const CHECKSUM: usize = 32;
/// Magic, version and the header's length.
const FRAME: usize = MAGIC.len() + 4 + 4;
/// Some hundred bytes a tensor: enough for a thousand pictures.
const MAX_HEADER: usize = 1 << 20;
/// The most that is written or read, in bytes: some twenty pictures of 4096 x 4096 pixels.
pub const MAX_PARKED_BYTES: usize = 1 << 29;

/// Why bytes are no parked job, or why a parked job has no bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It would take, or takes, more than is written and read.
    #[error("it has {bytes} bytes of {what}; at most {most} are taken")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// How many it has.
        bytes: usize,
        /// How many it may have.
        most: usize,
    },
    /// It ends before what it says is in it, or goes on after.
    #[error("its length is not what it says")]
    Length,
    /// It begins with something else.
    #[error("it is no parked job")]
    Magic,
    /// Another version wrote it.
    #[error("it is of version {0}; version {VERSION} is read")]
    Version(u32),
    /// Some of its bytes changed.
    #[error("its checksum is wrong")]
    Checksum,
    /// The header is not one.
    #[error("its header cannot be read: {0}")]
    Header(String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    basis: Basis,
    samples: Vec<Sample>,
    stored: Vec<Artifact>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sample {
    image: u32,
    pass: usize,
    evaluated: usize,
    noise: NoiseState,
    /// Name and shape.
    tensors: Vec<(String, Vec<usize>)>,
}

impl ParkedJob {
    /// To be read by [`ParkedJob::from_bytes`], which gives every f32 back to the bit.
    ///
    /// # Errors
    /// [`Unreadable::TooLarge`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, Unreadable> {
        let named = |tensor: &ParkedTensor| (tensor.name.clone(), tensor.shape.clone());
        let sample = |ParkedSample { image, pass, evaluated, noise, tensors }: &ParkedSample| Sample {
            image: *image,
            pass: *pass,
            evaluated: *evaluated,
            noise: *noise,
            tensors: tensors.iter().map(named).collect(),
        };
        let samples = self.samples.iter().map(sample).collect();
        let header = Header { basis: self.basis.clone(), samples, stored: self.stored.clone() };
        let header = serde_json::to_vec(&header).map_err(|error| Unreadable::Header(error.to_string()))?;
        bounded("its header", header.len(), MAX_HEADER)?;
        let tensors = || self.samples.iter().flat_map(|sample| &sample.tensors);
        let values: usize = tensors().map(|tensor| tensor.values.len()).sum();
        let size = FRAME + header.len() + 4 * values + CHECKSUM;
        bounded("all", size, MAX_PARKED_BYTES)?;
        let mut bytes = Vec::with_capacity(size);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(header.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&header);
        bytes.extend(tensors().flat_map(|tensor| &tensor.values).flat_map(|value| value.to_le_bytes()));
        let checksum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&checksum);
        Ok(bytes)
    }

    /// What [`ParkedJob::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`Unreadable`]: anything else, told without a panic and without taking more memory than the bytes have.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Unreadable> {
        bounded("all", bytes.len(), MAX_PARKED_BYTES)?;
        if !bytes.starts_with(MAGIC) {
            return Err(Unreadable::Magic);
        }
        let (version, rest) = number(&bytes[MAGIC.len()..])?;
        if version != VERSION {
            return Err(Unreadable::Version(version));
        }
        let (length, rest) = number(rest)?;
        let length = length as usize;
        bounded("its header", length, MAX_HEADER)?;
        let body = rest.len().checked_sub(CHECKSUM).ok_or(Unreadable::Length)?;
        let (body, checksum) = rest.split_at(body);
        if Sha256::digest(&bytes[..bytes.len() - CHECKSUM])[..] != *checksum {
            return Err(Unreadable::Checksum);
        }
        let (header, values) = body.split_at_checked(length).ok_or(Unreadable::Length)?;
        let header: Header = serde_json::from_slice(header).map_err(|error| Unreadable::Header(error.to_string()))?;
        let mut values = Values(values);
        let samples = header.samples.into_iter().map(|sample| values.sample(sample)).collect::<Result<_, _>>()?;
        let Values([]) = values else { return Err(Unreadable::Length) };
        Ok(Self { basis: header.basis, samples, stored: header.stored })
    }
}

fn bounded(what: &'static str, bytes: usize, most: usize) -> Result<(), Unreadable> {
    if bytes > most { Err(Unreadable::TooLarge { what, bytes, most }) } else { Ok(()) }
}

fn number(bytes: &[u8]) -> Result<(u32, &[u8]), Unreadable> {
    let (number, rest) = bytes.split_first_chunk().ok_or(Unreadable::Length)?;
    Ok((u32::from_le_bytes(*number), rest))
}

/// The numbers not yet given out.
struct Values<'a>(&'a [u8]);

impl Values<'_> {
    fn sample(&mut self, sample: Sample) -> Result<ParkedSample, Unreadable> {
        let Sample { image, pass, evaluated, noise, tensors } = sample;
        let tensors = tensors.into_iter().map(|(name, shape)| self.tensor(name, shape)).collect::<Result<_, _>>()?;
        Ok(ParkedSample { image, pass, evaluated, noise, tensors })
    }

    fn tensor(&mut self, name: String, shape: Vec<usize>) -> Result<ParkedTensor, Unreadable> {
        let bytes = shape.iter().try_fold(4usize, |bytes, side| bytes.checked_mul(*side)).ok_or(Unreadable::Length)?;
        let (own, rest) = self.0.split_at_checked(bytes).ok_or(Unreadable::Length)?;
        self.0 = rest;
        let values = own.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect();
        Ok(ParkedTensor { name, shape, values })
    }
}
