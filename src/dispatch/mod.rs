//! Remembers jobs, events and artifacts, and decides who is next. The only room that names `sqlx` and `object_store`.
//!
//! Nothing here holds a database transaction while a device works: a claim is a lease, renewed by heartbeats.

pub mod artifacts;
pub mod events;
pub mod hub;
pub mod jobs;
pub mod workers;
