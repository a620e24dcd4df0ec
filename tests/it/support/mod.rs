//! TestApp and builders.

pub mod drafts;
