//! Draws: from a checked request to RGB pictures. The only room that names `candle`.
//!
//! Synchronous throughout; it starts one plain thread a device (`engine`) and knows no tokio, no store and no HTTP.

pub mod batching;
pub mod engine;
pub mod kernels;
pub mod models;
pub mod noise;
pub mod pipelines;
pub mod samplers;
pub mod weights;
