//! Submit, read, list, cancel.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;

use super::body::{self, Parsed};
use super::types::{CreateJobBody, CreateJobForm, JobBody, JobList};
use crate::domain::{ErrorCode, FieldError, ImageFormat, JobId, JobStatus};
use crate::http::Door;
use crate::http::errors::{Problem, Result, status_of};
use crate::http::negotiate::preferred;
use crate::service::{Caller, Error, JobView, Submission};

const JSON: &str = "application/json";
/// Longest `Idempotency-Key`.
const MAX_KEY: usize = 255;
const MAX_PAGE: u32 = 200;

pub(super) fn job_id(text: &str) -> Result<JobId> {
    // A malformed id names no job, like any other id that names none.
    text.parse().map_err(|error: crate::domain::ParseIdError| {
        Problem::new(StatusCode::NOT_FOUND, ErrorCode::JobNotFound.name(), error.to_string())
    })
}

fn field_fault(field: &str, value: impl Into<serde_json::Value>, message: impl Into<String>) -> Problem {
    Error::Invalid(vec![FieldError::new(field, value, message)]).into()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Submit a job.
///
/// Answers 202 at once. `Prefer: wait=N` holds the answer until the job has ended, at most N seconds. `Accept: image/png`
/// (or jpeg, webp) waits and answers with the picture's bytes. `Idempotency-Key` makes a retry safe. A form has the same
/// fields, one part each, and files for the pictures; a part `request` may hold the others as JSON.
#[utoipa::path(post, path = "/v1/jobs", tag = "jobs", 
    request_body(content((CreateJobBody = "application/json"), (CreateJobForm = "multipart/form-data"))),
    params(
        ("Prefer" = Option<String>, Header, description = "`wait=N`: hold the answer until the job has ended, at most N seconds."),
        ("Accept" = Option<String>, Header, description = "`image/png`, `image/jpeg` or `image/webp`: wait and answer with the picture."),
        ("Idempotency-Key" = Option<String>, Header, description = "At most 255 characters; a repeat with the same body answers with the same job."),
    ),
    responses(
        (status = 202, description = "Accepted; `Location` says where it is.", body = JobBody),
        (status = 200, description = "The job has ended (`Prefer: wait`), or the picture's bytes (`Accept: image/*`).", body = JobBody),
        (status = 400, description = "The body is no JSON object.", body = Problem, content_type = "application/problem+json"),
        (status = 406, description = "No such representation.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The Idempotency-Key was used with a different request.", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large.", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is neither application/json nor multipart/form-data.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields at fault, all of them.", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "The queue is full; `Retry-After` says when to try again.", body = Problem, content_type = "application/problem+json"),
        (status = 500, description = "The job failed (`Accept: image/*`).", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Draining, or too many waiting requests.", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "The picture was not ready in time; `X-Darkroom-Job` names the job, which goes on; or it had failed by then with `expired`.", body = Problem, content_type = "application/problem+json"),
    ))]
pub(in crate::http) async fn create(
    State(door): State<Door>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: std::result::Result<Bytes, BytesRejection>,
) -> Result<Response> {
    let image = wanted_image(&headers)?;
    let wait = wanted_wait(&headers, &door)?;
    let key = idempotency_key(&headers)?;
    let mut parsed = body::parse(&headers, body, door.options.max_body_bytes).await?;
    if let Some(format) = image {
        take_single_image(&mut parsed, format);
    }
    let Parsed { draft, pictures, faults } = parsed;
    let submission = Submission { draft, pictures, faults, idempotency_key: key };
    let submitted = door.service.submit(&caller, submission).await?;
    let id = submitted.view.job.id;
    if let Some(format) = image {
        return picture(&door, &caller, id, format).await;
    }
    let mut view = submitted.view;
    if let Some(wait) = wait {
        view = door.service.wait(&caller, id, wait).await?;
    }
    let ended = view.job.status.is_terminal();
    let status = if ended || (submitted.is_repeat && wait.is_none()) { StatusCode::OK } else { StatusCode::ACCEPTED };
    let mut response = (status, Json(JobBody::from(view))).into_response();
    let location = HeaderValue::from_str(&format!("/v1/jobs/{id}")).unwrap_or(HeaderValue::from_static("/v1/jobs"));
    response.headers_mut().insert(header::LOCATION, location);
    if let Some(wait) = wait {
        let applied =
            HeaderValue::from_str(&format!("wait={}", wait.as_secs())).unwrap_or(HeaderValue::from_static("wait"));
        response.headers_mut().insert(HeaderName::from_static("preference-applied"), applied);
    }
    Ok(response)
}

