//! A whole app on a real socket, with the real engine and a tiny checkpoint.

use std::time::Duration;

use darkroom::app::{App, LoadHook, Seams, Storage};
use darkroom::config::{KeySettings, Settings};
use darkroom::diffusion::engine::FaultHook;
use darkroom::domain::Cost;
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::drafts::fixtures;

/// Chooses what the app is like.
pub(crate) struct Builder {
    settings: Settings,
    seams: Seams,
    storage: Storage,
}

impl Builder {
    pub(crate) fn settings(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self
    }

    /// What forwards are taken to cost: batches are made up by it.
    pub(crate) fn cost(mut self, cost: Cost) -> Self {
        self.seams.cost = Some(cost);
        self
    }

    pub(crate) fn fault(mut self, hook: FaultHook) -> Self {
        self.seams.fault = Some(hook);
        self
    }

    /// Takes this one's key, which [`key_of`] tells. Once there is one, the app's own requests come with `root`'s, which may see
    /// everything.
    pub(crate) fn key(mut self, name: &str, weight: u32) -> Self {
        let of = |name: &str, weight, is_admin| KeySettings::of(&key_of(name), name.to_owned(), weight, is_admin);
        if self.settings.keys.is_empty() {
            self.settings.keys.push(of("root", 1, true));
        }
        self.settings.keys.push(of(name, weight, false));
        self
    }

    /// Called before each load of a model.
    pub(crate) fn load(mut self, hook: LoadHook) -> Self {
        self.seams.load = Some(hook);
        self
    }

    /// SQLite and files in a folder of its own, instead of memory.
    pub(crate) fn durable(mut self) -> Self {
        self.storage = Storage::Durable;
        self
    }

    /// Why it does not start.
    pub(crate) async fn refused(self) -> String {
        App::build(&self.settings, Storage::Memory, self.seams).await.unwrap_err()
    }

    pub(crate) async fn start(self) -> TestApp {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = self.settings;
        settings.data_dir = folder.path().to_owned();
        let key = (!settings.keys.is_empty()).then(|| key_of("root"));
        let app = App::build(&settings, self.storage, self.seams).await.unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(app.serve(listener, async move {
            let _ = stopped.await;
        }));
        let client = Client::builder().timeout(Duration::from_secs(120)).build().unwrap();
        TestApp { base, client, key, stop: Some(stop), serving: Some(serving), _folder: folder }
    }
}

/// A running app. Every test ends with [`TestApp::finish`], which fails when jobs are left.
pub(crate) struct TestApp {
    pub(crate) base: String,
    pub(crate) client: Client,
    key: Option<String>,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<std::io::Result<()>>>,
    _folder: tempfile::TempDir,
}

impl TestApp {
    pub(crate) fn builder() -> Builder {
        let mut settings = Settings::default();
        settings.models.serve = vec![fixtures().join("tiny-sd").display().to_string()];
        // What memory bounds has tests of its own; elsewhere batches are as the policy makes them.
        settings.workers.memory_mb = Some(0);
        settings.workers.warm_up = false;
        // A test that asks for the same twice means to have it drawn twice.
        settings.queue.reuse = false;
        Builder { settings, seams: Seams::default(), storage: Storage::Memory }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.base));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// With this one's key.
    pub(crate) fn request_as(&self, name: &str, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base)).bearer_auth(key_of(name))
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    pub(crate) async fn json(&self, path: &str) -> Value {
        self.get(path).await.json().await.unwrap()
    }

    pub(crate) async fn post(&self, body: &Value) -> Response {
        self.request(Method::POST, "/v1/jobs").json(body).send().await.unwrap()
    }

    /// Submits and returns the job as accepted.
    pub(crate) async fn submit(&self, body: &Value) -> Value {
        let response = self.post(body).await;
        assert_eq!(response.status(), 202, "{}", response.text().await.unwrap());
        response.json().await.unwrap()
    }

    /// Waits for a job's end, by its events.
    pub(crate) async fn ended(&self, id: &str) -> Value {
        let stream = self.get(&format!("/v1/jobs/{id}/events")).await;
        let events = super::sse::read(stream).await;
        assert!(matches!(events.last().unwrap().name.as_str(), "succeeded" | "failed" | "cancelled"), "{events:?}");
        self.json(&format!("/v1/jobs/{id}")).await
    }

    /// Waits until a worker has a job, by its events.
    pub(crate) async fn running(&self, id: &str) {
        let stream = self.get(&format!("/v1/jobs/{id}/events")).await;
        let events = super::sse::read_until(stream, |event| event.name == "started").await;
        assert_eq!(events.last().unwrap().name, "started", "{events:?}");
    }

    /// Waits until so many jobs have come to an engine, all in all: a job that runs may be on its way there.
    pub(crate) async fn aboard(&self, jobs: u32) {
        let all_came = async {
            while self.metric("darkroom_prepare_seconds_count").await < f64::from(jobs) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), all_came).await.expect("they come in time");
    }

    /// The value of one sample of `/metrics`, 0 when it is not there.
    pub(crate) async fn metric(&self, sample: &str) -> f64 {
        let text = self.get("/metrics").await.text().await.unwrap();
        let line = text.lines().find(|line| line.rsplit_once(' ').is_some_and(|(name, _)| name == sample));
        line.and_then(|line| line.rsplit_once(' ')).map_or(0.0, |(_, value)| value.parse().unwrap())
    }

    /// Stops the app; fails when a job was left.
    pub(crate) async fn finish(mut self) {
        let stats = self.json("/v1/stats").await;
        assert_eq!((&stats["queued"], &stats["running"]), (&json!(0), &json!(0)), "jobs are left");
        self.shut_down().await;
    }

    /// Stops the app with whatever is in its queue.
    pub(crate) async fn shut_down(&mut self) {
        let _ = self.stop.take().unwrap().send(());
        self.serving.take().unwrap().await.unwrap().unwrap();
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        assert!(self.stop.is_none() || std::thread::panicking(), "a test forgot to finish its app");
    }
}

/// The key of this name.
pub(crate) fn key_of(name: &str) -> String {
    format!("dk_{name}-key-that-nobody-may-see")
}

/// A small picture in a few steps.
pub(crate) fn body(prompt: &str, seed: u64) -> Value {
    json!({"prompt": prompt, "width": 16, "height": 16, "steps": 4, "seed": seed})
}

/// `body` with some fields changed.
pub(crate) fn with(mut body: Value, changes: Value) -> Value {
    body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    body
}
