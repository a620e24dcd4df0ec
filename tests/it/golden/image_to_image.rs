//! Whole pictures that start from a picture, with and without a mask: diffusers' image-to-image and inpainting pipelines of
//! the same checkpoint, prompt and seed. tests/fixtures/make_image_to_image.py made the reference.

use std::sync::Arc;

use candle_core::Tensor;
use darkroom::diffusion::pipelines::{self, ModelSource, Pipeline};
use darkroom::domain::{DeviceSpec, ImageInputsDraft, RequestDraft};
use darkroom::images::Pixels;
use serde_json::json;

use super::networks::{fixtures, goldens};
use super::pipeline::{assert_drawn, request};
use crate::support::drafts::{checked, drawing, pipeline};

pub(super) fn pixels<const N: usize>(tensor: &Tensor) -> Pixels<N> {
    let bytes = tensor.flatten_all().unwrap().to_vec1().unwrap();
    Pixels::from_pixels(tensor.dims()[1] as u32, tensor.dims()[0] as u32, bytes).unwrap()
}

fn draws_the_references(style: &str, expected: usize) {
    let mut source = ModelSource::at(style, fixtures().join(style));
    source.changes.patches.insert("scheduler/scheduler_config.json".to_owned(), json!({"skip_prk_steps": true}));
    draws_from_pictures(style, &pipelines::load(&source, DeviceSpec::Cpu).unwrap(), expected);
}

/// Every picture of the checkpoint's golden.
pub(super) fn draws_from_pictures(style: &str, pipeline: &Arc<dyn Pipeline>, expected: usize) {
    let golden = goldens(&format!("{style}-image-to-image"));
    let (picture, mask) = (pixels::<3>(&golden["init"]), pixels::<1>(&golden["mask"]));
    let mut drawn = 0;
    for (name, reference) in golden.iter().filter(|(name, _)| name.contains('.')) {
        // The strength has a point of its own.
        let [what, sampler, schedule, whole, tenths, tag] = name.split('.').collect::<Vec<_>>().try_into().unwrap();
        let strength = format!("{whole}.{tenths}").parse().unwrap();
        let draft = RequestDraft {
            sigma_schedule: Some(schedule.to_owned()),
            eta: (sampler == "tcd").then_some(0.3),
            image_inputs: ImageInputsDraft {
                strength: Some(strength),
                inpaint_area: (what == "part").then(|| "only_masked".to_owned()),
                only_masked_padding: (what == "part").then_some(3),
                ..ImageInputsDraft::default()
            },
            ..request(style, sampler, tag)
        };
        let mask = (what == "inpaint" || what == "part").then(|| mask.clone());
        let drawing = drawing(draft, Some(picture.clone()), mask, pipeline);
        eprintln!("{}", assert_drawn(&format!("{style} {name}"), pipeline, drawing, reference));
        drawn += 1;
    }
    assert_eq!(drawn, expected, "pictures of {style}");
}

#[test]
fn every_sampler_draws_the_references_from_a_picture_and_around_a_mask() {
    draws_the_references("tiny-sd", 146);
    draws_the_references("tiny-sd2", 146);
}

/// A network with nine input channels; a picture without a mask is one with all of it masked.
#[test]
fn an_inpainting_checkpoint_draws_the_references() {
    draws_the_references("tiny-inpainting", 32);
}

/// Without a picture all is masked too, and nothing is left of it: any picture's reference is this one's.
#[test]
fn an_inpainting_checkpoint_draws_from_words_alone() {
    let (golden, pipeline) = (goldens("tiny-inpainting-image-to-image"), pipeline("tiny-inpainting"));
    for tag in ["guided", "plain"] {
        let request = checked(request("tiny-inpainting", "euler", tag), pipeline.as_ref());
        eprintln!("{}", assert_drawn(tag, &pipeline, request, &golden[&format!("all.euler.default.1.0.{tag}")]));
    }
}
