//! API keys as an operator makes them and a client uses them.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use super::server::{darkroom, request, tiny_sd};

/// `darkroom keys new`: what goes into the settings, and the key.
fn new_key(arguments: &[&str]) -> (String, String) {
    let output = darkroom().args(["keys", "new"]).args(arguments).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{told}");
    let key = told.lines().last().unwrap().to_owned();
    (String::from_utf8(output.stdout).unwrap(), key)
}

#[test]
fn a_new_key_is_long_and_its_entry_does_not_hold_it() {
    let (entry, key) = new_key(&["alice", "--weight", "3", "--admin"]);
    assert!(key.starts_with("dk_") && key.len() == 46, "{key}");
    assert!(!entry.contains(&key[3..]), "{entry}");
    let entry: toml::Value = toml::from_str(&entry).unwrap();
    let entry = &entry["keys"][0];
    assert_eq!((entry["name"].as_str(), entry["weight"].as_integer()), (Some("alice"), Some(3)));
    assert_eq!((entry["admin"].as_bool(), entry["sha256"].as_str().unwrap().len()), (Some(true), 64));
    assert_ne!(new_key(&["alice"]).1, key);

    let refused = darkroom().args(["keys", "new", "a b", "--weight", "1001"]).output().unwrap();
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && refused.stdout.is_empty(), "{told}");
    assert!(told.contains("`name` is `a b`") && told.contains("`weight` of `a b` is 1001"), "{told}");
}

#[test]
fn faulty_keys_are_told_at_the_start_and_nothing_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let (entry, key) = new_key(&["alice"]);
    let file = folder.path().join("darkroom.toml");
    std::fs::write(&file, format!("{entry}\n{entry}\n[[keys]]\nname = \"bob\"\nsha256 = \"{key}\"\nweight = 0\n"))
        .unwrap();
    let output = darkroom().args(["serve", "--config"]).arg(&file).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{told}");
    for part in ["two keys have the name `alice`", "`sha256` of `bob` must be", "`weight` of `bob` is 0"] {
        assert!(told.contains(part), "{part} in {told}");
    }
    assert!(!told.contains(&key), "{told}");
}

#[tokio::test]
async fn no_key_stands_in_the_log_however_much_is_logged() {
    let folder = tempfile::tempdir().unwrap();
    let (entry, key) = new_key(&["alice"]);
    let (config, log) = (folder.path().join("darkroom.toml"), folder.path().join("log"));
    std::fs::write(&config, entry).unwrap();
    let mut command = darkroom();
    command.args(["serve", "--listen", "127.0.0.1:0", "--config"]).arg(&config).arg("--model").arg(tiny_sd());
    command.arg("--data-dir").arg(folder.path().join("data")).env("DARKROOM_LOG__FILTER", "trace");
    let mut server = command.stdout(Stdio::piped()).stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let jobs = format!("{}/v1/jobs", line.trim().rsplit(' ').next().unwrap());
    let client = reqwest::Client::new();
    let ask = || client.post(&jobs).header("prefer", "wait=120").json(&request(1, 2));
    let wrong = format!("{}x", &key[..key.len() - 1]);
    let answers = [
        ask().bearer_auth(&key).send().await.unwrap(),
        ask().bearer_auth(&wrong).send().await.unwrap(),
        ask().header("authorization", &key).send().await.unwrap(),
        ask().bearer_auth(&key).header("idempotency-key", "").send().await.unwrap(),
        client.get(&jobs).bearer_auth(&key).send().await.unwrap(),
    ];
    assert_eq!(answers.each_ref().map(|answer| answer.status().as_u16()), [200, 401, 401, 422, 200]);
    for answer in answers {
        let told = answer.text().await.unwrap();
        assert!(!told.contains("dk_"), "{told}");
    }
    server.kill().unwrap();
    server.wait().unwrap();
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(log.contains("alice") && log.matches("/v1/jobs").count() >= 5, "{log}");
    for part in [&key[3..20], &key[20..]] {
        assert!(!log.contains(part), "a key was logged");
    }
}
