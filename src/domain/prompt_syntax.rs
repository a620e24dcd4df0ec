//! What brackets in a prompt mean. A1111's syntax to weighted fragments; pure, and as forgiving as the original.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

use super::sampling::wire_names;

wire_names! {
    /// How a prompt is read.
    PromptSyntax {
        /// As it stands; what the text encoder has no room for is cut, with a warning.
        Plain => "plain",
        /// As A1111 reads it: weights in brackets, `BREAK`, and as many windows of the text encoder as the prompt needs.
        A1111 => "a1111",
    }
}

/// What requests meant before they could say.
impl Default for PromptSyntax {
    fn default() -> Self {
        Self::Plain
    }
}

/// A stretch of a prompt under one weight.
#[derive(Clone, Debug, PartialEq)]
pub enum Fragment {
    /// Words, their vectors to be multiplied by `weight`.
    Words {
        /// Brackets and escapes resolved.
        text: String,
        /// 1 is as the model was trained.
        weight: f64,
    },
    /// What follows begins a new window.
    Break,
}

/// A prompt that A1111 could not read either.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SyntaxError {
    /// `(words:1.2.3)`
    #[error(
        "has the weight `{0}`, which is no number; write one as in `(words:1.2)`, or `\\(` for a bracket that is meant as such"
    )]
    Number(String),
    /// A weight that says nothing, such as that of 200 nested brackets.
    #[error("gives `{text}` a weight of {weight:.3e}; weights from -{MAX_WEIGHT} to {MAX_WEIGHT} are allowed")]
    Weight {
        /// The words' beginning.
        text: String,
        /// All brackets around them multiplied.
        weight: f64,
    },
}

/// The largest weight that is taken.
pub const MAX_WEIGHT: f64 = 1000.0;
/// Of a pair of round brackets; square ones divide by it.
const EMPHASIS: f64 = 1.1;
const BREAK: &str = "BREAK";
/// How a break stands among the weighted pieces until the end. A break within brackets is weighted with the rest and so
/// becomes the word "BREAK": A1111 does that.
const BREAK_WEIGHT: f64 = -1.0;

/// Reads A1111's prompt syntax (its `parse_prompt_attention`):
///
/// | text | meaning |
/// |---|---|
/// | `(words)` | weight times 1.1 |
/// | `(words:1.5)` | weight times 1.5 |
/// | `[words]` | weight divided by 1.1 |
/// | `\(`, `\)`, `\[`, `\]`, `\\` | the character itself |
/// | `BREAK` | what follows begins a new window |
///
/// Brackets nest and multiply; one that is never closed reaches to the end, one that was never opened is a character, and
/// a backslash before anything else vanishes. There is always a fragment. A1111's prompt editing (`[from:to:when]`,
/// `[a|b]`) and `AND` are not part of this: they are read as words and brackets.
///
/// # Errors
/// A weight that is no number or too large.
pub fn parse_a1111(prompt: &str) -> Result<Vec<Fragment>, SyntaxError> {
    let mut reader = Reader::default();
    let mut rest = prompt;
    while let Some(first) = rest.chars().next() {
        rest = &rest[reader.take(first, rest)?..];
    }
    reader.fragments()
}

#[derive(Default)]
struct Reader {
    pieces: Vec<(String, f64)>,
    /// Where open brackets began, by the number of pieces before them.
    round: Vec<usize>,
    square: Vec<usize>,
}

