//! Tracing set-up and the `Metrics` struct: typed fields whose help text stands beside them. Decides nothing.

mod distribution;
mod logs;
mod metrics;

pub use distribution::Distribution;
pub use logs::{LogFormat, init_logs};
pub use metrics::{BatchGroup, Metrics};
