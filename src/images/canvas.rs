//! What a picture is drawn from: a picture to start from and a mask, brought to the size the network works in, and the way
//! back (diffusers' `VaeImageProcessor` and, for a part of the picture, its `padding_mask_crop`).

use super::overlay::overlaid;
use super::{Filter, GrayImage, Pixels, Region, RgbImage};
use crate::domain::GenerationRequest;

/// How a picture and its mask are put onto a canvas.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Framing {
    /// The canvas, in pixels.
    pub width: u32,
    /// The canvas, in pixels.
    pub height: u32,
    /// Black is drawn anew instead of white.
    pub invert_mask: bool,
    /// Gaussian blur of the mask before it is used: the standard deviation, in pixels of the mask.
    pub mask_blur: f32,
    /// Only the mask's surroundings are drawn, with so many pixels around it.
    pub only_masked: Option<u32>,
    /// The kept part of the picture is laid over the drawn one, so that it stays to the byte.
    pub preserve_unmasked: bool,
}

/// A picture to start from, ready for the network.
#[derive(Clone, Debug, PartialEq)]
pub struct Canvas {
    /// Of the canvas's size.
    pub picture: RgbImage,
    /// 255 where it is drawn anew, else 0; of the canvas's size.
    pub mask: Option<GrayImage>,
    overlay: Option<Overlay>,
}

/// What is laid over the drawn picture at the end.
#[derive(Clone, Debug, PartialEq)]
struct Overlay {
    original: RgbImage,
    /// Not cut to black and white: a blurred edge fades.
    mask: GrayImage,
    /// Where the canvas lies in the original; `None`: it is the whole.
    region: Option<Region>,
}

impl Framing {
    /// What a request asks for.
    pub fn of(request: &GenerationRequest) -> Self {
        let inputs = request.image_inputs();
        Self {
            width: request.width(),
            height: request.height(),
            invert_mask: inputs.invert_mask(),
            mask_blur: inputs.mask_blur() as f32,
            only_masked: inputs.only_masked_padding(),
            preserve_unmasked: inputs.preserve_unmasked(),
        }
    }
}

impl Canvas {
    /// A mask of another size than the picture is stretched over it.
    pub fn new(picture: RgbImage, mask: Option<GrayImage>, framing: &Framing) -> Self {
        let Framing { width, height, .. } = *framing;
        let stretched = |picture: &RgbImage| picture.resized(width, height, Filter::Lanczos);
        let Some(mask) = mask else { return Self { picture: stretched(&picture), mask: None, overlay: None } };
        let mask = if framing.invert_mask { mask.mapped(|byte| 255 - byte) } else { mask };
        let mask = mask.blurred(framing.mask_blur);
        if let Some(padding) = framing.only_masked {
            let mask = mask.resized(picture.width(), picture.height(), Filter::Lanczos);
            let region = surroundings(&mask, (width, height), padding);
            let part = filled(&mask.cropped(region), width, height);
            return Self {
                picture: filled(&picture.cropped(region), width, height),
                mask: Some(black_and_white(part)),
                overlay: Some(Overlay { original: picture, mask, region: Some(region) }),
            };
        }
        let (picture, soft) = (stretched(&picture), mask.resized(width, height, Filter::Lanczos));
        let overlay =
            framing.preserve_unmasked.then(|| Overlay { original: picture.clone(), mask: soft.clone(), region: None });
        Self { picture, mask: Some(black_and_white(soft)), overlay }
    }

    /// The picture that was asked for, of the one that was drawn on the canvas.
    pub fn finish(&self, drawn: RgbImage) -> RgbImage {
        let Some(Overlay { original, mask, region }) = &self.overlay else { return drawn };
        let drawn = match *region {
            None => drawn,
            Some(Region { x, y, width, height }) => {
                let mut whole = RgbImage::black(original.width(), original.height());
                whole.paste(&cut(&drawn, width, height), x.into(), y.into());
                whole
            }
        };
        overlaid(&drawn, original, mask)
    }
}

/// A picture that controls what is drawn, at the size of each of a request's passes.
#[derive(Clone, Debug, PartialEq)]
pub struct ControlPicture {
    /// One a pass.
    pub passes: Vec<RgbImage>,
}

impl ControlPicture {
    /// Stretched to the size that is drawn. Where a part of a picture is drawn, it is the same part of this one, which is
    /// stretched over that picture first if it has another size. A second pass has the whole at its own size, as A1111 does.
    pub fn new(picture: &RgbImage, request: &GenerationRequest, canvas: Option<&Canvas>) -> Self {
        let (width, height) = (request.width(), request.height());
        let overlay = canvas.and_then(|canvas| canvas.overlay.as_ref());
        let first = match overlay.and_then(|overlay| Some((&overlay.original, overlay.region?))) {
            None => picture.resized(width, height, Filter::Lanczos),
            Some((original, region)) => {
                let whole = picture.resized(original.width(), original.height(), Filter::Lanczos);
                filled(&whole.cropped(region), width, height)
            }
        };
        let second = request.hires().map(|hires| {
            let (width, height) = hires.size();
            picture.resized(width, height, Filter::Lanczos)
        });
        Self { passes: [first].into_iter().chain(second).collect() }
    }
}

