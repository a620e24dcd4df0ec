//! openapi.yaml is what the code says.

#[test]
fn the_committed_file_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.yaml");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    let current = darkroom::http::document().unwrap();
    assert!(
        committed.trim_end() == current.trim_end(),
        "openapi.yaml is out of date; run: cargo run -- openapi > openapi.yaml"
    );
}
