//! Prompts lately encoded: found by all that their embeddings depend on, and the pictures are the same.

use std::sync::Arc;

use darkroom::diffusion::engine::{EngineOptions, draw};
use darkroom::diffusion::pipelines::{Pipeline, Prompt, PromptCache, PromptEmbeds, PromptLookups, PromptSide};
use darkroom::domain::{PromptSyntax, RequestDraft};

use crate::support::drafts::{checked, draft, pipeline};

const PLENTY: usize = 1 << 20;

fn prompt(text: &str) -> Prompt<'_> {
    Prompt { text, side: PromptSide::Positive, syntax: PromptSyntax::Plain, clip_skip: 0 }
}

fn numbers(embeds: &PromptEmbeds) -> Vec<f32> {
    embeds.hidden_states.flatten_all().unwrap().to_vec1().unwrap()
}

struct Bench {
    cache: PromptCache,
    lookups: PromptLookups,
}

impl Bench {
    fn of(capacity: usize) -> Self {
        Self { cache: PromptCache::new(capacity), lookups: PromptLookups::default() }
    }

    /// Whether it was found; what comes is always what the pipeline makes.
    fn finds(&mut self, pipeline: &Arc<dyn Pipeline>, prompt: &Prompt<'_>) -> bool {
        let before = self.lookups.hits;
        let found = self.cache.encode(pipeline, prompt, &mut self.lookups).unwrap();
        let made = pipeline.encode_prompt(prompt).unwrap();
        assert_eq!((numbers(&found), &found.warnings), (numbers(&made), &made.warnings));
        self.lookups.hits > before
    }
}

#[test]
fn a_prompt_is_found_by_all_that_its_embeddings_depend_on() {
    let (one, other) = (pipeline("tiny-sd"), pipeline("tiny-sd2"));
    let mut bench = Bench::of(PLENTY);
    let plain = prompt("a (red) house");
    let others = [
        prompt("a (red) house "),
        Prompt { syntax: PromptSyntax::A1111, ..plain },
        Prompt { side: PromptSide::Negative, ..plain },
        Prompt { clip_skip: 1, ..plain },
    ];
    assert!(!bench.finds(&one, &plain) && bench.finds(&one, &plain));
    for prompt in others {
        assert!(!bench.finds(&one, &prompt), "{prompt:?}");
    }
    assert!(!bench.finds(&other, &plain), "another model's");
    assert!(bench.finds(&one, &plain) && bench.finds(&other, &plain));
    assert_eq!(bench.lookups, PromptLookups { hits: 3, misses: 6 });
}

#[test]
fn a_warning_is_told_again_with_a_prompt_that_was_found() {
    let (tiny, long) = (pipeline("tiny-sd"), "word ".repeat(60));
    let mut bench = Bench::of(PLENTY);
    assert!(!bench.finds(&tiny, &prompt(&long)) && bench.finds(&tiny, &prompt(&long)));
    assert_eq!(tiny.encode_prompt(&prompt(&long)).unwrap().warnings.len(), 1);
}

#[test]
fn the_least_recently_used_makes_room_and_what_never_fits_is_not_kept() {
    let tiny = pipeline("tiny-sd");
    let size = tiny.encode_prompt(&prompt("one")).unwrap().hidden_states.elem_count() * 4;
    // For two with what surrounds them, not for three.
    let mut bench = Bench::of(2 * (size + 256));
    for text in ["one", "two"] {
        assert!(!bench.finds(&tiny, &prompt(text)));
    }
    assert!(bench.finds(&tiny, &prompt("one")));
    assert!(!bench.finds(&tiny, &prompt("six")), "in the place of `two`");
    assert!(bench.finds(&tiny, &prompt("one")) && !bench.finds(&tiny, &prompt("two")));
    let mut small = Bench::of(size / 2);
    assert!(!small.finds(&tiny, &prompt("one")) && !small.finds(&tiny, &prompt("one")));
}

#[test]
fn pictures_are_the_same_with_and_without() {
    let tiny = pipeline("tiny-sd");
    let options = EngineOptions { prompts: Some(Arc::new(PromptCache::new(PLENTY))), ..EngineOptions::default() };
    let guided = RequestDraft { negative_prompt: Some("rain".to_owned()), ..draft("a house", 3) };
    let request = checked(guided, tiny.as_ref());
    let without = draw(tiny.clone(), request.clone(), EngineOptions::default(), |_| {}).unwrap();
    for _ in 0..2 {
        assert!(draw(tiny.clone(), request.clone(), options.clone(), |_| {}).unwrap() == without);
    }
}
