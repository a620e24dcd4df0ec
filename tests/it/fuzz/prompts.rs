//! A1111's prompt syntax and the windows it fills: prompts written from a meaning, prompts of nothing but syntax, noise.

use darkroom::diffusion::models::text_encoders::{Piece, Window, WindowMarks, windows};
use darkroom::domain::{Fragment, MAX_WEIGHT, SyntaxError, parse_a1111};
use proptest::collection::vec;
use proptest::prelude::*;

use super::runner;

/// What a prompt says, before it is written down.
#[derive(Clone, Debug)]
enum Meaning {
    Words(String),
    Break,
    Round(Vec<Meaning>),
    Weighted(Vec<Meaning>, String),
    Square(Vec<Meaning>),
}

fn meaning() -> impl Strategy<Value = Vec<Meaning>> {
    let words = prop_oneof![
        "[a-z]{1,4}( [a-z]{1,4}){0,2}",
        prop::sample::select(vec!["(", ")", "[", "]", "\\", ",", " ", "10:30h", ": x", "東京", "\u{301}é", "BREAKS"])
            .prop_map(str::to_owned),
    ];
    let leaf = prop_oneof![9 => words.prop_map(Meaning::Words), 1 => Just(Meaning::Break)];
    let number = prop_oneof!["[+-]?[0-2]\\.[0-9]{1,3}", "\\.[0-9]", "[0-9]\\.", "1"];
    let tree = leaf.prop_recursive(4, 24, 4, move |inner| {
        let inner = vec(inner, 0..4);
        prop_oneof![
            inner.clone().prop_map(Meaning::Round),
            (inner.clone(), number.clone()).prop_map(|(inner, weight)| Meaning::Weighted(inner, weight)),
            inner.prop_map(Meaning::Square),
        ]
    });
    vec(tree, 0..6)
}

