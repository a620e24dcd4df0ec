//! Whole pictures: the same checkpoint, prompt and seed give diffusers' picture.

use std::sync::Arc;

use candle_core::Tensor;
use darkroom::diffusion::engine::{Drawing, EngineOptions, draw_with};
use darkroom::diffusion::pipelines::Pipeline;
use darkroom::domain::RequestDraft;

use super::networks::goldens;
use crate::support::drafts::{checked, pipeline};

/// Largest difference of a byte. Measured: 0 in all but single bytes, where a value lies on the edge of rounding.
const TOLERANCE: u8 = 1;
/// Share of bytes that must be identical.
const IDENTICAL: f64 = 0.995;

pub(super) fn request(style: &str, sampler: &str, tag: &str) -> RequestDraft {
    let side = match style {
        "tiny-sd2" => 32,
        "tiny-inpainting" => 64,
        "tiny-sdxl" | "tiny-sdxl-refiner" => 40,
        _ => 16,
    };
    let guided = tag == "guided";
    RequestDraft {
        prompt: Some("a red house in the snow at night".to_owned()),
        negative_prompt: guided.then(|| "red".to_owned()),
        width: Some(if guided { 2 * side } else { side }),
        height: Some(side),
        steps: Some(6),
        guidance_scale: Some(if guided { 5.0 } else { 1.0 }),
        sampler: Some(sampler.to_owned()),
        seed: Some(if guided { 7 } else { (1 << 40) + 3 }),
        ..RequestDraft::default()
    }
}

/// How far the picture is off; fails where it is too far.
pub(super) fn assert_same(
    what: &str,
    pipeline: &Arc<dyn Pipeline>,
    request: RequestDraft,
    reference: &Tensor,
) -> String {
    assert_drawn(what, pipeline, checked(request, pipeline.as_ref()), reference)
}

/// The same of a checked request, and what it is drawn on.
pub(super) fn assert_drawn(
    what: &str,
    pipeline: &Arc<dyn Pipeline>,
    drawing: impl Into<Drawing>,
    reference: &Tensor,
) -> String {
    assert_drawn_by(what, vec![pipeline.clone()], drawing, reference)
}

/// The same of a request that several models draw.
pub(super) fn assert_drawn_by(
    what: &str,
    pipelines: Vec<Arc<dyn Pipeline>>,
    drawing: impl Into<Drawing>,
    reference: &Tensor,
) -> String {
    let picture = draw_with(pipelines, drawing, EngineOptions::default(), |_| {}).expect("draws").remove(0);
    let size: (usize, usize) = (picture.height() as usize, picture.width() as usize);
    assert_eq!(size, (reference.dims()[0], reference.dims()[1]), "{what}");
    let reference: Vec<u8> = reference.flatten_all().unwrap().to_vec1().unwrap();
    let differences: Vec<u8> = picture.pixels().iter().zip(&reference).map(|(a, b)| a.abs_diff(*b)).collect();
    assert_eq!(differences.len(), reference.len(), "{what}");
    let worst = differences.iter().max().unwrap();
    let same = differences.iter().filter(|d| **d == 0).count() as f64 / differences.len() as f64;
    assert!(*worst <= TOLERANCE && same >= IDENTICAL, "{what}: worst {worst}, identical {same}");
    format!("{what}: worst {worst}, identical {same:.5}")
}

#[test]
fn every_sampler_draws_the_reference_picture() {
    for style in ["tiny-sd", "tiny-sd2"] {
        let (golden, pipeline) = (goldens(style), pipeline(style));
        for sampler in ["ddpm", "ddim", "euler", "euler_a", "dpmpp_2m"] {
            for tag in ["guided", "plain"] {
                let reference = &golden[&format!("{sampler}.{tag}.picture")];
                let what = format!("{style} {sampler} {tag}");
                println!("{}", assert_same(&what, &pipeline, request(style, sampler, tag), reference));
            }
        }
    }
}

/// The rules of several evaluations a step, of history, or of noise within a step, with sigma schedules.
#[test]
fn samplers_of_more_than_one_evaluation_or_draw_give_the_reference_picture() {
    for style in ["tiny-sd", "tiny-sd2"] {
        let (golden, pipeline) = (goldens(&format!("{style}-samplers")), pipeline(style));
        assert_eq!(golden.len(), 30, "15 pairs of sampler and schedule, guided and not");
        for (name, reference) in &golden {
            let [sampler, schedule, tag] = name.split('.').collect::<Vec<_>>().try_into().unwrap();
            let asked = RequestDraft {
                sigma_schedule: Some(schedule.to_owned()),
                eta: (sampler == "tcd").then_some(0.3),
                ..request(style, sampler, tag)
            };
            println!("{}", assert_same(&format!("{style} {name}"), &pipeline, asked, reference));
        }
    }
}