/// The picture format asked for in `Accept`; `None`: JSON.
fn wanted_image(headers: &HeaderMap) -> Result<Option<ImageFormat>> {
    let accept = text(headers, "accept");
    let offers: Vec<&str> =
        [JSON].into_iter().chain(ImageFormat::ALL.iter().map(|format| format.content_type())).collect();
    match preferred(accept, &offers) {
        Some(JSON) => Ok(None),
        Some(kind) => Ok(ImageFormat::ALL.iter().copied().find(|format| format.content_type() == kind)),
        // Problems are JSON too: who accepts only those takes the job as JSON.
        None if accept.is_some_and(|accept| accept.contains("application/problem+json")) => Ok(None),
        None => {
            let detail = format!("nothing here is `{}`; there are {}", accept.unwrap_or(""), offers.join(", "));
            Err(Problem::new(StatusCode::NOT_ACCEPTABLE, "not_acceptable", detail))
        }
    }
}

/// The bytes of one picture answer one request: several need their job.
fn take_single_image(parsed: &mut Parsed, format: ImageFormat) {
    if let Some(count) = parsed.draft.num_images.filter(|count| *count != 1) {
        let message = "must be 1 with `Accept: image/*`; ask for JSON and fetch the pictures one by one";
        parsed.faults.push(FieldError::new("num_images", count, message));
    }
    // What is asked for is what is stored, unless the body says otherwise.
    parsed.draft.output_format.get_or_insert_with(|| format.name().to_owned());
}

/// `Prefer: wait=N` (RFC 7240), cut to the server's longest wait.
fn wanted_wait(headers: &HeaderMap, door: &Door) -> Result<Option<Duration>> {
    let preferences =
        headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    for preference in preferences.map(str::trim) {
        let Some(rest) = preference.strip_prefix("wait") else { continue };
        let seconds = match rest.trim().strip_prefix('=') {
            None if rest.trim().is_empty() => door.options.max_wait.as_secs(),
            Some(number) => number
                .trim()
                .trim_matches('"')
                .parse()
                .map_err(|_| field_fault("Prefer", preference, "`wait` takes whole seconds, such as wait=60"))?,
            None => continue,
        };
        return Ok(Some(Duration::from_secs(seconds).min(door.options.max_wait)));
    }
    Ok(None)
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    match key.to_str() {
        Ok(key) if !key.is_empty() && key.len() <= MAX_KEY => Ok(Some(key.to_owned())),
        _ => Err(field_fault(
            "Idempotency-Key",
            serde_json::Value::Null,
            format!("must be 1 to {MAX_KEY} visible ASCII characters"),
        )),
    }
}

/// Waits for the job and answers with its picture.
async fn picture(door: &Door, caller: &Caller, id: JobId, format: ImageFormat) -> Result<Response> {
    let view = door.service.wait(caller, id, door.options.max_wait).await?;
    let named = |mut response: Response| {
        let name = HeaderValue::from_str(&id.to_string()).unwrap_or(HeaderValue::from_static(""));
        response.headers_mut().insert(HeaderName::from_static("x-darkroom-job"), name);
        response
    };
    if let Some(problem) = not_a_picture(&view, id) {
        return Ok(named(problem.into_response()));
    }
    let stored = door.service.image(caller, id, 0, Some(format)).await?;
    Ok(named(super::images::answer(stored)))
}

