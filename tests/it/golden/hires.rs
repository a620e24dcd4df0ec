//! Pictures of two passes: diffusers' text-to-image pipeline, then its image-to-image pipeline over the enlarged latents or
//! the enlarged picture, with a generator of the same seed. tests/fixtures/make_hires.py made the reference.

use darkroom::diffusion::pipelines::{self, ModelSource};
use darkroom::domain::{DeviceSpec, HiresDraft, RequestDraft};
use serde_json::json;

use super::networks::{fixtures, goldens};
use super::pipeline::{assert_drawn, request};
use crate::support::drafts::checked;

fn draws_the_references(style: &str) {
    let golden = goldens(&format!("{style}-hires"));
    let mut source = ModelSource::at(style, fixtures().join(style));
    source.changes.patches.insert("scheduler/scheduler_config.json".to_owned(), json!({"skip_prk_steps": true}));
    let pipeline = pipelines::load(&source, DeviceSpec::Cpu).unwrap();
    for (name, reference) in &golden {
        let [upscaler, sampler, tag] = name.split('.').collect::<Vec<_>>().try_into().unwrap();
        let hires = HiresDraft {
            scale: Some(1.5),
            upscaler: Some(upscaler.to_owned()),
            strength: Some(0.7),
            ..HiresDraft::default()
        };
        let draft = RequestDraft { hires: Some(hires), ..request(style, sampler, tag) };
        let request = checked(draft, pipeline.as_ref());
        assert_eq!(request.output_size(), (reference.dims()[1] as u32, reference.dims()[0] as u32), "{name}");
        assert_eq!(request.steps_taken(), 6 + 4, "{name}");
        eprintln!("{}", assert_drawn(&format!("{style} {name}"), &pipeline, request, reference));
    }
    assert_eq!(golden.len(), 32, "pictures of {style}");
}

#[test]
fn a_second_pass_draws_the_references() {
    draws_the_references("tiny-sd");
    draws_the_references("tiny-sd2");
}
