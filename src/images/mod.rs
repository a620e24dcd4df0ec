//! RGB buffers and their encodings: PNG (with generation parameters), JPEG, WebP. No tensors, no files.

mod decode;
mod encode;
mod parameters;
mod rgb;

pub use decode::decode;
pub use encode::{PictureInfo, encode};
pub use parameters::describe;
pub use rgb::RgbImage;

/// What can go wrong with a picture's bytes.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An encoder refused.
    #[error("cannot encode the picture as {format}: {reason}")]
    Encode {
        /// Which encoding.
        format: crate::domain::ImageFormat,
        /// The encoder's word.
        reason: String,
    },
    /// The bytes are no picture of that kind.
    #[error("cannot decode the picture: {0}")]
    Decode(String),
}

/// Of this room.
pub type Result<T> = std::result::Result<T, Error>;
