//! A job's events as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use futures::stream;
use serde::Deserialize;
use serde_json::{Value, json};

use super::jobs::job_id;
use super::types::image_body;
use crate::domain::{EventId, FieldError, JobEvent, JobEventKind};
use crate::http::Door;
use crate::http::errors::{Problem, Result};
use crate::service::{Caller, Error, JobStream};
use crate::telemetry::Metrics;

#[derive(Deserialize)]
pub(in crate::http) struct EventsQuery {
    after: Option<String>,
}

/// Watch a job (server-sent events).
///
/// Events `queued`, `started`, `progress`, `preview`, `image`, then exactly one of `succeeded`, `failed`, `cancelled`, after
/// which the stream ends. Each has an `id`; a client that returns with `Last-Event-ID` gets what it has missed (progress
/// and previews: the latest), one that comes late the present state first. Data is JSON. A comment line keeps silent
/// streams open.
#[utoipa::path(get, path = "/v1/jobs/{id}/events", tag = "jobs",
    params(("id" = String, Path, description = "The job's id."),
        ("Last-Event-ID" = Option<String>, Header, description = "Go on after this event."),
        ("after" = Option<String>, Query, description = "The same, for clients that cannot set headers.")),
    responses((status = 200, description = "The stream.", body = String, content_type = "text/event-stream"),
        (status = 404, description = "No such job.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The event id is at fault.", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Too many streams are open.", body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn events(
    State(door): State<Door>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response> {
    let after = last_seen(&query, &headers)?;
    let events = door.service.subscribe(&caller, job_id(&id)?, after).await?;
    let open = OpenStream::new(events, door.metrics.clone());
    let stream = stream::unfold(open, |mut open| async move {
        let event = open.events.next().await?;
        Some((Ok::<_, Infallible>(wire(&event)), open))
    });
    let keep_alive = KeepAlive::new().interval(door.options.heartbeat).text("still here");
    let mut response = Sse::new(stream).keep_alive(keep_alive).into_response();
    // nginx holds responses back otherwise.
    response.headers_mut().insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
    Ok(response)
}

/// Counts open streams, however they end.
struct OpenStream {
    events: JobStream,
    metrics: Arc<Metrics>,
}

impl OpenStream {
    fn new(events: JobStream, metrics: Arc<Metrics>) -> Self {
        metrics.sse_streams.inc();
        Self { events, metrics }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.metrics.sse_streams.dec();
    }
}

fn last_seen(query: &EventsQuery, headers: &HeaderMap) -> Result<Option<EventId>> {
    let header = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let (field, text) = match (header, query.after.as_deref()) {
        (Some(text), _) if !text.is_empty() => ("Last-Event-ID", text),
        (_, Some(text)) => ("after", text),
        _ => return Ok(None),
    };
    let fault =
        |_| Error::Invalid(vec![FieldError::new(field, text, "is no event id of this stream: a whole number")]).into();
    text.parse().map(|id| Some(EventId(id))).map_err(fault)
}

fn wire(event: &JobEvent) -> Event {
    let data = data(event).to_string();
    Event::default().id(event.id.0.to_string()).event(event.kind.name()).data(data)
}

fn data(event: &JobEvent) -> Value {
    let (job, at) = (event.job_id.to_string(), event.at.to_string());
    match &event.kind {
        JobEventKind::Queued | JobEventKind::Succeeded | JobEventKind::Cancelled => json!({"job": job, "at": at}),
        JobEventKind::Started { attempt } => json!({"job": job, "at": at, "attempt": attempt}),
        JobEventKind::Progress { image, step, total } => {
            json!({"job": job, "at": at, "image": image, "step": step, "steps": total})
        }
        JobEventKind::Preview { image, step, jpeg } => {
            let url = format!("data:image/jpeg;base64,{}", base64::engine::general_purpose::STANDARD.encode(jpeg));
            json!({"job": job, "at": at, "image": image, "step": step, "url": url})
        }
        JobEventKind::Image(artifact) => json!({"job": job, "at": at, "image": image_body(&job, artifact)}),
        JobEventKind::Failed(error) => json!({"job": job, "at": at, "error": error}),
    }
}
