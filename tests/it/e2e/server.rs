//! A `darkroom serve` of its own, and talking to it.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use futures::StreamExt;
use serde_json::{Value, json};

/// Far more than anything here takes on a busy machine: a guard against hanging, not a measurement.
pub(super) const DEADLINE: Duration = Duration::from_secs(240);

pub(super) fn tiny_sd() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-sd")
}

/// The binary, with no setting inherited from whoever runs the tests.
pub(super) fn darkroom() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_darkroom"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("DARKROOM_")) {
        command.env_remove(name);
    }
    command
}

/// A running server on a port of its own; killed when dropped.
pub(super) struct Server {
    child: Child,
    url: String,
    client: reqwest::Client,
}

impl Server {
    /// Serves tiny-sd from `data_dir`. Short leases, so that a restarted server soon takes the lost jobs.
    pub(super) fn start(data_dir: &Path, environment: &[(&str, &str)]) -> Self {
        Self::start_with(data_dir, tiny_sd(), environment)
    }

    /// The same with another model.
    pub(super) fn start_with(data_dir: &Path, model: impl AsRef<OsStr>, environment: &[(&str, &str)]) -> Self {
        let mut command = darkroom();
        command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(data_dir).arg("--model").arg(model);
        command.env("DARKROOM_QUEUE__LEASE_S", "2").env("DARKROOM_LOG__FILTER", "warn");
        command.envs(environment.iter().copied()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().rsplit(' ').next().unwrap().to_owned();
        assert!(url.starts_with("http://"), "the server did not say where it listens, but `{line}`");
        Self { child, url, client: reqwest::Client::new() }
    }

    /// Where it listens: `http://127.0.0.1:PORT`.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// `SIGKILL`: no destructor runs.
    pub(super) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(super) fn send_sigterm(&self) {
        let sent = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success(), "kill: {sent}");
    }

    /// Waits for the process's own end.
    pub(super) async fn ended(mut self) -> ExitStatus {
        let mut child = std::mem::replace(&mut self.child, Command::new("true").spawn().unwrap());
        let wait = tokio::task::spawn_blocking(move || child.wait().unwrap());
        tokio::time::timeout(DEADLINE, wait).await.expect("the server ends in time").unwrap()
    }

    pub(super) fn post(&self, body: &Value) -> reqwest::RequestBuilder {
        self.client.post(format!("{}/v1/jobs", self.url)).timeout(DEADLINE).json(body)
    }

    pub(super) async fn submit(&self, body: &Value) -> String {
        let response = self.post(body).send().await.unwrap();
        assert_eq!(response.status(), 202);
        response.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned()
    }

    async fn bytes(&self, path: &str) -> Vec<u8> {
        let response = self.client.get(format!("{}{path}", self.url)).timeout(DEADLINE).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        response.bytes().await.unwrap().to_vec()
    }

    pub(super) async fn get(&self, path: &str) -> Value {
        serde_json::from_slice(&self.bytes(path).await).unwrap()
    }

    pub(super) async fn picture(&self, job: &str) -> Vec<u8> {
        self.image(job, 0).await
    }

    pub(super) async fn image(&self, job: &str, index: u32) -> Vec<u8> {
        self.bytes(&format!("/v1/jobs/{job}/images/{index}")).await
    }

    /// The names of a job's events, up to `last` or the stream's end.
    pub(super) async fn events_until(&self, job: &str, last: &str) -> Vec<String> {
        let url = format!("{}/v1/jobs/{job}/events", self.url);
        let mut stream = self.client.get(url).timeout(DEADLINE).send().await.unwrap().bytes_stream();
        let (mut text, mut names) = (String::new(), Vec::new());
        while let Some(chunk) = stream.next().await {
            text.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
            while let Some((line, rest)) = text.split_once('\n') {
                if let Some(name) = line.strip_prefix("event:") {
                    names.push(name.trim().to_owned());
                }
                text = rest.to_owned();
            }
            if names.iter().any(|name| name == last) {
                break;
            }
        }
        names
    }

    /// Follows a job to its end and returns it.
    pub(super) async fn finished(&self, job: &str) -> Value {
        let names = self.events_until(job, "the stream's end").await;
        let ends = names.iter().filter(|name| ["succeeded", "failed", "cancelled"].contains(&name.as_str())).count();
        assert_eq!(ends, 1, "exactly one last event: {names:?}");
        self.get(&format!("/v1/jobs/{job}")).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request that tiny-sd draws in a moment, or in many with `steps`.
pub(super) fn request(seed: u64, steps: u32) -> Value {
    json!({"prompt": "a cat", "seed": seed, "steps": steps, "width": 32, "height": 32, "sampler": "ddim"})
}

/// The same through `darkroom generate`.
pub(super) fn generated(seed: u64, steps: u32) -> Vec<u8> {
    generated_with(seed, steps, &[])
}

/// The same with more flags.
pub(super) fn generated_with(seed: u64, steps: u32, flags: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.png");
    let mut command = darkroom();
    command.args(["generate", "--prompt", "a cat", "--width", "32", "--height", "32", "--sampler", "ddim", "--model"]);
    command.arg(tiny_sd()).args(["--seed", &seed.to_string(), "--steps", &steps.to_string(), "-o"]).arg(&out);
    command.args(flags);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(out).unwrap()
}