impl Reader {
    /// Reads what `rest` begins with, and says how many bytes that was.
    fn take(&mut self, first: char, rest: &str) -> Result<usize, SyntaxError> {
        match first {
            '\\' => {
                let escaped = rest[1..].chars().next().filter(|c| r"()[]\".contains(*c));
                self.push(escaped.map(String::from).unwrap_or_default());
                return Ok(1 + escaped.map_or(0, char::len_utf8));
            }
            '(' => self.round.push(self.pieces.len()),
            '[' => self.square.push(self.pieces.len()),
            ')' => match self.round.pop() {
                Some(from) => self.multiply(from, EMPHASIS),
                None => self.push(")".to_owned()),
            },
            ']' => match self.square.pop() {
                Some(from) => self.multiply(from, 1.0 / EMPHASIS),
                None => self.push("]".to_owned()),
            },
            ':' => return self.colon(rest),
            _ => {
                let end = rest.find(['\\', '(', ')', '[', ']', ':']).unwrap_or(rest.len());
                self.words(&rest[..end]);
                return Ok(end);
            }
        }
        Ok(1)
    }

    /// A weight and its closing bracket, or a colon.
    fn colon(&mut self, rest: &str) -> Result<usize, SyntaxError> {
        let Some((number, length)) = weight(rest) else {
            self.push(":".to_owned());
            return Ok(1);
        };
        match self.round.pop() {
            Some(from) => {
                let factor = number.parse().map_err(|_| SyntaxError::Number(number.to_owned()))?;
                self.multiply(from, factor);
            }
            None => self.push(rest[..length].to_owned()),
        }
        Ok(length)
    }

    fn words(&mut self, text: &str) {
        for (index, part) in split_at_breaks(text).into_iter().enumerate() {
            if index > 0 {
                self.pieces.push((BREAK.to_owned(), BREAK_WEIGHT));
            }
            self.push(part.to_owned());
        }
    }

    fn push(&mut self, text: String) {
        self.pieces.push((text, 1.0));
    }

    fn multiply(&mut self, from: usize, factor: f64) {
        for (_, weight) in &mut self.pieces[from..] {
            *weight *= factor;
        }
    }

    fn fragments(mut self) -> Result<Vec<Fragment>, SyntaxError> {
        for from in std::mem::take(&mut self.round) {
            self.multiply(from, EMPHASIS);
        }
        for from in std::mem::take(&mut self.square) {
            self.multiply(from, 1.0 / EMPHASIS);
        }
        let mut merged: Vec<(String, f64)> = Vec::new();
        for (text, weight) in self.pieces {
            match merged.last_mut() {
                Some(last) if last.1 == weight => last.0.push_str(&text),
                _ => merged.push((text, weight)),
            }
        }
        if merged.is_empty() {
            merged.push((String::new(), 1.0));
        }
        merged.into_iter().map(fragment).collect()
    }
}

fn fragment((text, weight): (String, f64)) -> Result<Fragment, SyntaxError> {
    if text == BREAK && weight == BREAK_WEIGHT {
        return Ok(Fragment::Break);
    }
    // NaN is no weight either.
    if !(-MAX_WEIGHT..=MAX_WEIGHT).contains(&weight) {
        return Err(SyntaxError::Weight { text: text.chars().take(40).collect(), weight });
    }
    Ok(Fragment::Words { text, weight })
}

/// `:1.2)` at the beginning, spaces within allowed: the number's text, and the length of it all.
fn weight(text: &str) -> Option<(&str, usize)> {
    let begin = text[1..].trim_start();
    let unsigned = begin.strip_prefix(['+', '-']).unwrap_or(begin);
    let after = unsigned.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let number = &begin[..begin.len() - after.len()];
    let rest = after.trim_start().strip_prefix(')').filter(|_| after.len() < unsigned.len())?;
    Some((number, text.len() - rest.len()))
}

/// What stands between the words `BREAK`, without the spaces around them.
fn split_at_breaks(text: &str) -> Vec<&str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut parts, mut begin) = (Vec::new(), 0);
    for (at, found) in text.match_indices(BREAK) {
        let end = at + found.len();
        if !text[..at].ends_with(is_word) && !text[end..].starts_with(is_word) {
            parts.push(text[begin..at].trim_end());
            begin = end + (text[end..].len() - text[end..].trim_start().len());
        }
    }
    parts.push(&text[begin..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(prompt: &str) -> Vec<(String, f64)> {
        let pair = |fragment| match fragment {
            Fragment::Words { text, weight } => (text, weight),
            Fragment::Break => (BREAK.to_owned(), BREAK_WEIGHT),
        };
        parse_a1111(prompt).expect("readable").into_iter().map(pair).collect()
    }

    fn expect(prompt: &str, wanted: &[(&str, f64)]) {
        let read = read(prompt);
        let read: Vec<(&str, f64)> = read.iter().map(|(text, weight)| (text.as_str(), *weight)).collect();
        assert_eq!(read, wanted, "{prompt}");
    }

    /// The examples that A1111's `parse_prompt_attention` documents.
    #[test]
    fn a1111s_own_examples() {
        expect("normal text", &[("normal text", 1.0)]);
        expect("an (important) word", &[("an ", 1.0), ("important", 1.1), (" word", 1.0)]);
        expect("(unbalanced", &[("unbalanced", 1.1)]);
        expect(r"\(literal\]", &[("(literal]", 1.0)]);
        expect("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]);
        let read = read("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).");
        let wanted = [
            ("a ", 1.0),
            ("house", 1.573),
            (" ", 1.1),
            ("on", 1.0),
            (" a ", 1.1),
            ("hill", 0.55),
            (", sun, ", 1.1),
            ("sky", 1.4641),
            (".", 1.1),
        ];
        assert_eq!(read.len(), wanted.len());
        for ((text, weight), (wanted, about)) in read.iter().zip(wanted) {
            assert!(text == wanted && (weight - about).abs() < 1e-12, "{text} {weight}");
        }
    }

    #[test]
    fn escapes_colons_and_brackets_that_mean_nothing() {
        expect("", &[("", 1.0)]);
        expect(r"a\\(b\)", &[(r"a\", 1.0), ("b)", 1.1)]);
        expect(r"a\b \", &[("ab ", 1.0)]);
        expect("10:30) ]:", &[("10:30) ]:", 1.0)]);
        expect("(a: b)", &[("a: b", 1.1)]);
        expect("(a : 1.5 ) (b:-.5)(c:+2.)", &[("a ", 1.5), (" ", 1.0), ("b", -0.5), ("c", 2.0)]);
        expect("(a:1.5:0.5)", &[("a:1.5", 0.5)]);
        expect("[a:1.5)", &[("a:1.5)", 1.0 / 1.1)]);
        expect("(東京:1.2)é", &[("東京", 1.2), ("é", 1.0)]);
        expect("()", &[("", 1.0)]);
    }

    #[test]
    fn breaks_stand_alone() {
        let bar = (BREAK, BREAK_WEIGHT);
        expect("a BREAK b", &[("a", 1.0), bar, ("b", 1.0)]);
        expect("BREAK\nb", &[("", 1.0), bar, ("b", 1.0)]);
        expect("a, BREAK BREAK", &[("a,", 1.0), bar, ("", 1.0), bar, ("", 1.0)]);
        expect("BREAKFAST _BREAK break", &[("BREAKFAST _BREAK break", 1.0)]);
        expect("(a)BREAK(b)", &[("a", 1.1), ("", 1.0), bar, ("", 1.0), ("b", 1.1)]);
        // Weighted, it is a word: as in the original.
        let read = read("(a BREAK b)");
        assert_eq!((read[1].0.as_str(), read[1].1), (BREAK, -1.1));
    }

    #[test]
    fn weights_that_are_none_are_told() {
        assert_eq!(parse_a1111("(a:1.2.3)"), Err(SyntaxError::Number("1.2.3".to_owned())));
        assert_eq!(parse_a1111("(a:.)"), Err(SyntaxError::Number(".".to_owned())));
        // Without a bracket it is text, there as here.
        expect("a:1.2.3)", &[("a:1.2.3)", 1.0)]);
        let nested = format!("{}sky", "(".repeat(200));
        let told = parse_a1111(&nested).expect_err("too much").to_string();
        assert!(told.contains("gives `sky` a weight of 1.899e8"), "{told}");
        let digits = format!("(a:{})", "9".repeat(400));
        assert!(matches!(parse_a1111(&digits), Err(SyntaxError::Weight { .. })));
    }
}