/// Writes a meaning down, and adds what it should be read as: pieces of text with their weights, `None` for a break.
fn write(all: &[Meaning], weight: f64, prompt: &mut String, read: &mut Vec<(Option<String>, f64)>) {
    for one in all {
        let from = read.len();
        let mut within = |inner: &[Meaning], open: &str, factor: f64, close: &str| {
            prompt.push_str(open);
            write(inner, 1.0, prompt, read);
            prompt.push_str(close);
            read[from..].iter_mut().for_each(|(_, weight)| *weight *= factor);
        };
        match one {
            Meaning::Words(text) => {
                let escaped = text.chars().flat_map(|c| r"()[]\".contains(c).then_some('\\').into_iter().chain([c]));
                prompt.extend(escaped);
                read.push((Some(text.clone()), 1.0));
            }
            Meaning::Break => {
                prompt.push_str(" BREAK ");
                read.push((None, -1.0));
            }
            Meaning::Round(inner) => within(inner, "(", 1.1, ")"),
            Meaning::Weighted(inner, number) => {
                within(inner, "(", number.parse().expect("a number"), &format!(": {number})"));
            }
            Meaning::Square(inner) => within(inner, "[", 1.0 / 1.1, "]"),
        }
        read[from..].iter_mut().for_each(|(_, own)| *own *= weight);
    }
}

/// Text and weight of each fragment, neighbours of one weight together, spaces at breaks and fragments without text left out.
fn gist(fragments: impl IntoIterator<Item = (Option<String>, f64)>) -> Vec<(Option<String>, f64)> {
    let mut out: Vec<(Option<String>, f64)> = Vec::new();
    for (text, weight) in fragments {
        // Within brackets a break is the word, weighted.
        let text = if text.is_none() && weight != -1.0 { Some("BREAK".to_owned()) } else { text };
        match (out.last_mut(), text) {
            (Some((Some(last), known)), Some(text)) if *known == weight => last.push_str(&text),
            (_, text) => out.push((text, weight)),
        }
    }
    // Spaces around a break are the break's.
    let squeezed =
        out.into_iter().map(|(text, weight)| (text.map(|text| text.split_whitespace().collect::<String>()), weight));
    let told = squeezed.filter(|(text, _)| text.as_ref().is_none_or(|text| !text.is_empty()));
    let mut merged: Vec<(Option<String>, f64)> = Vec::new();
    for (text, weight) in told {
        match (merged.last_mut(), text) {
            (Some((Some(last), known)), Some(text)) if *known == weight => last.push_str(&text),
            (_, text) => merged.push((text, weight)),
        }
    }
    merged
}

fn pairs(fragments: Vec<Fragment>) -> impl Iterator<Item = (Option<String>, f64)> {
    fragments.into_iter().map(|fragment| match fragment {
        Fragment::Words { text, weight } => (Some(text), weight),
        Fragment::Break => (None, -1.0),
    })
}

#[test]
fn what_is_written_is_read() {
    let property = |all: Vec<Meaning>| {
        let (mut prompt, mut wanted) = (String::new(), Vec::new());
        write(&all, 1.0, &mut prompt, &mut wanted);
        let read = parse_a1111(&prompt).map_err(|error| TestCaseError::fail(format!("{prompt:?} {error}")))?;
        prop_assert_eq!(gist(pairs(read)), gist(wanted), "{}", prompt);
        Ok(())
    };
    runner(4_000).run(&meaning(), property).unwrap();
}

/// Whatever the text: an answer, or a refusal of a weight.
fn holds(prompt: &str) -> Result<(), TestCaseError> {
    let fragments = match parse_a1111(prompt) {
        Ok(fragments) => fragments,
        Err(SyntaxError::Number(number)) => {
            prop_assert!(prompt.contains(&number) && number.parse::<f64>().is_err(), "{prompt:?} {number}");
            return Ok(());
        }
        Err(SyntaxError::Weight { weight, .. }) => {
            prop_assert!(weight.is_nan() || weight.abs() > MAX_WEIGHT, "{prompt:?} {weight}");
            return Ok(());
        }
    };
    prop_assert!(!fragments.is_empty());
    let mut rest = prompt.chars();
    let mut before: Option<f64> = None;
    for (text, weight) in pairs(fragments) {
        prop_assert!(weight.abs() <= MAX_WEIGHT);
        prop_assert!(before != Some(weight), "{prompt:?}: neighbours of one weight");
        before = Some(weight);
        // Nothing is added and nothing changes places.
        for c in text.as_deref().unwrap_or("BREAK").chars() {
            prop_assert!(rest.any(|other| other == c), "{prompt:?}: {c:?} is not there");
        }
    }
    Ok(())
}

#[test]
fn brackets_in_any_order_are_read_or_their_weight_refused() {
    let part = prop::sample::select(vec![
        "(", "(", ")", ")", "[", "]", ":", ":1.3)", ":-0.5)", ":.)", ":9999)", ": 2 )", ":1.", "\\", "\\(", "\\\\",
        " ", "a", "b c", "BREAK", " BREAK ", "BREAKS", "東", "\n", ",", "1", ".",
    ]);
    runner(4_000).run(&vec(part, 0..24), |parts| holds(&parts.concat())).unwrap();
}

#[test]
fn noise_is_read_or_its_weight_refused() {
    runner(2_000).run(&any::<String>(), |text| holds(&text)).unwrap();
    runner(2_000).run(&"[()\\[\\]:.0-9+ a\\\\-]{0,60}", |text| holds(&text)).unwrap();
}

/// Every word has its place, in order, under its own weight; only a break, a comma nearby or an
/// embedding ends a window before it is full.
#[test]
fn windows_hold_every_word_once() {
    const MARKS: WindowMarks = WindowMarks { start: 900, end: 901, pad: 901, comma: Some(0), length: 77 };
    let word = |ids: Vec<u32>, weight| Piece::Word { ids, weight };
    let words = (vec(0u32..12, 0..120), -2.0f32..2.0)
        .prop_map(move |(ids, weight)| ids.into_iter().map(|id| word(vec![id], weight)).collect());
    let embedding = vec(12u32..24, 1..9).prop_map(move |ids| vec![word(ids, 1.0)]);
    let stretch = prop_oneof![5 => words, 2 => embedding, 1 => Just(vec![Piece::Break])];
    let property = |pieces: Vec<Piece>| {
        let made = windows(&pieces, MARKS);
        let words = |ids: &[u32]| ids.iter().filter(|id| **id < 900).count();
        let words_of = |piece: &Piece| match piece {
            Piece::Word { ids, weight } => ids.iter().map(|id| (*id, *weight)).collect(),
            Piece::Break => Vec::new(),
        };
        let wanted: Vec<(u32, f32)> = pieces.iter().flat_map(words_of).collect();
        let mut held = Vec::new();
        for window in &made {
            let count = words(&window.ids);
            prop_assert_eq!((window.ids.len(), window.weights.len(), window.ids[0]), (77, 77, 900));
            prop_assert!(window.ids[count + 1..].iter().all(|id| *id == 901), "words, then marks");
            prop_assert!(window.weights[count + 1..].iter().chain(&window.weights[..1]).all(|weight| *weight == 1.0));
            held.extend(window.ids.iter().copied().zip(window.weights.iter().copied()).skip(1).take(count));
        }
        prop_assert_eq!(held, wanted);
        let breaks = pieces.iter().filter(|piece| **piece == Piece::Break).count();
        let begins_embedding = |window: &Window| (12..24).contains(&window.ids[1]);
        let early = made.windows(2).filter(|pair| {
            let count = words(&pair[0].ids);
            let is_for_comma = count >= 56 && pair[0].ids[count] == 0;
            // Up to 8 vectors, none of them left behind.
            let is_for_embedding = count > 67 && begins_embedding(&pair[1]);
            count < 75 && !is_for_comma && !is_for_embedding
        });
        for piece in &pieces {
            if let Piece::Word { ids, .. } = piece
                && ids.len() > 1
            {
                let whole = made.iter().any(|window| window.ids.windows(ids.len()).any(|found| found == ids));
                prop_assert!(whole, "an embedding was torn");
            }
        }
        prop_assert!(early.count() <= breaks, "a window ended early for no reason");
        Ok(())
    };
    let pieces = vec(stretch, 0..8).prop_map(|stretches| stretches.concat());
    runner(2_000).run(&pieces, property).unwrap();
}
