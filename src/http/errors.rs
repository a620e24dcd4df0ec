//! The only place that turns an error into a status and a body: `application/problem+json` (RFC 9457).

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::{ErrorCode, ErrorKind};
use crate::service;

/// One fault of one field.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct FieldFault {
    /// The field, nested with dots.
    #[schema(example = "width")]
    pub field: String,
    /// What stood there, cut to 64 characters; null when nothing did.
    pub value: serde_json::Value,
    /// What is wrong and what is allowed.
    #[schema(example = "must be a multiple of 16 from 64 to 256 for model `pinhole`")]
    pub message: String,
}

/// A refusal (RFC 9457).
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Problem {
    /// Always `about:blank`: the code says more.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The status in words.
    #[schema(example = "Unprocessable Entity")]
    pub title: &'static str,
    /// The HTTP status.
    #[schema(example = 422)]
    pub status: u16,
    /// In a word.
    #[schema(example = "invalid_request")]
    pub code: &'static str,
    /// As a sentence.
    pub detail: String,
    /// Every fault of the request's fields at once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldFault>,
    #[serde(skip)]
    pub retry_after_s: Option<u64>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            code,
            detail: detail.into(),
            errors: Vec::new(),
            retry_after_s: None,
        }
    }
}

pub(super) fn status_of(code: ErrorCode) -> StatusCode {
    match code.kind() {
        ErrorKind::BadRequest => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Conflict => StatusCode::CONFLICT,
        ErrorKind::Busy => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Late => StatusCode::GATEWAY_TIMEOUT,
        ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl From<service::Error> for Problem {
    fn from(error: service::Error) -> Self {
        let mut problem = Self::new(status_of(error.code()), error.code().name(), error.to_string());
        problem.retry_after_s = error.retry_after_s();
        if let service::Error::Invalid(faults) = error {
            // An unknown model is worth a code of its own: clients list models then.
            if faults.len() == 1 && faults[0].field == "model" {
                problem.code = ErrorCode::ModelNotFound.name();
            }
            let plain = |fault: crate::domain::FieldError| FieldFault {
                field: fault.field,
                value: fault.value,
                message: fault.message,
            };
            problem.errors = faults.into_iter().map(plain).collect();
        }
        problem
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_string(&self).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// Of handlers.
pub(super) type Result<T> = std::result::Result<T, Problem>;
