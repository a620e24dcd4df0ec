//! Readers of foreign bytes, fed with what nobody would send in good faith: they may refuse, with a sentence that names what
//! is wrong, and nothing else. docs/reliability.md tells the counts and the commands.

use std::process::Command;

use proptest::test_runner::{Config, RngSeed, TestRunner};

mod images;
mod loras;
mod names;
mod parked;
mod prompts;
mod safetensors;

/// Runs `cases` of a property, or `PROPTEST_CASES` of them where that is more; from seed 1 unless `PROPTEST_RNG_SEED` names
/// another.
fn runner(cases: u32) -> TestRunner {
    let config = Config::default();
    let seed = if matches!(config.rng_seed, RngSeed::Random) { RngSeed::Fixed(1) } else { config.rng_seed };
    TestRunner::new(Config { cases: config.cases.max(cases), rng_seed: seed, failure_persistence: None, ..config })
}

/// Set in a process that this one has started.
const WITHIN: &str = "DARKROOM_FUZZ_WITHIN";

/// Runs a test of this binary again in a process of its own that cannot have more than `megabytes` of memory, and calls
/// `test` there: an allocation beyond it ends that process, and fails this one.
fn within_memory(name: &str, megabytes: u64, test: impl FnOnce()) {
    if std::env::var_os(WITHIN).is_some() {
        return test();
    }
    let limit = format!("ulimit -v {} && exec \"$0\" \"$@\"", megabytes * 1024);
    let binary = std::env::current_exe().unwrap();
    let mut child = Command::new("bash");
    child.arg("-c").arg(limit).arg(binary).args([name, "--exact", "--nocapture", "--test-threads", "1"]);
    let Ok(output) = child.env(WITHIN, "1").output() else {
        crate::support::skip(name, "bash is not installed; the test runs without a bound on its memory");
        return test();
    };
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(told.contains("1 passed"), "no test is called {name}: {told}");
    eprint!("{told}");
}
