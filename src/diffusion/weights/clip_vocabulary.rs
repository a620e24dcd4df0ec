//! CLIP's vocabulary, which a checkpoint in one file does not carry (models/clip/README.md: source, licence and form).

use std::fmt::Write;

/// Pairs of token ids, u16, little-endian, in the order of merging.
static MERGES: &[u8] = include_bytes!("../../../models/clip/merges.u16");

/// The mark before a prompt.
pub(super) const START: &str = "<|startoftext|>";
/// The mark after it, and what OpenAI's encoders are padded with.
pub(super) const END: &str = "<|endoftext|>";
/// What OpenCLIP's encoders are padded with: the token 0.
pub(super) const ZERO: &str = "!";

/// Token texts by id: bytes, bytes that end a word, merges, marks.
fn tokens() -> Vec<String> {
    let printable = |byte: &u32| matches!(*byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let (own, others): (Vec<u32>, Vec<u32>) = (0..256).partition(printable);
    // Bytes that do not print stand as the characters from 256 on (`bytes_to_unicode` of OpenAI's GPT-2).
    let characters = own.into_iter().chain((256..).take(others.len())).filter_map(char::from_u32);
    let mut tokens: Vec<String> = characters.map(String::from).collect();
    tokens.extend_from_within(..);
    tokens[256..].iter_mut().for_each(|token| token.push_str("</w>"));
    for (left, right) in pairs() {
        let merged = format!("{}{}", tokens[left], tokens[right]);
        tokens.push(merged);
    }
    tokens.extend([START.to_owned(), END.to_owned()]);
    tokens
}

fn pairs() -> impl Iterator<Item = (usize, usize)> {
    let id = |low: u8, high: u8| usize::from(u16::from_le_bytes([low, high]));
    MERGES.as_chunks().0.iter().map(move |[a, b, c, d]| (id(*a, *b), id(*c, *d)))
}

/// As a tokenizer folder's `vocab.json`: ids by token text.
pub(super) fn vocab_json() -> String {
    let ids: serde_json::Map<String, serde_json::Value> =
        tokens().into_iter().enumerate().map(|(id, token)| (token, id.into())).collect();
    serde_json::Value::Object(ids).to_string()
}

/// As a tokenizer folder's `merges.txt`.
pub(super) fn merges_txt() -> String {
    let (tokens, mut text) = (tokens(), "#version: 0.2\n".to_owned());
    for (left, right) in pairs() {
        writeln!(text, "{} {}", tokens[left], tokens[right]).expect("writing to memory. This is a bug in weights.");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_there_once_and_known_ones_have_their_ids() {
        let tokens = tokens();
        assert_eq!(tokens.len(), 49_408);
        assert_eq!(tokens.iter().collect::<std::collections::HashSet<_>>().len(), tokens.len());
        let known = [(0, ZERO), (255, "Ń"), (256, "!</w>"), (512, "in"), (320, "a</w>"), (1125, "photo</w>")];
        for (id, text) in known.into_iter().chain([(2368, "cat</w>"), (49_406, START), (49_407, END)]) {
            assert_eq!(tokens[id], text);
        }
    }
}
