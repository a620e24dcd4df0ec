//! Pictures to file bytes. The same picture and words give the same bytes.

use image::ImageEncoder;
use image::codecs::jpeg::JpegEncoder;

use super::{Error, Result, RgbImage};
use crate::domain::{ImageFormat, OutputOptions};

/// What a PNG says about how it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PictureInfo {
    /// A1111's text, under the keyword `parameters`.
    pub parameters: String,
    /// The whole request as JSON, under the keyword `darkroom`.
    pub json: String,
    /// The files that drew it, as JSON, under the keyword `darkroom-files`.
    pub files: String,
}

/// File bytes; `info` goes into PNGs alone.
///
/// # Errors
/// The encoder's own, such as a picture too large for the format (WebP: 16383 pixels a side).
pub fn encode(picture: &RgbImage, output: OutputOptions, info: Option<&PictureInfo>) -> Result<Vec<u8>> {
    match output.format {
        ImageFormat::Png => png(picture, info).map_err(|error| refused(ImageFormat::Png, error)),
        ImageFormat::Jpeg => {
            let mut bytes = Vec::new();
            JpegEncoder::new_with_quality(&mut bytes, output.quality)
                .write_image(picture.pixels(), picture.width(), picture.height(), image::ExtendedColorType::Rgb8)
                .map_err(|error| refused(ImageFormat::Jpeg, error))?;
            Ok(bytes)
        }
        ImageFormat::Webp => {
            let encoder = webp::Encoder::from_rgb(picture.pixels(), picture.width(), picture.height());
            let bytes = encoder.encode_simple(false, f32::from(output.quality));
            Ok(bytes.map_err(|error| refused(ImageFormat::Webp, format!("{error:?}")))?.to_vec())
        }
    }
}

fn refused(format: ImageFormat, reason: impl ToString) -> Error {
    Error::Encode { format, reason: reason.to_string() }
}

fn png(picture: &RgbImage, info: Option<&PictureInfo>) -> std::result::Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, picture.width(), picture.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    if let Some(info) = info {
        for (keyword, text) in
            [("parameters", &info.parameters), ("darkroom", &info.json), ("darkroom-files", &info.files)]
        {
            // tEXt is Latin-1, which every reader knows; other text needs iTXt, as A1111 does through Pillow.
            if text.chars().all(|c| u32::from(c) < 256) {
                encoder.add_text_chunk(keyword.to_owned(), text.clone())?;
            } else {
                encoder.add_itxt_chunk(keyword.to_owned(), text.clone())?;
            }
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(picture.pixels())?;
    writer.finish()?;
    Ok(bytes)
}