/// Half and more is drawn anew.
fn black_and_white(mask: GrayImage) -> GrayImage {
    mask.mapped(|byte| if byte >= 128 { 255 } else { 0 })
}

/// The rectangle around all that is not black, padded, then widened or heightened to a canvas's proportions and moved back
/// into the picture (diffusers' `get_crop_region`). Of a black mask it is the whole.
fn surroundings(mask: &GrayImage, canvas: (u32, u32), padding: u32) -> Region {
    let (width, height) = (i64::from(mask.width()), i64::from(mask.height()));
    let (mut left, mut upper, mut right, mut lower) = (width, height, 0, 0);
    for (y, row) in (0..).zip(mask.pixels().chunks_exact(mask.width() as usize)) {
        let Some(first) = row.iter().position(|byte| *byte != 0) else { continue };
        let last = row.iter().rposition(|byte| *byte != 0).unwrap_or(first);
        (left, right) = (left.min(first as i64), right.max(last as i64 + 1));
        (upper, lower) = (upper.min(y), y + 1);
    }
    if right == 0 {
        return Region { x: 0, y: 0, width: mask.width(), height: mask.height() };
    }
    let padding = i64::from(padding);
    (left, upper) = ((left - padding).max(0), (upper - padding).max(0));
    (right, lower) = ((right + padding).min(width), (lower + padding).min(height));
    let wanted = f64::from(canvas.0) / f64::from(canvas.1);
    let (across, down) = ((right - left) as f64, (lower - upper) as f64);
    if across / down > wanted {
        (upper, lower) = grown(upper, lower, (across / wanted - down) as i64, height);
    } else {
        (left, right) = grown(left, right, (down * wanted - across) as i64, width);
    }
    Region { x: left as u32, y: upper as u32, width: (right - left) as u32, height: (lower - upper) as u32 }
}

/// A stretch made longer by `more` about its middle, and moved into `0..room`.
fn grown(mut from: i64, mut to: i64, more: i64, room: i64) -> (i64, i64) {
    from -= more / 2;
    to += more - more / 2;
    if to >= room {
        (from, to) = (from - (to - room), room);
    }
    if from < 0 {
        (from, to) = (0, to - from);
    }
    (from, to.min(room))
}

/// Fitted into a canvas with its proportions kept, in the middle; what is left beside it is filled from its edges
/// (`resize_mode="fill"`).
fn filled<const N: usize>(picture: &Pixels<N>, width: u32, height: u32) -> Pixels<N> {
    let (ratio, own) = ratios(picture, width, height);
    let across = if ratio < own { width } else { scaled(picture.width(), height, picture.height()) };
    let down = if ratio >= own { height } else { scaled(picture.height(), width, picture.width()) };
    let resized = picture.resized(across, down, Filter::Lanczos);
    let (left, upper) = (width / 2 - across / 2, height / 2 - down / 2);
    let mut canvas = Pixels::black(width, height);
    canvas.paste(&resized, left.into(), upper.into());
    let (right, lower) = (f64::from(across), f64::from(down));
    let edge = |window, width, height| resized.resized_window(window, width, height, Filter::Bicubic);
    if ratio < own && upper > 0 {
        canvas.paste(&edge([0.0, 0.0, f64::from(width), 0.0], width, upper), 0, 0);
        canvas.paste(&edge([0.0, lower, f64::from(width), lower], width, upper), 0, (upper + down).into());
    } else if ratio > own && left > 0 {
        canvas.paste(&edge([0.0, 0.0, 0.0, f64::from(height)], left, height), 0, 0);
        canvas.paste(&edge([right, 0.0, right, f64::from(height)], left, height), (left + across).into(), 0);
    }
    canvas
}

/// Laid over a canvas with its proportions kept, in the middle; what hangs over is cut off (`resize_mode="crop"`).
fn cut(picture: &RgbImage, width: u32, height: u32) -> RgbImage {
    let (ratio, own) = ratios(picture, width, height);
    let across = if ratio > own { width } else { scaled(picture.width(), height, picture.height()) };
    let down = if ratio <= own { height } else { scaled(picture.height(), width, picture.width()) };
    let resized = picture.resized(across, down, Filter::Lanczos);
    let mut canvas = RgbImage::black(width, height);
    let middle = |room: u32, len: u32| i64::from(room / 2) - i64::from(len / 2);
    canvas.paste(&resized, middle(width, across), middle(height, down));
    canvas
}

fn ratios<const N: usize>(picture: &Pixels<N>, width: u32, height: u32) -> (f64, f64) {
    (f64::from(width) / f64::from(height), f64::from(picture.width()) / f64::from(picture.height()))
}

/// `len * to / of`, rounded down, at least 1 (where the reference would fail).
fn scaled(len: u32, to: u32, of: u32) -> u32 {
    ((u64::from(len) * u64::from(to) / u64::from(of)) as u32).max(1)
}
