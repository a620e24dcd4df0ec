//! Darkroom develops latents into pictures: an HTTP image-generation server in one binary.
//!
//! The rooms, and the way a request takes through them:
//!
//! | room | duty |
//! |---|---|
//! | [`domain`] | plain data that crosses rooms: requests, jobs, events, artifacts, model info, error codes |
//! | [`config`] | [`config::Settings`]: defaults < file < environment < flags, every fault reported at once |
//! | [`telemetry`] | tracing set-up and the [`telemetry::Metrics`] struct |
//! | [`http`] | talks: the front doors, SSE, errors, limits, health |
//! | [`service`] | the one way in: submit, get, cancel, subscribe, artifact |
//! | [`dispatch`] | remembers jobs, events and artifacts, and decides who is next |
//! | [`diffusion`] | draws: samplers, batching, networks, pipelines, the engine's step loop |
//! | [`images`] | RGB buffers and their encodings |
//! | [`app`] | composition root: Settings -> App |
//! | [`cli`] | one file per subcommand |
//!
//! Data flows one way, http -> service -> dispatch -> diffusion -> images, and events flow back through
//! `dispatch::events` alone.
//!
//! Invariants, kept by `tests/it/architecture.rs`: no `candle` outside `diffusion`, no `sqlx` outside `dispatch`, no
//! `axum` outside `http` (and `app`, to serve), no front door touches a store or a device, no unsafe code outside
//! `diffusion::weights` and `diffusion::kernels`, no global state but the allocator's counts and opened GPUs.

pub mod app;
pub mod cli;
pub mod config;
pub mod diffusion;
pub mod dispatch;
pub mod domain;
pub mod http;
pub mod images;
pub mod service;
pub mod telemetry;
