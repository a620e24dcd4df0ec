//! Textual inversion embeddings: words of their own in prompts, as diffusers' `load_textual_inversion` reads them.

use std::path::{Path, PathBuf};

use candle_core::Device;
use darkroom::diffusion::engine::{EngineOptions, draw};
use darkroom::diffusion::models::text_encoders::ClipTokenizer;
use darkroom::diffusion::pipelines::{self, Changes, ModelSource};
use darkroom::diffusion::weights::{Checkpoint, TextEmbedding};
use darkroom::domain::{DeviceSpec, RequestDraft};
use safetensors::tensor::Dtype;

use super::networks::goldens;
use super::pipeline::assert_same;
use crate::support::drafts::{checked, fixtures};
use crate::support::single_files::{Stored, write};

/// The texts of make_embeddings.py.
const TEXTS: [&str; 6] = [
    "a <cat-toy> in the snow, easyneg",
    "<CAT-TOY>s and myeasynegword",
    "easyneg easyneg, <cat-toy>",
    "easy neg <cat toy>",
    "xlword, xlwordy or an axlword",
    "one two three four five six seven easyneg easyneg easyneg",
];

fn words() -> PathBuf {
    fixtures().join("embeddings/words")
}

fn with(style: &str, embeddings: Vec<PathBuf>) -> ModelSource {
    let changes = Changes { embeddings, ..Changes::default() };
    ModelSource { changes, ..ModelSource::at(style, fixtures().join(style)) }
}

fn named(checkpoint: &Checkpoint) -> Vec<&str> {
    checkpoint.embeddings().iter().map(|embedding| embedding.name.as_str()).collect()
}

/// A tokenizer that knows the words that fit the checkpoint.
fn tokenizer(checkpoint: &Checkpoint, encoder: &str, tokenizer: &str) -> ClipTokenizer {
    let mut tokenizer = ClipTokenizer::load(checkpoint, tokenizer, 24).unwrap();
    for embedding in checkpoint.embeddings() {
        let count = embedding.vectors(encoder, &Device::Cpu).unwrap().dim(0).unwrap();
        tokenizer.add_word(&embedding.name, count).unwrap();
    }
    tokenizer
}

#[test]
fn words_are_found_where_the_reference_finds_them() {
    let golden = goldens("embeddings");
    for (style, names, folders) in [
        ("tiny-sd", vec!["easyneg", "<cat-toy>"], vec![("text_encoder", "tokenizer")]),
        ("tiny-sdxl", vec!["xlword"], vec![("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")]),
    ] {
        let checkpoint = with(style, vec![words()]).checkpoint().unwrap();
        assert_eq!(named(&checkpoint), names, "those that fit {style}");
        for (number, (encoder, folder)) in folders.into_iter().enumerate() {
            let tokenizer = tokenizer(&checkpoint, encoder, folder);
            let reference: Vec<Vec<i64>> = golden[&format!("{style}.ids.{number}")].to_vec2().unwrap();
            for (text, reference) in TEXTS.iter().zip(reference) {
                let ids: Vec<i64> = tokenizer.encode(text).unwrap().ids.into_iter().map(i64::from).collect();
                assert_eq!(ids, reference, "{style} {folder}: {text}");
            }
        }
    }
}

/// The reference replaces a word of several vectors only where its case is right; elsewhere its first vector stands alone.
#[test]
fn a_word_has_all_its_vectors_in_any_case() {
    let checkpoint = with("tiny-sdxl", vec![words()]).checkpoint().unwrap();
    let tokenizer = tokenizer(&checkpoint, "text_encoder", "tokenizer");
    assert_eq!(tokenizer.encode("XLWord").unwrap(), tokenizer.encode("xlword").unwrap());
}

#[test]
fn a_prompt_with_words_draws_the_references_picture() {
    for (style, sampler, side, prompt, negative) in [
        ("tiny-sd", "ddim", 16, "a <cat-toy> in the snow", "easyneg, red"),
        ("tiny-sdxl", "euler", 64, "an xlword house", "red, xlword"),
    ] {
        let draft = || RequestDraft {
            prompt: Some(prompt.to_owned()),
            negative_prompt: Some(negative.to_owned()),
            width: Some(2 * side),
            height: Some(side),
            steps: Some(4),
            guidance_scale: Some(5.0),
            sampler: Some(sampler.to_owned()),
            seed: Some(7),
            ..RequestDraft::default()
        };
        let load = |embeddings| pipelines::load(&with(style, embeddings), DeviceSpec::Cpu).unwrap();
        let reference = &goldens("embeddings")[&format!("{style}.picture")];
        println!("{}", assert_same(style, &load(vec![words()]), draft(), reference));

        let plain = load(Vec::new());
        let request = checked(draft(), plain.as_ref());
        let without = draw(plain, request, EngineOptions::default(), |_| {}).unwrap().remove(0);
        let reference: Vec<u8> = reference.flatten_all().unwrap().to_vec1().unwrap();
        assert_ne!(without.pixels(), reference, "the words count");
    }
}

#[test]
fn what_is_no_embedding_is_refused_and_what_does_not_fit_left_out() {
    let scratch = tempfile::tempdir().unwrap();
    let number = |shape: &[usize]| Stored {
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        bytes: vec![0; 4 * shape.iter().product::<usize>()],
    };
    let file = |name: &str, tensors: &[(&str, &[usize])]| {
        let path = scratch.path().join(name);
        write(&path, &tensors.iter().map(|(name, shape)| ((*name).to_owned(), number(shape))).collect());
        path
    };
    let refused = |path: &Path| TextEmbedding::open(path).err().unwrap().to_string();
    for (tensors, part) in [
        (&[("a", &[2usize, 32][..]), ("b", &[2, 32])][..], "2 tensors"),
        (&[("emb_params", &[0, 32])], "[0, 32]"),
        (&[("emb_params", &[1025, 2])], "[1025, 2]"),
        (&[("emb_params", &[1, 2, 32])], "[1, 2, 32]"),
        (&[("emb_params", &[])], "[]"),
        (&[("clip_l", &[2, 16]), ("clip_g", &[3, 24])], "different numbers"),
        (&[("a\nb", &[32])], "cannot stand in a prompt"),
    ] {
        let told = refused(&file("odd.safetensors", tensors));
        assert!(told.contains(part) && told.contains("odd.safetensors"), "`{part}` in: {told}");
    }
    std::fs::write(scratch.path().join("odd.safetensors"), "no safetensors").unwrap();
    std::fs::write(scratch.path().join("old.pt"), b"PK\x03\x04").unwrap();
    assert!(refused(&scratch.path().join("old.pt")).contains("pickle"));
    // Too wide, a token of the vocabulary, one that fits, its twin.
    file("wide.safetensors", &[("emb_params", &[33])]);
    file("ho.safetensors", &[("emb_params", &[32])]);
    file("sub/plain.safetensors", &[("*", &[2, 32])]);
    file("sub/other.safetensors", &[("PLAIN", &[32])]);
    let source = with("tiny-sd", vec![scratch.path().to_owned()]);
    assert_eq!(named(&source.checkpoint().unwrap()), ["ho", "PLAIN", "plain"]);
    pipelines::load(&source, DeviceSpec::Cpu).unwrap();
    let mut tokenizer = ClipTokenizer::load(&source.checkpoint().unwrap(), "tokenizer", 24).unwrap();
    assert!(tokenizer.add_word("ho", 1).unwrap_err().contains("token of the vocabulary"));
    tokenizer.add_word("PLAIN", 1).unwrap();
    assert!(tokenizer.add_word("plain", 2).is_err());
}
