//! TestApp and builders.

pub(crate) mod app;
pub(crate) mod drafts;
pub(crate) mod sse;
