//! CLIP's byte-pair tokenizer, from `vocab.json` + `merges.txt` or `tokenizer.json`.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreSequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, NormalizerWrapper, SplitDelimiterBehavior, Tokenizer};

use super::windows::{Piece, Window, WindowMarks, windows};
use crate::diffusion::weights::{Checkpoint, Error, Result};
use crate::domain::Fragment;

/// What CLIP takes for words (transformers `CLIPTokenizer`): marks, contractions, letters, single digits, the rest.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Text to token ids.
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    start: u32,
    end: u32,
    pad: u32,
    length: usize,
    /// Added words of several tokens: the first, and those that follow it.
    followers: HashMap<u32, Vec<u32>>,
}

/// A prompt's tokens, filled up to the encoder's window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// As many as the window is long, start and end marks included.
    pub ids: Vec<u32>,
    /// Tokens that found no place.
    pub cut: usize,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TokenizerConfig {
    bos_token: Option<Value>,
    eos_token: Option<Value>,
    pad_token: Option<Value>,
}

impl std::fmt::Debug for ClipTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClipTokenizer").field("length", &self.length).finish_non_exhaustive()
    }
}

impl ClipTokenizer {
    /// Reads `folder` of a checkpoint; `length` is the text encoder's window.
    pub fn load(checkpoint: &Checkpoint, folder: &str, length: usize) -> Result<Self> {
        let vocab = format!("{folder}/vocab.json");
        let (tokenizer, source) = if checkpoint.has(&vocab) {
            (from_vocab(checkpoint, folder)?, vocab)
        } else {
            let file = format!("{folder}/tokenizer.json");
            let read = checkpoint.text(&file)?.parse::<Tokenizer>();
            (read.map_err(|error| checkpoint.malformed(&file, error.to_string()))?, file)
        };
        let mut names = TokenizerConfig::default();
        for file in ["special_tokens_map.json", "tokenizer_config.json"] {
            let file = format!("{folder}/{file}");
            if checkpoint.has(&file) {
                let read: TokenizerConfig = checkpoint.json(&file)?;
                names = TokenizerConfig {
                    bos_token: names.bos_token.or(read.bos_token),
                    eos_token: names.eos_token.or(read.eos_token),
                    pad_token: names.pad_token.or(read.pad_token),
                };
            }
        }
        let id = |token: &Option<Value>, default: &str| -> Result<u32> {
            let name = token.as_ref().and_then(token_text).unwrap_or(default);
            let missing = || checkpoint.malformed(&source, format!("it has no token `{name}`"));
            tokenizer.token_to_id(name).ok_or_else(missing)
        };
        let end = id(&names.eos_token, "<|endoftext|>")?;
        let start = id(&names.bos_token, "<|startoftext|>")?;
        let pad = id(&names.pad_token, "<|endoftext|>")?;
        if length < 3 {
            return Err(checkpoint.malformed(folder, format!("a window of {length} tokens has no room for words")));
        }
        Ok(Self { tokenizer, start, end, pad, length, followers: HashMap::new() })
    }

    /// Adds a word that stands for `count` tokens, called `word`, `word_1`, `word_2`, ... as in diffusers. It is found
    /// wherever it stands in a text, inside other words too, in upper or lower case. The first token's id; the others follow.
    ///
    /// # Errors
    /// A word that is a token already, as a sentence.
    pub fn add_word(&mut self, word: &str, count: usize) -> std::result::Result<u32, String> {
        let names: Vec<String> =
            std::iter::once(word.to_owned()).chain((1..count).map(|k| format!("{word}_{k}"))).collect();
        let added = self.tokenizer.get_added_tokens_decoder();
        let twin = |name: &String| added.values().any(|known| known.content.to_lowercase() == name.to_lowercase());
        if let Some(name) = names.iter().find(|name| self.tokenizer.token_to_id(name).is_some() || twin(name)) {
            return Err(format!("`{name}` is a token of the vocabulary already"));
        }
        let tokens = names.iter().map(|name| AddedToken::from(name.clone(), false));
        self.tokenizer.add_tokens(tokens).map_err(|error| error.to_string())?;
        let ids: Option<Vec<u32>> = names.iter().map(|name| self.tokenizer.token_to_id(name)).collect();
        let ids = ids.ok_or_else(|| format!("`{word}` cannot be added"))?;
        self.followers.insert(ids[0], ids[1..].to_vec());
        Ok(ids[0])
    }