fn not_a_picture(view: &JobView, id: JobId) -> Option<Problem> {
    match view.job.status {
        JobStatus::Succeeded => None,
        JobStatus::Failed => {
            let error = view.job.error.as_ref();
            let code = error.map_or(ErrorCode::Internal, |error| error.code);
            let detail = error.map_or_else(String::new, |error| error.message.clone());
            Some(Problem::new(status_of(code), code.name(), format!("job {id} failed: {detail}")))
        }
        JobStatus::Cancelled => {
            Some(Problem::new(StatusCode::CONFLICT, ErrorCode::Conflict.name(), format!("job {id} was cancelled")))
        }
        JobStatus::Queued | JobStatus::Running => Some(Problem::new(
            StatusCode::GATEWAY_TIMEOUT,
            "not_ready",
            format!("job {id} has not ended yet; it goes on, see /v1/jobs/{id}"),
        )),
    }
}

/// One job.
#[utoipa::path(get, path = "/v1/jobs/{id}", tag = "jobs", params(("id" = String, Path, description = "The job's id.")),
    responses((status = 200, description = "The job.", body = JobBody),
        (status = 404, description = "No such job, or it has expired.", body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn get(
    State(door): State<Door>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<JobBody>> {
    Ok(Json(door.service.get(&caller, job_id(&id)?).await?.into()))
}

#[derive(Deserialize)]
pub(in crate::http) struct ListQuery {
    status: Option<String>,
    cursor: Option<String>,
    limit: Option<String>,
}

/// Jobs, newest first.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs",
    params(("status" = Option<String>, Query, description = "Only jobs of this status."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before."),
        ("limit" = Option<u32>, Query, description = "1 to 200; 20 when absent.")),
    responses((status = 200, description = "A page of jobs.", body = JobList),
        (status = 422, description = "Parameters at fault.", body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn list(
    State(door): State<Door>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<ListQuery>,
) -> Result<Json<JobList>> {
    let mut faults = Vec::new();
    let status = query.status.as_deref().and_then(|text| {
        text.parse::<JobStatus>()
            .map_err(|()| {
                faults.push(FieldError::new(
                    "status",
                    text,
                    "must be one of `queued`, `running`, `succeeded`, `failed`, `cancelled`",
                ))
            })
            .ok()
    });
    let before = query.cursor.as_deref().and_then(|text| {
        text.parse::<JobId>()
            .map_err(|_| faults.push(FieldError::new("cursor", text, "is no `next_cursor` of this list")))
            .ok()
    });
    let limit = match query.limit.as_deref().map(str::parse::<u32>) {
        None => 20,
        Some(Ok(limit)) if (1..=MAX_PAGE).contains(&limit) => limit,
        Some(_) => {
            faults.push(FieldError::new(
                "limit",
                query.limit.clone(),
                format!("must be an integer from 1 to {MAX_PAGE}"),
            ));
            20
        }
    };
    if !faults.is_empty() {
        return Err(Error::Invalid(faults).into());
    }
    let page = door.service.list(&caller, status, before, limit).await?;
    Ok(Json(JobList {
        jobs: page.jobs.into_iter().map(JobBody::from).collect(),
        next_cursor: page.next.map(|id| id.to_string()),
    }))
}

/// Cancel a job that waits or runs; remove one that has ended, with its pictures.
#[utoipa::path(delete, path = "/v1/jobs/{id}", tag = "jobs", params(("id" = String, Path, description = "The job's id.")),
    responses((status = 200, description = "Cancelled while it waited.", body = JobBody),
        (status = 202, description = "It runs and leaves at its next step.", body = JobBody),
        (status = 204, description = "It had ended and is removed."),
        (status = 404, description = "No such job.", body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn delete(
    State(door): State<Door>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response> {
    Ok(match door.service.delete(&caller, job_id(&id)?).await? {
        None => StatusCode::NO_CONTENT.into_response(),
        Some(view) => {
            let status = if view.job.status.is_terminal() { StatusCode::OK } else { StatusCode::ACCEPTED };
            (status, Json(JobBody::from(view))).into_response()
        }
    })
}
