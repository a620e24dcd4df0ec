//! The `darkroom` binary: parse arguments, load settings, run one command.

fn main() {}
