//! Laying what was kept of a picture over what was drawn in its place, to the byte as diffusers does it
//! (`VaeImageProcessor.apply_overlay`, by Pillow's premultiplied and compositing arithmetic).

use super::{GrayImage, RgbImage};

/// `original` over `drawn` where the mask is black, the two mixed where it is grey. All of one size.
pub(super) fn overlaid(drawn: &RgbImage, original: &RgbImage, mask: &GrayImage) -> RgbImage {
    let pairs = drawn.pixels().as_chunks::<3>().0.iter().zip(original.pixels().as_chunks::<3>().0);
    let mixed = pairs.zip(mask.pixels()).flat_map(|((drawn, original), mask)| mix(*drawn, *original, 255 - mask));
    RgbImage::from_pixels(drawn.width(), drawn.height(), mixed.collect()).expect("one size. This is a bug in images.")
}

/// `over`, of this opacity, over an opaque pixel.
fn mix(under: [u8; 3], over: [u8; 3], alpha: u8) -> [u8; 3] {
    if alpha == 0 {
        return under;
    }
    // Pillow keeps the masked original multiplied by its opacity, and divides when it composites.
    let divided = |value: u8| match alpha {
        255 => u32::from(value),
        _ => (255 * by_255(u32::from(value) * u32::from(alpha)) / u32::from(alpha)).min(255),
    };
    // 7 bits after the point.
    let (share, rest) = (u32::from(alpha) << 7, (255 - u32::from(alpha)) << 7);
    let composed = |under: u8, over: u8| {
        let sum = divided(over) * share + u32::from(under) * rest + (0x80 << 7);
        ((((sum >> 8) + sum) >> 8) >> 7) as u8
    };
    std::array::from_fn(|k| composed(under[k], over[k]))
}

/// A product of two bytes, over 255, rounded as Pillow does.
fn by_255(product: u32) -> u32 {
    let sum = product + 128;
    ((sum >> 8) + sum) >> 8
}
