//! Pictures that a request starts from: image to image and inpainting.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::request_faults::Faults;
use super::sampling::wire_names;
use super::{JobId, ModelInfo};

/// What a picture that came with a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum InputName {
    /// To start from: `init_image`.
    InitImage,
    /// White where it is drawn anew: `mask_image`.
    MaskImage,
    /// Shown to the ControlNet of a control, by its place among the request's: `control_0`.
    Control(u8),
}

impl InputName {
    /// The field of a request where it stands, such as `controls[0].image`.
    pub fn field(self) -> String {
        match self {
            Self::Control(at) => format!("controls[{at}].image"),
            other => other.to_string(),
        }
    }

    /// The one that stands in this field.
    pub fn of_field(field: &str) -> Option<Self> {
        let at = field.strip_prefix("controls[").and_then(|rest| rest.strip_suffix("].image"));
        let found = match at {
            Some(at) => Self::Control(at.parse().ok()?),
            None => field.parse().ok()?,
        };
        (found.field() == field).then_some(found)
    }
}

impl fmt::Display for InputName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InitImage => f.write_str("init_image"),
            Self::MaskImage => f.write_str("mask_image"),
            Self::Control(at) => write!(f, "control_{at}"),
        }
    }
}

impl FromStr for InputName {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let found = match text {
            "init_image" => Self::InitImage,
            "mask_image" => Self::MaskImage,
            _ => Self::Control(text.strip_prefix("control_").and_then(|at| at.parse().ok()).ok_or(())?),
        };
        if found.to_string() == text { Ok(found) } else { Err(()) }
    }
}

impl From<InputName> for String {
    fn from(name: InputName) -> Self {
        name.to_string()
    }
}

impl TryFrom<String> for InputName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|()| format!("`{text}` is no name of an input"))
    }
}

wire_names! {
    /// What of a picture is drawn when a part of it is masked.
    InpaintArea {
        /// The whole picture, of which the unmasked part is kept.
        Whole => "whole",
        /// The mask's surroundings, enlarged to the requested size and put back at their own.
        OnlyMasked => "only_masked",
    }
}

/// A picture that came with a request: where it is stored, and what is known of it. Sent again as it stands it names the
/// same picture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputImage {
    /// The job it is stored with; none outside a server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// Which of that job's.
    pub input: InputName,
    /// Lower-case hex SHA-256 of the file.
    pub sha256: String,
    /// In pixels, as it is meant to be seen.
    pub width: u32,
    /// In pixels, as it is meant to be seen.
    pub height: u32,
}

/// What a client asked of pictures to start from, after they were looked at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImageInputsDraft {
    /// To start from.
    pub init_image: Option<InputImage>,
    /// How much of it is drawn anew, 0 to 1.
    pub strength: Option<f64>,
    /// White where it is drawn anew.
    pub mask_image: Option<InputImage>,
    /// Gaussian blur of the mask, in its pixels.
    pub mask_blur: Option<f64>,
    /// Black is drawn anew instead.
    pub invert_mask: Option<bool>,
    /// The unmasked part stays to the byte.
    pub preserve_unmasked: Option<bool>,
    /// An [`InpaintArea`] by name.
    pub inpaint_area: Option<String>,
    /// Pixels around the mask.
    pub only_masked_padding: Option<i64>,
    /// A picture was given that could not be read, which is told elsewhere: nothing is said to lack it.
    pub is_faulty: bool,
}

/// What a checked request says of pictures to start from, defaults resolved; all absent where it has none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageInputs {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    init_image: Option<InputImage>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    strength: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mask_image: Option<InputImage>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mask_blur: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    invert_mask: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    preserve_unmasked: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inpaint_area: Option<InpaintArea>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    only_masked_padding: Option<u32>,
}

/// diffusers' defaults: of image to image, and of inpainting.
const STRENGTH: f64 = 0.8;
const INPAINTING_STRENGTH: f64 = 1.0;
/// Widest blur of a mask, in pixels.
const MAX_BLUR: f64 = 256.0;
/// What other programs pad with.
const PADDING: u32 = 32;
const MAX_PADDING: u32 = 4096;

impl ImageInputs {
    /// The picture to start from.
    pub fn init_image(&self) -> Option<&InputImage> {
        self.init_image.as_ref()
    }
    /// White where it is drawn anew.
    pub fn mask_image(&self) -> Option<&InputImage> {
        self.mask_image.as_ref()
    }
    /// Both, by what they are for.
    pub fn pictures(&self) -> impl Iterator<Item = &InputImage> {
        self.init_image.iter().chain(&self.mask_image)
    }
    /// How much of the picture is drawn anew, above 0 up to 1; 1 without a picture.
    pub fn strength(&self) -> f64 {
        self.strength.unwrap_or(1.0)
    }
    /// Gaussian blur of the mask before it is used, in its pixels.
    pub fn mask_blur(&self) -> f64 {
        self.mask_blur.unwrap_or(0.0)
    }
    /// Whether black is drawn anew instead of white.
    pub fn invert_mask(&self) -> bool {
        self.invert_mask.unwrap_or(false)
    }
    /// Whether the unmasked part stays to the byte.
    pub fn preserve_unmasked(&self) -> bool {
        self.preserve_unmasked.unwrap_or(false)
    }
    /// Pixels around the mask, where only its surroundings are drawn.
    pub fn only_masked_padding(&self) -> Option<u32> {
        self.only_masked_padding
    }

    /// Of a pass that starts from the one before.
    pub(super) fn of_strength(strength: f64) -> Self {
        Self { strength: Some(strength), ..Self::default() }
    }

