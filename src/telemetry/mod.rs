//! Tracing set-up and the Metrics struct: typed fields whose help text stands beside them. Decides nothing.
