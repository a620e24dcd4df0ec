//! What Stable Diffusion XL is told of sizes (Podell et al. 2023, section 2.2).

use serde::{Deserialize, Serialize};

/// What a client asked of it; what is absent follows from the picture's size.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SizeConditioningDraft {
    /// In pixels.
    pub original_width: Option<i64>,
    /// In pixels.
    pub original_height: Option<i64>,
    /// In pixels.
    pub crop_left: Option<i64>,
    /// In pixels.
    pub crop_top: Option<i64>,
    /// In pixels.
    pub target_width: Option<i64>,
    /// In pixels.
    pub target_height: Option<i64>,
}

/// The picture to be drawn looks like a training picture of the original size, scaled to the target size, of which it shows
/// what begins at `crop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeConditioning {
    /// In pixels; small values draw pictures that look enlarged.
    pub original_width: u32,
    /// In pixels.
    pub original_height: u32,
    /// Pixels cut off at the left; 0 draws centred subjects.
    pub crop_left: u32,
    /// Pixels cut off at the top.
    pub crop_top: u32,
    /// In pixels.
    pub target_width: u32,
    /// In pixels.
    pub target_height: u32,
}

impl SizeConditioningDraft {
    /// The names of its fields on the wire.
    pub const FIELDS: [&'static str; 6] =
        ["original_width", "original_height", "crop_left", "crop_top", "target_width", "target_height"];

    /// The field of that name.
    pub fn field(&mut self, name: &str) -> Option<&mut Option<i64>> {
        match name {
            "original_width" => Some(&mut self.original_width),
            "original_height" => Some(&mut self.original_height),
            "crop_left" => Some(&mut self.crop_left),
            "crop_top" => Some(&mut self.crop_top),
            "target_width" => Some(&mut self.target_width),
            "target_height" => Some(&mut self.target_height),
            _ => None,
        }
    }
}

impl SizeConditioning {
    /// A picture that was always of this size, in pixels.
    pub(super) fn of(width: u32, height: u32) -> Self {
        Self {
            original_width: width,
            original_height: height,
            crop_left: 0,
            crop_top: 0,
            target_width: width,
            target_height: height,
        }
    }
}

/// The largest size or crop a request may name, in pixels.
pub(super) const MAX_SIZE: u32 = 65_535;
