//! RGB buffers and their encodings: PNG (with generation parameters), JPEG, WebP; pictures that clients send, and what a
//! picture is drawn from. No tensors, no files.

mod blur;
mod canvas;
mod decode;
mod encode;
mod input;
mod overlay;
mod parameters;
mod pixels;
mod resample;

pub use canvas::{Canvas, ControlPicture, Framing};
pub use decode::decode;
pub use encode::{PictureInfo, encode};
pub use input::{InputFault, InputLimits, read_mask, read_rgb};
pub use parameters::describe;
pub use pixels::{GrayImage, Pixels, Region, RgbImage};
pub use resample::Filter;

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
