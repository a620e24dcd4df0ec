//! The `darkroom` binary: parse arguments, load settings, run one command.

fn main() -> std::process::ExitCode {
    darkroom::cli::run()
}
