//! TestApp and builders.

pub(crate) mod app;
pub(crate) mod browser;
pub(crate) mod drafts;
pub(crate) mod gate;
pub(crate) mod sse;
