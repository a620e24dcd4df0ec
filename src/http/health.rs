//! For load balancers and monitoring.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::Door;
use super::errors::Problem;

/// The process answers.
#[utoipa::path(get, path = "/healthz", tag = "operations", responses((status = 200, description = "Alive.", body = String, content_type = "text/plain")))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether to send requests here: models loaded, store reachable, a device works, not draining. `devices_out` tells devices that were
/// taken out after their engines had failed three times with no picture in between.
#[utoipa::path(get, path = "/readyz", tag = "operations", responses(
    (status = 200, description = "Ready: {ready, reasons, devices_out}.", body = serde_json::Value),
    (status = 503, description = "Not ready, with the reasons.", body = serde_json::Value)))]
pub(super) async fn readyz(State(door): State<Door>) -> Response {
    let readiness = door.service.readiness().await;
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness)).into_response()
}

/// Metrics in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "operations", responses((status = 200, description = "Metrics.", body = String, content_type = "text/plain")))]
pub(super) async fn metrics(State(door): State<Door>) -> Result<Response, Problem> {
    // Gauges of the queue are set when somebody looks.
    door.service.stats().await?;
    let text = door.metrics.render().map_err(|_| Problem::from(crate::service::Error::Internal))?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}
