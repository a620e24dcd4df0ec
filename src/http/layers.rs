//! What every request passes through: ids, logs, metrics, limits, compression, CORS, security headers, panics.

use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{DefaultPredicate, NotForContentType, Predicate};
use tower_http::cors::{AllowOrigin, CorsLayer};
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, RequestId, SetRequestIdLayer};
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tower_http::set_header::SetResponseHeaderLayer;

use super::Door;
use super::errors::Problem;

pub(super) fn wrap(routes: Router, door: &Door) -> Router {
    let id = HeaderName::from_static("x-request-id");
    let fixed = |name: HeaderName, value: &'static str| {
        SetResponseHeaderLayer::if_not_present(name, HeaderValue::from_static(value))
    };
    let compress =
        CompressionLayer::new().compress_when(DefaultPredicate::new().and(NotForContentType::new("text/event-stream")));
    let layers = ServiceBuilder::new()
        .layer(SetSensitiveRequestHeadersLayer::new([header::AUTHORIZATION]))
        .layer(SetRequestIdLayer::new(id.clone(), MakeRequestUuid))
        .layer(PropagateRequestIdLayer::new(id))
        .layer(middleware::from_fn_with_state(door.clone(), observe))
        .layer(fixed(header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .layer(fixed(header::REFERRER_POLICY, "no-referrer"))
        .layer(cors(&door.options.cors_origins))
        .layer(compress)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(DefaultBodyLimit::max(door.options.max_body_bytes));
    let unknown = || async {
        Problem::new(StatusCode::NOT_FOUND, "not_found", "there is nothing here; /docs lists what there is")
    };
    let misused = || async {
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path does not take that method")
    };
    routes.method_not_allowed_fallback(misused).fallback(unknown).layer(layers)
}

fn cors(origins: &[String]) -> CorsLayer {
    if origins.is_empty() {
        return CorsLayer::new();
    }
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| origin.parse().ok()))
    };
    let heard =
        ["authorization", "content-type", "accept", "prefer", "idempotency-key", "last-event-id", "x-request-id"];
    let told =
        ["location", "retry-after", "etag", "preference-applied", "x-request-id", "x-darkroom-job", "x-darkroom-seed"];
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(heard.map(HeaderName::from_static))
        .expose_headers(told.map(HeaderName::from_static))
}

/// Counts, times and logs a request by its route, never by its path: paths carry ids.
async fn observe(State(door): State<Door>, matched: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let route = matched.map_or_else(|| "unmatched".to_owned(), |path| path.as_str().to_owned());
    let id =
        request.extensions().get::<RequestId>().and_then(|id| id.header_value().to_str().ok()).unwrap_or("").to_owned();
    let (method, began) = (request.method().clone(), Instant::now());
    let response = next.run(request).await;
    let (status, seconds) = (response.status().as_u16(), began.elapsed().as_secs_f64());
    let method = if matches!(method, Method::GET | Method::POST | Method::DELETE | Method::HEAD | Method::OPTIONS) {
        method.as_str().to_owned()
    } else {
        "other".to_owned()
    };
    door.metrics.http_requests.with_label_values(&[&method, &route, &status.to_string()]).inc();
    door.metrics.http_seconds.with_label_values(&[&route]).observe(seconds);
    tracing::info!(request.id = %id, %method, %route, status, ms = (seconds * 1e3) as u64, "request");
    response
}

fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let words =
        panic.downcast_ref::<&str>().copied().map(str::to_owned).or_else(|| panic.downcast_ref::<String>().cloned());
    tracing::error!(panic = words.unwrap_or_default(), "a handler panicked");
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the server failed").into_response()
}
