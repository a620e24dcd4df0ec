//! A second pass over a picture that was drawn small: enlarged, then drawn anew in part ("hires fix").

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ModelInfo;
use super::image_inputs::ImageInputs;
use super::request_faults::Faults;
use super::sampling::wire_names;

wire_names! {
    /// How the first pass is enlarged.
    Upscaler {
        /// Its latents, bilinearly: costs nothing, and needs a strength of 0.5 and more to become sharp.
        Latent => "latent",
        /// Its picture, by Lanczos' filter: takes a decode and an encode.
        Lanczos => "lanczos",
    }
}

/// What a client asked of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HiresDraft {
    /// How many times wider and higher.
    pub scale: Option<f64>,
    /// An [`Upscaler`] by name.
    pub upscaler: Option<String>,
    /// How much of the enlarged picture is drawn anew, 0 to 1.
    pub strength: Option<f64>,
    /// Sampler steps of the second pass, before `strength` leaves some out.
    pub steps: Option<i64>,
}

impl HiresDraft {
    /// Their names.
    pub const FIELDS: [&str; 4] = ["scale", "upscaler", "strength", "steps"];
}

/// The second pass, defaults resolved.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hires {
    /// How many times wider and higher, to the nearest multiple of the model's.
    pub scale: f64,
    /// How the first pass is enlarged.
    pub upscaler: Upscaler,
    /// How much of it is drawn anew.
    pub strength: f64,
    /// Sampler steps, of which `strength` leaves some out.
    pub steps: u32,
    /// What comes of it, in pixels; not a client's to say.
    pub(super) width: u32,
    /// In pixels.
    pub(super) height: u32,
}

/// A1111's.
const STRENGTH: f64 = 0.7;
const SCALE: f64 = 2.0;
const MAX_SCALE: f64 = 4.0;

impl Hires {
    /// (width, height) of the pictures, in pixels.
    pub fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// Steps that are taken, at least 1.
    pub fn steps_taken(&self) -> u32 {
        ((f64::from(self.steps) * self.strength) as u32).min(self.steps)
    }
}

impl Faults {
    pub(super) fn hires(
        &mut self,
        given: Option<HiresDraft>,
        (width, height, steps): (u32, u32, u32),
        inputs: &ImageInputs,
        (model, max_steps): (&ModelInfo, u32),
    ) -> Option<Hires> {
        let given = given?;
        let before = self.0.len();
        let scale = self.real("hires.scale", given.scale, SCALE, 1.0, MAX_SCALE);
        let upscaler = self.named("hires.upscaler", given.upscaler, Upscaler::Latent, Upscaler::ALL);
        let strength = self.real("hires.strength", given.strength, STRENGTH, 0.0, 1.0);
        let steps = self.integer("hires.steps", given.steps, steps, 1, max_steps);
        if model.inpainting {
            let message = format!("model `{}` is an inpainting model, which draws in one pass; leave it out", model.id);
            self.add("hires", Value::Null, message);
        } else if inputs.mask_image().is_some() {
            self.add("hires", Value::Null, "does not apply to inpainting; leave it or `mask_image` out");
        }
        let multiple = f64::from(model.size_multiple);
        let side = |side: u32| ((f64::from(side) * scale / multiple).round() * multiple) as u32;
        let hires = Hires { scale, upscaler, strength, steps, width: side(width), height: side(height) };
        if hires.steps_taken() == 0 && self.0.len() == before {
            let message = format!("of {steps} steps leaves none to take; give more of either");
            self.add("hires.strength", strength, message);
        }
        if hires.width.max(hires.height) > model.max_side {
            let message = format!(
                "makes {}x{}; model `{}` takes sides up to {}",
                hires.width, hires.height, model.id, model.max_side
            );
            self.add("hires.scale", scale, message);
        }
        Some(hires)
    }
}
