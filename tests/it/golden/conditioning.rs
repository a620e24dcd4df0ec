//! What a request says besides prompt, size and sampler. `tests/fixtures/make_conditioning.py` made the reference.

use candle_core::Tensor;
use darkroom::diffusion::pipelines::{Pipeline, Prompt, PromptSide};
use darkroom::domain::RequestDraft;

use super::networks::goldens;
use super::pipeline::assert_same;
use crate::support::drafts::{checked, pipeline};

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

/// The prompts of `make_conditioning.py`, in A1111's syntax.
const PROMPTS: [&str; 8] = [
    "a red house",
    "a (red) [house]",
    "a ((red:1.4)) snow (house:0.5)",
    r"one two \(red\) (house:-0.3)",
    "",
    "snow BREAK (night:1.3)",
    "one two three, four five six seven, one two three, four five six seven",
    "(one two three, four five six seven:1.2), the house, one two three, four five six seven one two three, four five six seven",
];

/// The prompt's hidden states differ from the reference's by no more than rounding.
fn assert_hidden(what: &str, pipeline: &dyn Pipeline, draft: RequestDraft, reference: &Tensor) -> String {
    // Of the largest value; measured: at most 1.8e-6. A1111 divides by the mean of the weighted states, which is small beside
    // their size: that multiplies what rounding there is.
    const TOLERANCE: f32 = 4e-6;
    let request = checked(draft, pipeline);
    let read = pipeline.encode_prompt(&Prompt::of(&request, PromptSide::Positive)).expect("encodes");
    assert_eq!(read.hidden_states.dims(), reference.dims(), "{what}");
    let largest = |x: &Tensor| x.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    let off = largest(&(&read.hidden_states - reference).unwrap()) / largest(reference);
    assert!(off <= TOLERANCE, "{what}: {off:e}");
    format!("{what}: {off:.1e}")
}

#[test]
fn clip_skip_leaves_out_layers_as_the_reference_does() {
    for skip in [1, 2] {
        let skipping = |draft| RequestDraft { clip_skip: Some(skip), ..draft };
        for style in STYLES {
            let (golden, pipeline) = (goldens(&format!("{style}-conditioning")), pipeline(style));
            let (name, asked) = (format!("clip_skip.{skip}"), || skipping(request(style, "euler")));
            let hidden = &golden[&format!("{name}.hidden")];
            println!("{}", assert_hidden(&format!("{style} {name}"), pipeline.as_ref(), asked(), hidden));
            println!("{}", assert_same(&format!("{style} {name}"), &pipeline, asked(), &golden[&name]));
        }
    }
}

#[test]
fn the_negative_prompt_is_skipped_as_the_syntax_has_it() {
    let pipeline = pipeline("tiny-sd");
    let hidden = |syntax: &str, skip: i64| {
        let draft = RequestDraft {
            prompt_syntax: Some(syntax.to_owned()),
            clip_skip: Some(skip),
            ..request("tiny-sd", "euler")
        };
        let request = checked(draft, pipeline.as_ref());
        let read = pipeline.encode_prompt(&Prompt::of(&request, PromptSide::Negative)).expect("encodes");
        read.hidden_states.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert_eq!(hidden("plain", 1), hidden("plain", 0), "diffusers uses all layers");
    assert_ne!(hidden("a1111", 1), hidden("a1111", 0), "A1111 does not");
    assert_eq!(hidden("a1111", 0), hidden("plain", 0));
}

#[test]
fn weights_breaks_and_long_prompts_give_a1111s_hidden_states() {
    for style in STYLES {
        let (golden, pipeline) = (goldens(&format!("{style}-conditioning")), pipeline(style));
        for (index, prompt) in PROMPTS.into_iter().enumerate() {
            let draft = RequestDraft {
                prompt: Some(prompt.to_owned()),
                prompt_syntax: Some("a1111".to_owned()),
                ..request(style, "euler")
            };
            let reference = &golden[&format!("a1111.{index}.hidden")];
            println!("{}", assert_hidden(&format!("{style} {prompt:?}"), pipeline.as_ref(), draft, reference));
        }
    }
}

/// A prompt and a negative prompt of different lengths, both ways: neither is filled up to the other's.
#[test]
fn prompts_of_different_lengths_see_their_own_words_alone() {
    let asked = |prompt: usize, negative: usize| {
        move |draft| RequestDraft {
            prompt: Some(PROMPTS[prompt].to_owned()),
            negative_prompt: Some(PROMPTS[negative].to_owned()),
            prompt_syntax: Some("a1111".to_owned()),
            ..draft
        }
    };
    println!("{}", compare_named("a1111.longer", asked(7, 1)));
    println!("{}", compare_named("a1111.shorter", asked(2, 6)));
}

/// Compares both checkpoints' pictures of that name, drawn by `euler`.
fn compare_named(name: &str, change: impl Fn(RequestDraft) -> RequestDraft) -> String {
    let each = STYLES.map(|style| {
        let (golden, pipeline) = (goldens(&format!("{style}-conditioning")), pipeline(style));
        assert_same(&format!("{style} {name}"), &pipeline, change(request(style, "euler")), &golden[name])
    });
    each.join("\n")
}
