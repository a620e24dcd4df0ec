//! Pictures that strangers send: told by their content, measured before they are decoded, made plain.
//!
//! Decoders are written in safe Rust. What a file claims is held against the limits before anything is allocated for it.
//! A picture comes out as it is meant to be seen: turned as its EXIF orientation says, transparent parts over white; of 16
//! bits the higher 8, as Pillow reads them. Colour profiles are not applied, as diffusers does not.

use std::io::Cursor;

use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::{DynamicImage, ImageDecoder};

use super::{GrayImage, RgbImage};
use crate::domain::Limits;

/// What is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputLimits {
    /// Most bytes of a file.
    pub max_bytes: usize,
    /// Most pixels of a picture.
    pub max_pixels: u64,
}

impl InputLimits {
    /// As an operator says.
    pub fn of(limits: &Limits) -> Self {
        Self { max_bytes: limits.max_input_bytes, max_pixels: limits.max_input_pixels }
    }
}

impl Default for InputLimits {
    fn default() -> Self {
        Self { max_bytes: 16 << 20, max_pixels: 1 << 24 }
    }
}

/// Why a picture is refused, as a sentence without its subject: "is ...".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputFault {
    /// No bytes.
    #[error("is empty; send a PNG, JPEG or WebP picture")]
    Empty,
    /// Too many bytes.
    #[error("has {bytes} bytes; at most {most} are allowed")]
    Bytes {
        /// As sent.
        bytes: usize,
        /// [`InputLimits::max_bytes`].
        most: usize,
    },
    /// Too many pixels, or a side that no decoder takes.
    #[error("is {width}x{height}; at most {most} pixels are allowed, and no side above {MAX_SIDE}")]
    Pixels {
        /// As its header says.
        width: u32,
        /// As its header says.
        height: u32,
        /// [`InputLimits::max_pixels`].
        most: u64,
    },
    /// Something else.
    #[error("is no PNG, JPEG or WebP picture")]
    Format,
    /// One of those, but not readable.
    #[error("is a {format} that cannot be read: {reason}")]
    Broken {
        /// What its first bytes say it is.
        format: &'static str,
        /// The decoder's word.
        reason: String,
    },
    /// More than one picture.
    #[error("is an animation; send one picture")]
    Animation,
}

/// Longest side; WebP's own bound is 16383.
const MAX_SIDE: u32 = 16_384;
/// Bytes a decoder may take beside the picture itself: its tables, and what a PNG says in compressed text.
const DECODER_BYTES: u64 = 8 << 20;

/// A picture to start from.
///
/// # Errors
/// What is wrong with the file.
pub fn read_rgb(bytes: &[u8], limits: InputLimits) -> Result<RgbImage, InputFault> {
    let picture = read(bytes, limits)?;
    let (width, height) = (picture.width(), picture.height());
    let over_white = |value: u8, alpha: u8| blend(255, value, alpha);
    let pixels = match picture {
        DynamicImage::ImageRgb8(rgb) => rgb.into_raw(),
        other => {
            let rgba = other.into_rgba8();
            rgba.pixels().flat_map(|image::Rgba([r, g, b, a])| [r, g, b].map(|value| over_white(*value, *a))).collect()
        }
    };
    Ok(RgbImage::from_pixels(width, height, pixels).expect("three bytes a pixel. This is a bug in images."))
}

/// A mask: brightness (ITU-R 601-2, as Pillow's `convert("L")`), transparent parts over black.
///
/// # Errors
/// What is wrong with the file.
pub fn read_mask(bytes: &[u8], limits: InputLimits) -> Result<GrayImage, InputFault> {
    let picture = read(bytes, limits)?;
    let (width, height) = (picture.width(), picture.height());
    let pixels = match picture {
        DynamicImage::ImageLuma8(gray) => gray.into_raw(),
        other => {
            let rgba = other.into_rgba8();
            rgba.pixels().map(|image::Rgba([r, g, b, a])| blend(0, brightness(*r, *g, *b), *a)).collect()
        }
    };
    Ok(GrayImage::from_pixels(width, height, pixels).expect("a byte a pixel. This is a bug in images."))
}

fn brightness(r: u8, g: u8, b: u8) -> u8 {
    ((u32::from(r) * 19_595 + u32::from(g) * 38_470 + u32::from(b) * 7_471 + 0x8000) >> 16) as u8
}

/// `value` with this opacity over `under`, rounded.
fn blend(under: u8, value: u8, alpha: u8) -> u8 {
    let sum = u32::from(under) * (255 - u32::from(alpha)) + u32::from(value) * u32::from(alpha);
    ((sum + 127) / 255) as u8
}

