//! TestApp and builders.

pub mod app;
pub mod drafts;
pub mod sse;