    /// Where the run begins at a share of the schedule, no strength says where.
    pub(super) fn drawn_from(self, denoising_start: Option<f64>) -> Self {
        if denoising_start.is_some() { Self { strength: None, ..self } } else { self }
    }

    /// diffusers' `get_timesteps`: of the steps, the share `strength` is taken, rounded down.
    pub(super) fn skipped_steps(&self, steps: u32) -> u32 {
        steps - ((f64::from(steps) * self.strength()) as u32).min(steps)
    }
}

impl Faults {
    /// Resolves the defaults of what depends on a picture, and tells of what has none.
    pub(super) fn image_inputs(&mut self, draft: ImageInputsDraft) -> ImageInputs {
        let is_whole = draft.is_faulty || draft.init_image.is_some() || draft.mask_image.is_none();
        if !is_whole {
            self.add("init_image", Value::Null, "is required with `mask_image`: the picture that the mask belongs to");
        }
        let (has_picture, has_mask) = (draft.init_image.is_some(), draft.mask_image.is_some());
        if draft.strength.is_some() && !has_picture && !draft.is_faulty {
            self.add("strength", draft.strength, "applies to a picture to start from; send `init_image` too");
        }
        if !has_mask && !draft.is_faulty {
            self.without_mask(&draft);
        }
        let strength = if has_mask { INPAINTING_STRENGTH } else { STRENGTH };
        let strength = self.real("strength", draft.strength, strength, 0.0, 1.0);
        let blur = self.real("mask_blur", draft.mask_blur, 0.0, 0.0, MAX_BLUR);
        let area = self.named("inpaint_area", draft.inpaint_area, InpaintArea::Whole, InpaintArea::ALL);
        let padding = self.integer("only_masked_padding", draft.only_masked_padding, PADDING, 0, MAX_PADDING);
        let is_part = area == InpaintArea::OnlyMasked;
        if has_mask && !is_part && draft.only_masked_padding.is_some() {
            let message = "applies to `inpaint_area` `only_masked`";
            self.add("only_masked_padding", draft.only_masked_padding, message);
        }
        if is_part && draft.preserve_unmasked == Some(false) {
            let message = "must be true with `inpaint_area` `only_masked`, which draws nothing else";
            self.add("preserve_unmasked", false, message);
        }
        ImageInputs {
            strength: has_picture.then_some(strength),
            mask_blur: has_mask.then_some(blur),
            invert_mask: has_mask.then_some(draft.invert_mask.unwrap_or(false)),
            preserve_unmasked: has_mask.then_some(is_part || draft.preserve_unmasked.unwrap_or(false)),
            inpaint_area: has_mask.then_some(area),
            only_masked_padding: (has_mask && is_part).then_some(padding),
            init_image: draft.init_image,
            mask_image: draft.mask_image,
        }
    }

    fn without_mask(&mut self, draft: &ImageInputsDraft) {
        let given: [(&str, Value); 5] = [
            ("mask_blur", draft.mask_blur.into()),
            ("invert_mask", draft.invert_mask.into()),
            ("preserve_unmasked", draft.preserve_unmasked.into()),
            ("inpaint_area", draft.inpaint_area.clone().into()),
            ("only_masked_padding", draft.only_masked_padding.into()),
        ];
        for (field, value) in given {
            if !value.is_null() {
                self.add(field, value, "applies to inpainting; send `mask_image` too");
            }
        }
    }

    /// Whether a step is left to take.
    pub(super) fn strength(&mut self, inputs: &ImageInputs, steps: u32) {
        if inputs.skipped_steps(steps) == steps {
            let least = (1.0 / f64::from(steps) * 1000.0).ceil() / 1000.0;
            let message = format!("of {steps} steps leaves none to take; at least {least} is needed");
            self.add("strength", inputs.strength, message);
        }
    }

    /// The canvas. A side that is not given follows from the picture to start from, where there is one and all of it is
    /// drawn: its own size, rounded down to the model's multiple, or what keeps its proportions beside a side that is given.
    pub(super) fn sides(
        &mut self,
        (width, height): (Option<i64>, Option<i64>),
        inputs: &ImageInputs,
        model: &ModelInfo,
    ) -> (u32, u32) {
        let whole = inputs.init_image.as_ref().filter(|_| inputs.only_masked_padding.is_none());
        let Some(picture) = whole else {
            let defaults = &model.defaults;
            let width = self.side("width", width, defaults.width, model);
            return (width, self.side("height", height, defaults.height, model));
        };
        let step = model.size_multiple;
        let own = |len: u32| len - len % step;
        // To the nearest multiple.
        let beside = |other: u32, len: u32, of: u32| {
            let exact = f64::from(other) * f64::from(len) / f64::from(of);
            ((exact / f64::from(step)).round() as u32).max(1).saturating_mul(step)
        };
        let (across, down) = (picture.width, picture.height);
        let (w, h) = match (width, height) {
            (None, None) => (own(across), own(down)),
            (Some(_), None) => {
                let w = self.side("width", width, own(across), model);
                (w, beside(w, down, across))
            }
            (None, Some(_)) => {
                let h = self.side("height", height, own(down), model);
                (beside(h, across, down), h)
            }
            (Some(_), Some(_)) => {
                (self.side("width", width, own(across), model), self.side("height", height, own(down), model))
            }
        };
        let fits = |side: u32| (model.min_side..=model.max_side).contains(&side);
        let is_given = width.is_some() && height.is_some();
        if !(is_given || fits(w) && fits(h)) {
            let (min, max) = (model.min_side, model.max_side);
            let message = format!(
                "would be drawn at {w}x{h}; model `{}` takes sides from {min} to {max}: say `width` and `height`",
                model.id
            );
            self.add("init_image", format!("{across}x{down}"), message);
        }
        (w, h)
    }
}
