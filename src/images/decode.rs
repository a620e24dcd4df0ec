//! File bytes of our own pictures back to pixels, for another encoding.

use super::{Error, Result, RgbImage};
use crate::domain::ImageFormat;

/// Most pixels a side of what is decoded; nothing we store is larger.
const MAX_SIDE: u32 = 16_384;

/// Pixels of a file of this format.
///
/// # Errors
/// Bytes that are no whole picture of that format, or one larger than 16384 pixels a side.
pub fn decode(bytes: &[u8], format: ImageFormat) -> Result<RgbImage> {
    if format == ImageFormat::Webp {
        let picture = webp::Decoder::new(bytes).decode().ok_or_else(|| Error::Decode("no WebP picture".to_owned()))?;
        let pixels = if picture.is_alpha() {
            picture.as_chunks::<4>().0.iter().flat_map(|p| [p[0], p[1], p[2]]).collect()
        } else {
            picture.to_vec()
        };
        return wrap(picture.width(), picture.height(), pixels);
    }
    let kind = if format == ImageFormat::Png { image::ImageFormat::Png } else { image::ImageFormat::Jpeg };
    let mut reader = image::ImageReader::with_format(std::io::Cursor::new(bytes), kind);
    let mut limits = image::Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(MAX_SIDE), Some(MAX_SIDE));
    reader.limits(limits);
    let picture = reader.decode().map_err(|error| Error::Decode(error.to_string()))?.into_rgb8();
    wrap(picture.width(), picture.height(), picture.into_raw())
}

fn wrap(width: u32, height: u32, pixels: Vec<u8>) -> Result<RgbImage> {
    RgbImage::from_pixels(width, height, pixels).ok_or_else(|| Error::Decode("pixels are missing".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::OutputOptions;
    use crate::images::{PictureInfo, encode};

    fn gradient() -> RgbImage {
        let pixels = (0..48 * 32).flat_map(|at| [(at % 48 * 5) as u8, (at / 48 * 7) as u8, 128]).collect();
        RgbImage::from_pixels(48, 32, pixels).expect("as many")
    }

    fn worst(a: &RgbImage, b: &RgbImage) -> u8 {
        a.pixels().iter().zip(b.pixels()).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
    }

    #[test]
    fn every_format_reads_back() {
        let picture = gradient();
        for (format, allowed) in [(ImageFormat::Png, 0), (ImageFormat::Jpeg, 24), (ImageFormat::Webp, 24)] {
            let bytes = encode(&picture, OutputOptions { format, quality: 95 }, None).expect("encodes");
            let back = decode(&bytes, format).expect("decodes");
            assert_eq!((back.width(), back.height()), (48, 32));
            assert!(worst(&picture, &back) <= allowed, "{format}: {}", worst(&picture, &back));
            assert!(decode(&bytes[..bytes.len() / 2], format).is_err() || format == ImageFormat::Jpeg);
        }
    }

    #[test]
    fn a_png_carries_its_words_also_beyond_latin_1() {
        for (prompt, chunk) in [("a house", &b"tEXtparameters\0a house"[..]), ("東京", &b"iTXtparameters\0"[..])] {
            let info = PictureInfo { parameters: prompt.to_owned(), json: "{}".to_owned(), files: "{}".to_owned() };
            let output = OutputOptions { format: ImageFormat::Png, quality: 90 };
            let bytes = encode(&gradient(), output, Some(&info)).expect("encodes");
            assert!(bytes.windows(chunk.len()).any(|window| window == chunk), "{prompt}");
            assert!(bytes.windows(prompt.len()).any(|window| window == prompt.as_bytes()), "{prompt}");
        }
    }
}
