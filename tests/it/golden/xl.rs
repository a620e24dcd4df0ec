//! Stable Diffusion XL beyond text to image: from a picture, around a mask, with a second pass, handed over to a refiner.
//! diffusers' pipelines of the same checkpoint, prompt and seed; tests/fixtures/make_xl_pictures.py made the reference.

use std::sync::Arc;

use darkroom::diffusion::pipelines::{self, ModelSource, Pipeline};
use darkroom::domain::{DeviceSpec, HiresDraft, ImageInputsDraft, RefinerDraft, RequestDraft};
use serde_json::json;

use super::image_to_image::{draws_from_pictures, pixels};
use super::networks::{fixtures, goldens};
use super::pipeline::{assert_drawn, assert_drawn_by, request};
use crate::support::drafts::{checked, drawing_among};

/// Sides of the pictures, smaller than these models take unless their card says so.
const SIDE: u32 = 40;

fn loaded(style: &str) -> Arc<dyn Pipeline> {
    let mut source = ModelSource::at(style, fixtures().join(style));
    let patches = &mut source.changes.patches;
    patches.insert("scheduler/scheduler_config.json".to_owned(), json!({"skip_prk_steps": true}));
    patches.insert("darkroom.json".to_owned(), json!({"min_side": SIDE}));
    pipelines::load(&source, DeviceSpec::Cpu).unwrap()
}

#[test]
fn the_base_draws_the_references_from_a_picture_and_around_a_mask() {
    draws_from_pictures("tiny-sdxl", &loaded("tiny-sdxl"), 26);
}

/// With the aesthetic scores that diffusers takes, and no zeros for an empty negative prompt.
#[test]
fn the_refiner_draws_the_references_from_a_picture_and_around_a_mask() {
    draws_from_pictures("tiny-sdxl-refiner", &loaded("tiny-sdxl-refiner"), 10);
}

#[test]
fn a_second_larger_pass_draws_the_references() {
    let (golden, pipeline) = (goldens("tiny-sdxl-hires"), loaded("tiny-sdxl"));
    for (name, reference) in &golden {
        let [upscaler, sampler, tag] = name.split('.').collect::<Vec<_>>().try_into().unwrap();
        let hires = HiresDraft { scale: Some(1.6), upscaler: Some(upscaler.to_owned()), ..HiresDraft::default() };
        let draft = RequestDraft { hires: Some(hires), ..request("tiny-sdxl", sampler, tag) };
        let request = checked(draft, pipeline.as_ref());
        eprintln!("{}", assert_drawn(&format!("tiny-sdxl {name}"), &pipeline, request, reference));
    }
    assert_eq!(golden.len(), 6, "pictures");
}

/// The base's latents as they are, with the noise that is left; the refiner reads the prompts itself. Some samplers remember, some
/// draw noise, and those of two evaluations a step are cut between them.
#[test]
fn a_refiner_goes_on_where_the_base_ends() {
    let (golden, from_pictures) = (goldens("tiny-sdxl-handover"), goldens("tiny-sdxl-image-to-image"));
    let (picture, mask) = (pixels::<3>(&from_pictures["init"]), pixels::<1>(&from_pictures["mask"]));
    let (base, refiner) = (loaded("tiny-sdxl"), loaded("tiny-sdxl-refiner"));
    for (name, reference) in &golden {
        let [sampler, schedule, whole, tenths, what] = name.split('.').collect::<Vec<_>>().try_into().unwrap();
        let switch_at: f64 = format!("{whole}.{tenths}").parse().unwrap();
        let (tag, what) = what.split_once('-').unwrap_or((what, ""));
        let goes_on = !["start", "end"].contains(&what);
        let draft = RequestDraft {
            sigma_schedule: Some(schedule.to_owned()),
            refiner: goes_on.then(|| RefinerDraft {
                model: Some("tiny-sdxl-refiner".to_owned()),
                switch_at: Some(switch_at),
                steps: None,
            }),
            denoising_start: (what == "start").then_some(switch_at),
            denoising_end: (what == "end").then_some(switch_at),
            image_inputs: ImageInputsDraft {
                strength: (what == "image").then_some(0.7),
                ..ImageInputsDraft::default()
            },
            ..request("tiny-sdxl", sampler, tag)
        };
        let picture = ["image", "mask", "start"].contains(&what).then(|| picture.clone());
        let mut models = vec![base.clone(), refiner.clone()];
        if what == "start" {
            models.swap(0, 1);
        }
        let drawing = drawing_among(draft, picture, (what == "mask").then(|| mask.clone()), &models);
        eprintln!("{}", assert_drawn_by(name, models, drawing, reference));
    }
    assert_eq!(golden.len(), 46, "pictures");
}
