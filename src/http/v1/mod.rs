//! Our own API, `/v1`.

pub(super) mod body;
pub(super) mod events;
mod form;
pub(super) mod images;
pub(super) mod jobs;
pub(super) mod models;
mod picture;
pub(super) mod stats;
mod types;
