//! Text to vectors: tokenizers and the networks that read their tokens.

mod clip;
mod tokenizer;
mod windows;

pub use clip::{ClipTextConfig, ClipTextModel, ClipTextModelWithProjection, ClipTextOutput};
pub use tokenizer::{ClipTokenizer, Tokens};
pub use windows::{Piece, Window, WindowMarks, windows};
