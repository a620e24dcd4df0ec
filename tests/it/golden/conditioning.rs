//! What a request says besides prompt, size and sampler. `tests/fixtures/make_conditioning.py` made the reference.

use darkroom::domain::RequestDraft;

use super::networks::goldens;
use super::pipeline::assert_same;
use crate::support::drafts::pipeline;

const STYLES: [&str; 2] = ["tiny-sd", "tiny-sd2"];

fn request(style: &str, sampler: &str) -> RequestDraft {
    let side = if style == "tiny-sd2" { 32 } else { 16 };
    RequestDraft {
        prompt: Some("a red house in the snow at night".to_owned()),
        negative_prompt: Some("red".to_owned()),
        width: Some(2 * side),
        height: Some(side),
        steps: Some(6),
        guidance_scale: Some(5.0),
        sampler: Some(sampler.to_owned()),
        seed: Some(7),
        ..RequestDraft::default()
    }
}

/// Compares the pictures named `GROUP.SAMPLER` of both checkpoints, their requests changed by `change`, and says how far
/// they are off.
fn compare(group: &str, samplers: &[&str], change: impl Fn(RequestDraft) -> RequestDraft) -> String {
    let mut told = Vec::new();
    for style in STYLES {
        let (golden, pipeline) = (goldens(&format!("{style}-conditioning")), pipeline(style));
        for sampler in samplers {
            let name = format!("{group}.{sampler}");
            let asked = change(request(style, sampler));
            told.push(assert_same(&format!("{style} {name}"), &pipeline, asked, &golden[&name]));
        }
    }
    told.join("\n")
}

#[test]
fn guidance_rescale_is_that_of_the_reference() {
    let rescaled = |draft| RequestDraft { guidance_rescale: Some(0.7), ..draft };
    println!("{}", compare("rescale", &["ddim", "euler_a", "dpmpp_2m"], rescaled));
}

#[test]
fn steps_outside_the_interval_are_as_without_guidance() {
    let inner = |draft| RequestDraft { guidance_start: Some(0.2), guidance_end: Some(0.8), ..draft };
    println!("{}", compare("interval", &["ddim", "heun", "dpmpp_2m"], inner));
    let early = |draft| RequestDraft { guidance_end: Some(0.5), guidance_rescale: Some(0.7), ..draft };
    println!("{}", compare("interval_rescale", &["ddim"], early));
}

/// The first latents and the noise between the steps.
#[test]
fn the_noise_of_cuda_gives_the_reference_picture() {
    let seeded = |draft| RequestDraft { noise: Some("torch-cuda".to_owned()), seed: Some((1 << 40) + 7), ..draft };
    println!("{}", compare("torch-cuda", &["euler", "euler_a"], seeded));
}
