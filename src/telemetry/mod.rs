//! Tracing set-up and the Metrics struct: typed fields whose help text stands beside them. Decides nothing.

mod logs;
mod metrics;

pub use logs::{LogFormat, init_logs};
pub use metrics::Metrics;