    /// The largest id it can give.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// Start mark, the prompt's tokens, end mark, padding: cut to the window as the reference cuts, keeping the marks.
    ///
    /// # Errors
    /// None for valid text; the tokenizer's own word otherwise.
    pub fn encode(&self, prompt: &str) -> Result<Tokens> {
        let (words, room) = (self.words(prompt)?, self.length - 2);
        let mut ids = vec![self.start];
        ids.extend(words.iter().take(room));
        ids.push(self.end);
        ids.resize(self.length, self.pad);
        Ok(Tokens { ids, cut: words.len().saturating_sub(room) })
    }

    /// As many windows as a prompt's fragments need, at least one.
    ///
    /// # Errors
    /// As [`ClipTokenizer::encode`].
    pub fn windows(&self, fragments: &[Fragment]) -> Result<Vec<Window>> {
        let mut pieces = Vec::new();
        for fragment in fragments {
            match fragment {
                Fragment::Break => pieces.push(Piece::Break),
                Fragment::Words { text, weight } => {
                    let weight = *weight as f32;
                    let word = |id: u32| match self.followers.get(&id) {
                        None => vec![id],
                        Some(followers) => [&[id], followers.as_slice()].concat(),
                    };
                    pieces.extend(self.tokens(text)?.into_iter().map(|id| Piece::Word { ids: word(id), weight }));
                }
            }
        }
        let comma = self.tokenizer.token_to_id(",</w>");
        let marks = WindowMarks { start: self.start, end: self.end, pad: self.pad, comma, length: self.length };
        Ok(windows(&pieces, marks))
    }

    /// The added words that a text has, in its order; twice if they stand there twice.
    ///
    /// # Errors
    /// As [`ClipTokenizer::encode`].
    pub fn added_words(&self, text: &str) -> Result<Vec<String>> {
        if self.followers.is_empty() {
            return Ok(Vec::new());
        }
        let added = self.tokens(text)?.into_iter().filter(|id| self.followers.contains_key(id));
        Ok(added.filter_map(|id| self.tokenizer.id_to_token(id)).collect())
    }

    /// Without marks, a word of several vectors with all of them.
    fn words(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for id in self.tokens(text)? {
            ids.push(id);
            ids.extend(self.followers.get(&id).into_iter().flatten());
        }
        Ok(ids)
    }

    /// Without marks.
    fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        let failed =
            |error: tokenizers::Error| Error::Malformed { file: "tokenizer".to_owned(), reason: error.to_string() };
        Ok(self.tokenizer.encode_fast(text, false).map_err(failed)?.get_ids().to_vec())
    }
}

fn token_text(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content").and_then(Value::as_str))
}

fn from_vocab(checkpoint: &Checkpoint, folder: &str) -> Result<Tokenizer> {
    let (vocab_file, merges_file) = (format!("{folder}/vocab.json"), format!("{folder}/merges.txt"));
    let vocab: HashMap<String, u32> = checkpoint.json(&vocab_file)?;
    let merges = checkpoint.text(&merges_file)?;
    let pair = |line: &str| -> Result<(String, String)> {
        let (a, b) = line
            .split_once(' ')
            .ok_or_else(|| checkpoint.malformed(&merges_file, format!("line `{line}` is no pair")))?;
        Ok((a.to_owned(), b.trim_end().to_owned()))
    };
    let lines = merges.lines().filter(|line| !line.starts_with("#version") && !line.trim().is_empty());
    let merges = lines.map(pair).collect::<Result<Vec<_>>>()?;
    let failed = |error: tokenizers::Error| checkpoint.malformed(&merges_file, error.to_string());
    let bpe = BPE::builder()
        .vocab_and_merges(vocab.into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges)
        .end_of_word_suffix("</w>".to_owned())
        .unk_token("<|endoftext|>".to_owned())
        .build()
        .map_err(failed)?;
    let mut tokenizer = Tokenizer::new(bpe);
    let spaces = Replace::new(tokenizers::normalizers::replace::ReplacePattern::Regex(r"\s+".to_owned()), " ")
        .map_err(failed)?;
    let normalizer = Sequence::new(vec![
        NormalizerWrapper::NFC(NFC),
        NormalizerWrapper::Replace(spaces),
        NormalizerWrapper::Lowercase(Lowercase),
    ]);
    tokenizer.with_normalizer(Some(normalizer)).map_err(failed)?;
    let words =
        Split::new(SplitPattern::Regex(WORDS.to_owned()), SplitDelimiterBehavior::Removed, true).map_err(failed)?;
    tokenizer.with_pre_tokenizer(Some(PreSequence::new(vec![
        PreTokenizerWrapper::Split(words),
        PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, false)),
    ])));
    // A mark inside a prompt is that mark, not the letters it is written with.
    let marks = ["<|startoftext|>", "<|endoftext|>"].map(|mark| AddedToken::from(mark, true));
    tokenizer.add_special_tokens(marks).map_err(failed)?;
    Ok(tokenizer)
}
