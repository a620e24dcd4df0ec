//! ControlNets in batches: rows with and without share forwards, and a network that controls nothing is not asked.

use darkroom::diffusion::engine::Drawing;
use darkroom::diffusion::pipelines::Pipeline;
use darkroom::domain::{ControlDraft, HiresDraft, RequestDraft};
use darkroom::images::RgbImage;

use super::stepper::{Stepper, continuous};
use crate::support::drafts::{control, controlled, controlled_pipeline, draft};

fn map(k: u32) -> RgbImage {
    let (width, height) = (19, 23);
    let value = |at: u32| (at * (k + 5) % 256) as u8;
    RgbImage::from_pixels(width, height, (0..width * height * 3).map(value).collect()).unwrap()
}

/// Eight steps, guided, by a sampler of one evaluation a step.
fn job(seed: u64, controls: &[(&str, f64, f64, f64)], pipeline: &dyn Pipeline) -> Drawing {
    let of = |(at, (model, scale, start, end)): (usize, &(&str, f64, f64, f64))| -> (ControlDraft, RgbImage) {
        (control(model, *scale, *start, *end), map(at as u32))
    };
    let asked = RequestDraft {
        steps: Some(8),
        guidance_scale: Some(4.0),
        sampler: Some("euler".to_owned()),
        ..draft("a house", seed)
    };
    controlled(asked, (None, None), controls.iter().enumerate().map(of).collect(), pipeline)
}

#[test]
fn rows_with_and_without_controls_share_forwards_and_keep_their_pictures() {
    let pipeline = controlled_pipeline("tiny-sd");
    let jobs = [
        job(1, &[], pipeline.as_ref()),
        job(1, &[("edges", 1.0, 0.0, 1.0)], pipeline.as_ref()),
        job(1, &[("edges", 0.7, 0.25, 0.75), ("depth", 1.2, 0.0, 0.5)], pipeline.as_ref()),
        job(1, &[("depth", 1.2, 0.0, 0.5), ("edges", 0.7, 0.25, 0.75)], pipeline.as_ref()),
        job(1, &[("edges", 0.5, 0.0, 1.0), ("edges", 0.5, 0.0, 1.0)], pipeline.as_ref()),
    ];
    let alone: Vec<RgbImage> = jobs
        .iter()
        .map(|drawing| {
            let mut stepper = Stepper::new(vec![pipeline.clone()], continuous(2), None);
            let id = stepper.admit_drawing(drawing, 0);
            stepper.run();
            stepper.pictures[&(id, 0)].clone()
        })
        .collect();
    for (k, picture) in alone.iter().enumerate() {
        assert!(alone[..k].iter().all(|other| other != picture), "job {k} is controlled by nothing of its own");
    }
    let mut stepper = Stepper::new(vec![pipeline], continuous(64), None);
    let mut ids = Vec::new();
    for (at, drawing) in jobs.iter().enumerate() {
        ids.push(stepper.admit_drawing(drawing, at as i64));
        // Each joins a step later than the one before.
        stepper.step();
    }
    stepper.run();
    for (id, alone) in ids.iter().zip(&alone) {
        assert!(stepper.pictures[&(*id, 0)] == *alone);
    }
    let together: Vec<u32> = stepper.batches.iter().map(|report| report.samples).collect();
    assert_eq!(together, [1, 2, 3, 4, 5, 5, 5, 5, 4, 3, 2, 1], "whoever has a control joins the others");
}

#[test]
fn a_network_is_asked_only_at_the_steps_it_controls() {
    let pipeline = controlled_pipeline("tiny-sd");
    let rows = |drawing: &Drawing| -> Vec<u32> {
        let mut stepper = Stepper::new(vec![pipeline.clone()], continuous(64), None);
        stepper.admit_drawing(drawing, 0);
        stepper.run();
        stepper.batches.iter().map(|report| report.control_rows).collect()
    };
    let asked = |controls: &[(&str, f64, f64, f64)]| rows(&job(1, controls, pipeline.as_ref()));
    assert_eq!(asked(&[]), [0; 8]);
    assert_eq!(asked(&[("edges", 1.0, 0.0, 1.0)]), [2; 8], "both rows of guidance");
    assert_eq!(asked(&[("edges", 0.7, 0.25, 0.75)]), [0, 0, 2, 2, 2, 2, 0, 0]);
    assert_eq!(asked(&[("edges", 1.0, 0.25, 0.75), ("depth", 1.0, 0.5, 1.0)]), [0, 0, 2, 2, 4, 4, 2, 2]);
    assert_eq!(asked(&[("edges", 0.0, 0.0, 1.0)]), [0; 8], "what adds nothing is not computed");
}

#[test]
fn a_second_pass_is_controlled_at_its_own_size_and_by_its_own_steps() {
    let pipeline = controlled_pipeline("tiny-sd");
    let asked = RequestDraft {
        steps: Some(4),
        guidance_scale: Some(1.0),
        sampler: Some("euler".to_owned()),
        hires: Some(HiresDraft { scale: Some(1.5), strength: Some(0.5), steps: Some(8), ..HiresDraft::default() }),
        ..draft("a house", 1)
    };
    let drawing = controlled(asked, (None, None), vec![(control("edges", 1.0, 0.0, 0.5), map(0))], pipeline.as_ref());
    assert_eq!(drawing.controls[0].passes.iter().map(RgbImage::size).collect::<Vec<_>>(), [(16, 16), (24, 24)]);
    let mut stepper = Stepper::new(vec![pipeline], continuous(64), None);
    let id = stepper.admit_drawing(&drawing, 0);
    stepper.run();
    assert_eq!(stepper.pictures[&(id, 0)].size(), (24, 24));
    let rows: Vec<u32> = stepper.batches.iter().map(|report| report.control_rows).collect();
    assert_eq!(rows, [1, 1, 0, 0, 1, 1, 0, 0]);
}
