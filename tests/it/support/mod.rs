//! TestApp and builders.

pub(crate) mod app;
pub(crate) mod browser;
pub(crate) mod drafts;
pub(crate) mod gate;
pub(crate) mod hub;
pub(crate) mod single_files;
pub(crate) mod sse;

/// Says that a test was skipped and why. Fails instead where nothing may be skipped (`DARKROOM_FORBID_SKIPS`).
pub(crate) fn skip(what: &str, why: &str) {
    let is_forbidden = std::env::var_os("DARKROOM_FORBID_SKIPS").is_some();
    assert!(!is_forbidden, "{what} would be skipped, which is forbidden here: {why}");
    eprintln!("SKIPPED {what}: {why}");
}

/// How much of something a variable asks for, where it is set.
pub(crate) fn count_asked_for(variable: &str, otherwise: u64) -> u64 {
    let asked = std::env::var_os(variable);
    asked.map_or(otherwise, |count| count.to_str().and_then(|count| count.parse().ok()).expect("a number"))
}
