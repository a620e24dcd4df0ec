//! A finished picture's description; its bytes lie in the artifact store.

use serde::{Deserialize, Serialize};

use super::sampling::wire_names;

wire_names! {
    /// How a picture is encoded.
    ImageFormat {
        /// Lossless, with the generation parameters in text chunks.
        Png => "png",
        /// Lossy, `quality` 1 to 100.
        Jpeg => "jpeg",
        /// Lossy, `quality` 1 to 100.
        Webp => "webp",
    }
}

use std::fmt;
use std::str::FromStr;

impl ImageFormat {
    /// The media type, for `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
        }
    }
}

/// One stored picture of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// Which of the job's pictures, from 0.
    pub index: u32,
    /// The seed that draws this picture again: the job's seed + `index`.
    pub seed: u64,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// The encoding as stored.
    pub format: ImageFormat,
    /// Size of the stored encoding.
    pub size_bytes: u64,
    /// Lower-case hex SHA-256 of the stored encoding.
    pub sha256: String,
}