fn read(bytes: &[u8], limits: InputLimits) -> Result<DynamicImage, InputFault> {
    if bytes.is_empty() {
        return Err(InputFault::Empty);
    }
    if bytes.len() > limits.max_bytes {
        return Err(InputFault::Bytes { bytes: bytes.len(), most: limits.max_bytes });
    }
    let cursor = Cursor::new(bytes);
    if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        let mut own = image::Limits::no_limits();
        own.max_alloc = Some(DECODER_BYTES);
        let decoder = PngDecoder::with_limits(cursor, own).map_err(|error| broken("PNG", error))?;
        decoded("PNG", decoder, limits)
    } else if bytes.starts_with(b"\xff\xd8\xff") {
        let decoder = JpegDecoder::new(cursor).map_err(|error| broken("JPEG", error))?;
        if !is_whole_jpeg(bytes) {
            return Err(broken("JPEG", "it ends in the middle"));
        }
        decoded("JPEG", decoder, limits)
    } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        if !is_whole_webp(bytes) {
            return Err(broken("WebP", "it ends in the middle"));
        }
        let decoder = WebPDecoder::new(cursor).map_err(|error| broken("WebP", error))?;
        if decoder.has_animation() {
            return Err(InputFault::Animation);
        }
        decoded("WebP", decoder, limits)
    } else {
        Err(InputFault::Format)
    }
}

fn broken(format: &'static str, reason: impl ToString) -> InputFault {
    InputFault::Broken { format, reason: reason.to_string() }
}

/// Measures, then decodes and turns.
fn decoded(
    format: &'static str,
    mut decoder: impl ImageDecoder,
    limits: InputLimits,
) -> Result<DynamicImage, InputFault> {
    let (width, height) = decoder.dimensions();
    let is_large = u64::from(width) * u64::from(height) > limits.max_pixels || width.max(height) > MAX_SIDE;
    if is_large {
        return Err(InputFault::Pixels { width, height, most: limits.max_pixels });
    }
    if width == 0 || height == 0 {
        return Err(broken(format, "it has no pixels"));
    }
    let mut own = image::Limits::no_limits();
    own.max_alloc = Some(decoder.total_bytes() + DECODER_BYTES);
    decoder.set_limits(own).map_err(|error| broken(format, error))?;
    // An unreadable orientation is none.
    let orientation = decoder.orientation().unwrap_or(image::metadata::Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder).map_err(|error| broken(format, error))?;
    picture = to_8_bits(picture);
    picture.apply_orientation(orientation);
    Ok(picture)
}

fn to_8_bits(picture: DynamicImage) -> DynamicImage {
    let (width, height) = (picture.width(), picture.height());
    let high = |values: Vec<u16>| values.into_iter().map(|value| (value >> 8) as u8).collect::<Vec<u8>>();
    let whole = "as many. This is a bug in images.";
    match picture {
        DynamicImage::ImageLuma16(p) => {
            DynamicImage::ImageLuma8(image::ImageBuffer::from_raw(width, height, high(p.into_raw())).expect(whole))
        }
        DynamicImage::ImageLumaA16(p) => {
            DynamicImage::ImageLumaA8(image::ImageBuffer::from_raw(width, height, high(p.into_raw())).expect(whole))
        }
        DynamicImage::ImageRgb16(p) => {
            DynamicImage::ImageRgb8(image::ImageBuffer::from_raw(width, height, high(p.into_raw())).expect(whole))
        }
        DynamicImage::ImageRgba16(p) => {
            DynamicImage::ImageRgba8(image::ImageBuffer::from_raw(width, height, high(p.into_raw())).expect(whole))
        }
        other => other,
    }
}

/// Whether every chunk ends within the file: the decoder makes room for what a chunk's header claims.
fn is_whole_webp(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(12..).unwrap_or(&[]);
    while let Some(&[_, _, _, _, a, b, c, d]) = rest.get(..8) {
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        if len > rest.len() - 8 {
            return false;
        }
        // A chunk of odd length has a byte of padding, which the last one may lack.
        rest = rest.get(8 + len + len % 2..).unwrap_or(&[]);
    }
    true
}

/// Whether the file's segments lead to its end marker. The decoder is content with half a file, and makes up the rest.
fn is_whole_jpeg(bytes: &[u8]) -> bool {
    const END: u8 = 0xd9;
    const SCAN: u8 = 0xda;

    let mut at = 2;
    loop {
        // Between segments, and between the bytes of a scan, a marker is 0xff and a byte that is neither 0 nor a restart.
        let Some(&[0xff, marker]) = bytes.get(at..at + 2) else { return false };
        match marker {
            END => return true,
            0xff => at += 1,
            // Of no length: TEM and the restarts.
            0x01 | 0xd0..=0xd7 => at += 2,
            _ => {
                let Some(&[high, low]) = bytes.get(at + 2..at + 4) else { return false };
                at += 2 + usize::from(u16::from_be_bytes([high, low])).max(2);
                if marker == SCAN {
                    let rest = bytes.get(at..).unwrap_or(&[]);
                    let next = rest.windows(2).position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xd0..=0xd7));
                    let Some(next) = next else { return false };
                    at += next;
                }
            }
        }
    }
}
