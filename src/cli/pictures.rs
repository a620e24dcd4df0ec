//! The flags of `generate` about pictures to start from.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use sha2::{Digest, Sha256};

use crate::config::Settings;
use crate::domain::{GenerationRequest, ImageInputsDraft, InputImage, InputName, hex};
use crate::images::{self, Canvas, Framing, GrayImage, InputFault, InputLimits, Pixels, RgbImage};

/// A picture to start from, and what of it is drawn anew.
#[derive(Debug, Args)]
pub(super) struct Pictures {
    /// A PNG, JPEG or WebP file to start from. The size follows from it where it is not said.
    #[arg(long, value_name = "FILE")]
    init_image: Option<PathBuf>,
    /// How much of it is drawn anew, 0 to 1; 0.8 when absent, 1 with a mask.
    #[arg(long, allow_negative_numbers = true)]
    strength: Option<f64>,
    /// A PNG, JPEG or WebP file: white where the picture is drawn anew, black where it is kept.
    #[arg(long, value_name = "FILE")]
    mask_image: Option<PathBuf>,
    /// Gaussian blur of the mask, in its pixels.
    #[arg(long, allow_negative_numbers = true)]
    mask_blur: Option<f64>,
    /// Draw anew where the mask is black instead.
    #[arg(long)]
    invert_mask: bool,
    /// Keep what is not masked to the byte.
    #[arg(long)]
    preserve_unmasked: bool,
    /// whole, or only_masked: draw the mask's surroundings at the size asked for, and put them back at their own.
    #[arg(long)]
    inpaint_area: Option<String>,
    /// Pixels around the mask with only_masked.
    #[arg(long, allow_negative_numbers = true)]
    only_masked_padding: Option<i64>,
}

/// The pictures, read.
#[derive(Default)]
pub(super) struct ReadPictures {
    init_image: Option<(RgbImage, InputImage)>,
    mask_image: Option<(GrayImage, InputImage)>,
}

impl Pictures {
    /// Reads the files.
    pub(super) fn read(&self, settings: &Settings) -> Result<ReadPictures, String> {
        let limits = InputLimits::of(&settings.limits);
        let rgb = |bytes: &[u8]| images::read_rgb(bytes, limits);
        let grey = |bytes: &[u8]| images::read_mask(bytes, limits);
        let init = |path: &PathBuf| read(path, "--init-image", InputName::InitImage, rgb);
        let mask = |path: &PathBuf| read(path, "--mask-image", InputName::MaskImage, grey);
        Ok(ReadPictures {
            init_image: self.init_image.as_ref().map(init).transpose()?,
            mask_image: self.mask_image.as_ref().map(mask).transpose()?,
        })
    }

    /// What is asked of the pictures.
    pub(super) fn draft(&self, read: &ReadPictures) -> ImageInputsDraft {
        ImageInputsDraft {
            init_image: read.init_image.as_ref().map(|(_, image)| image.clone()),
            strength: self.strength,
            mask_image: read.mask_image.as_ref().map(|(_, image)| image.clone()),
            mask_blur: self.mask_blur,
            invert_mask: self.invert_mask.then_some(true),
            preserve_unmasked: self.preserve_unmasked.then_some(true),
            inpaint_area: self.inpaint_area.clone(),
            only_masked_padding: self.only_masked_padding,
            is_faulty: false,
        }
    }
}

impl ReadPictures {
    /// What a checked request is drawn on.
    pub(super) fn canvas(self, request: &GenerationRequest) -> Option<Arc<Canvas>> {
        let (picture, _) = self.init_image?;
        let mask = self.mask_image.map(|(mask, _)| mask);
        Some(Arc::new(Canvas::new(picture, mask, &Framing::of(request))))
    }
}

/// A picture's file, named by this flag.
pub(super) fn read<const N: usize>(
    path: &Path,
    flag: &str,
    input: InputName,
    decode: impl Fn(&[u8]) -> Result<Pixels<N>, InputFault>,
) -> Result<(Pixels<N>, InputImage), String> {
    let flag = format!("{flag} {}", path.display());
    let bytes = std::fs::read(path).map_err(|error| format!("{flag}: {error}"))?;
    let picture = decode(&bytes).map_err(|fault| format!("{flag}: {fault}"))?;
    let sha256 = hex(Sha256::digest(&bytes));
    let image = InputImage { job: None, input, sha256, width: picture.width(), height: picture.height() };
    Ok((picture, image))
}
