//! The README's `curl` examples, as pasted, against a fresh server with the built-in model.

use std::process::Command;

use darkroom::config::KeySettings;

use super::server::Server;

/// The fenced `sh` blocks that speak to a server.
fn examples() -> Vec<String> {
    let readme = include_str!("../../../README.md");
    let blocks = readme.split("```").skip(1).step_by(2).filter_map(|block| block.strip_prefix("sh\n"));
    blocks.filter(|block| block.contains("curl ")).map(str::to_owned).collect()
}

fn is_installed(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

#[tokio::test]
async fn every_curl_example_works_as_pasted() {
    let absent: Vec<&str> =
        ["bash", "curl", "jq", "grep"].into_iter().filter(|program| !is_installed(program)).collect();
    if !absent.is_empty() {
        return crate::support::skip("README examples", &format!("not installed: {}", absent.join(", ")));
    }
    let (data, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start_with(data.path(), "pinhole", &[]);
    let (keyed, examples): (Vec<String>, Vec<String>) =
        examples().into_iter().partition(|example| example.contains("Authorization"));
    assert!(examples.len() >= 5, "the README has lost its examples: {examples:?}");
    assert!(!keyed.is_empty(), "the README shows no key");
    let key = KeySettings::of("dk_of-the-readme", "alice".to_owned(), 1, false);
    let keys = format!("[{{name=\"{}\",sha256=\"{}\"}}]", key.name, key.sha256);
    let data = tempfile::tempdir().unwrap();
    let asking = Server::start_with(data.path(), "pinhole", &[("DARKROOM_KEYS", &keys)]);
    let each = examples.iter().map(|example| (example, &server)).chain(keyed.iter().map(|example| (example, &asking)));
    for (example, server) in each {
        let script = format!("set -euo pipefail\n{}", example.replace("http://127.0.0.1:7860", server.url()));
        assert!(script.contains(server.url()), "an example speaks to another address: {example}");
        let run = Command::new("bash")
            .arg("-c")
            .arg(&script)
            .env("KEY", "dk_of-the-readme")
            .current_dir(folder.path())
            .output();
        let output = run.unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{example}\n{told}\n{}", String::from_utf8_lossy(&output.stdout));
        // jq prints null for what is not there: an example that says nothing is wrong.
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(said != "null", "{example}\nsays null");
    }
    let starts = |name: &str, bytes: &[u8]| std::fs::read(folder.path().join(name)).unwrap().starts_with(bytes);
    assert!(starts("house.png", b"\x89PNG"));
    assert!(starts("boat.webp", b"RIFF"));
}
