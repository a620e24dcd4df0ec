//! Readers of foreign bytes, fed with what nobody would send in good faith: they may refuse, with a sentence that names what
//! is wrong, and nothing else. docs/reliability.md tells the counts and the commands.

use proptest::test_runner::{Config, RngSeed, TestRunner};

mod names;
mod safetensors;

/// Runs `cases` of a property, or `PROPTEST_CASES` of them where that is more; from seed 1 unless `PROPTEST_RNG_SEED` names
/// another.
fn runner(cases: u32) -> TestRunner {
    let config = Config::default();
    let seed = if matches!(config.rng_seed, RngSeed::Random) { RngSeed::Fixed(1) } else { config.rng_seed };
    TestRunner::new(Config { cases: config.cases.max(cases), rng_seed: seed, failure_persistence: None, ..config })
}
