//! One job over HTTP, from its submission to its end.
//!
//! Most jobs are one request that the server holds until the job has ended (`Prefer: wait`): nothing is sent while the
//! picture is drawn, so the load is the drawing, and the answer brings the server's own times. Polling would add requests
//! in proportion to the waiting, and an event stream a message for every step and preview of every picture. Only an event
//! stream shows the first step, so some jobs are watched that way.

use std::time::{Duration, Instant};

use futures::StreamExt;
use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::Value;

/// How a job is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Follow {
    /// One request, held to the end.
    Held,
    /// Its event stream.
    Watched,
}

/// What came of one attempt at a job.
#[derive(Debug)]
pub(super) struct Attempt {
    /// When the end was known here.
    pub at: Instant,
    /// When the first step was told; of a watched job.
    pub first_progress: Option<Instant>,
    pub end: Result<Drawn, Fault>,
}

/// A job that succeeded; times as the server took them, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Drawn {
    pub pictures: u64,
    pub queued_ms: f64,
    pub encode_ms: f64,
    pub denoise_ms: f64,
    pub decode_ms: f64,
    pub store_ms: f64,
}

/// Why there is no picture.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fault {
    /// The server has no room now.
    Busy { kind: String, retry_after: Duration },
    /// Anything else, in a few words that are the same for the same cause.
    Other { kind: String, detail: String },
}

impl Fault {
    fn other(kind: impl Into<String>, detail: impl ToString) -> Self {
        Self::Other { kind: kind.into(), detail: detail.to_string() }
    }

    fn unreachable(error: &reqwest::Error) -> Self {
        Self::other(if error.is_connect() { "no connection" } else { "connection lost" }, with_causes(error))
    }
}

/// An error and what lies behind it: reqwest's own words name only the request.
fn with_causes(error: &reqwest::Error) -> String {
    let (mut text, mut cause) = (error.to_string(), std::error::Error::source(error));
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    text
}

/// Talks to one server.
#[derive(Clone, Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    url: String,
    timeout: Duration,
}

impl Client {
    pub(super) fn new(url: &str, timeout: Duration) -> Result<Self, String> {
        let http = reqwest::Client::builder().build().map_err(|error| error.to_string())?;
        Ok(Self { http, url: url.trim_end_matches('/').to_owned(), timeout })
    }

    /// The text at a path; `None` where the server has none.
    pub(super) async fn text(&self, path: &str) -> Result<Option<String>, String> {
        let response = self.http.get(format!("{}{path}", self.url)).send().await.map_err(|e| with_causes(&e))?;
        match response.status() {
            status if status.is_success() => response.text().await.map(Some).map_err(|error| with_causes(&error)),
            _ => Ok(None),
        }
    }

    /// Draws one job outside the measurement.
    pub(super) async fn try_out(&self, body: &Value) -> Result<(), String> {
        match self.draw(body, Follow::Held).await.end {
            Ok(_) | Err(Fault::Busy { .. }) => Ok(()),
            Err(Fault::Other { kind, detail }) => Err(format!("a first job did not succeed: {kind}: {detail}")),
        }
    }

    /// Submits a job and follows it to its end.
    pub(super) async fn draw(&self, body: &Value, follow: Follow) -> Attempt {
        let mut first_progress = None;
        let followed = tokio::time::timeout(self.timeout, self.submit_and_follow(body, follow, &mut first_progress));
        let (at, end) = match followed.await {
            Ok(Ok((at, job))) => (at, drawn(&job)),
            Ok(Err(fault)) => (Instant::now(), Err(fault)),
            Err(_) => (Instant::now(), Err(Fault::other("timed out", format!("{} s", self.timeout.as_secs_f64())))),
        };
        Attempt { at, first_progress, end }
    }

    /// The ended job, and when its end was known.
    async fn submit_and_follow(
        &self,
        body: &Value,
        follow: Follow,
        first_progress: &mut Option<Instant>,
    ) -> Result<(Instant, Value), Fault> {
        let mut request = self.http.post(format!("{}/v1/jobs", self.url)).json(body);
        if follow == Follow::Held {
            request = request.header("prefer", format!("wait={}", self.timeout.as_secs().max(1)));
        }
        let response = send(request).await?;
        let status = response.status();
        let job = json(response).await?;
        if status == StatusCode::OK {
            return Ok((Instant::now(), job));
        }
        // 202: watched, or the server waits no longer than it has.
        let id = job["id"].as_str().ok_or_else(|| Fault::other("broken answer", "a job without an id"))?;
        let at = self.watch(id, first_progress).await?;
        let job = json(send(self.http.get(format!("{}/v1/jobs/{id}", self.url))).await?).await?;
        Ok((at, job))
    }

    /// Reads a job's events to the last; when that came.
    async fn watch(&self, id: &str, first_progress: &mut Option<Instant>) -> Result<Instant, Fault> {
        let response = send(self.http.get(format!("{}/v1/jobs/{id}/events", self.url))).await?;
        let (mut stream, mut rest) = (response.bytes_stream(), Vec::new());
        while let Some(chunk) = stream.next().await {
            rest.extend_from_slice(&chunk.map_err(|error| Fault::unreachable(&error))?);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                match line.trim_ascii() {
                    b"event: progress" => drop(first_progress.get_or_insert_with(Instant::now)),
                    b"event: succeeded" | b"event: failed" | b"event: cancelled" => return Ok(Instant::now()),
                    _ => {}
                }
            }
        }
        Err(Fault::other("broken answer", "an event stream without a last event"))
    }
}

/// The response, or the fault its problem tells of.
async fn send(request: RequestBuilder) -> Result<Response, Fault> {
    let response = request.send().await.map_err(|error| Fault::unreachable(&error))?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
    let problem: Value = response.json().await.unwrap_or_default();
    let kind = format!("{} {}", status.as_u16(), problem["code"].as_str().unwrap_or("without a problem body"));
    Err(match (status, retry_after) {
        (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, seconds) => {
            Fault::Busy { kind, retry_after: Duration::from_secs(seconds.unwrap_or(1)) }
        }
        _ => Fault::other(kind, said(&problem)),
    })
}

/// What a problem says, fields at fault included.
fn said(problem: &Value) -> String {
    let field = |fault: &Value| format!("{} {}", fault["field"].as_str().unwrap_or(""), fault["message"]);
    let fields = problem["errors"].as_array().map(|faults| faults.iter().map(field).collect::<Vec<_>>().join("; "));
    format!("{} {}", problem["detail"].as_str().unwrap_or(""), fields.unwrap_or_default()).trim().to_owned()
}

async fn json(response: Response) -> Result<Value, Fault> {
    response.json().await.map_err(|error| match error.is_decode() {
        true => Fault::other("broken answer", with_causes(&error)),
        false => Fault::unreachable(&error),
    })
}

/// What an ended job brings.
fn drawn(job: &Value) -> Result<Drawn, Fault> {
    let status = job["status"].as_str().unwrap_or("");
    if status != "succeeded" {
        let code = job["error"]["code"].as_str().unwrap_or("no reason told");
        return Err(Fault::other(format!("job {status}: {code}"), &job["error"]["message"]));
    }
    let time = |name: &str| job["timings"][name].as_f64().unwrap_or(0.0);
    Ok(Drawn {
        pictures: job["images"].as_array().map_or(0, |images| images.len() as u64),
        queued_ms: time("queued_ms"),
        encode_ms: time("encode_ms"),
        denoise_ms: time("denoise_ms"),
        decode_ms: time("decode_ms"),
        store_ms: time("store_ms"),
    })
}
