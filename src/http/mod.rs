//! Talks: front doors, SSE, keys, errors, limits, health. Touches no store and no device: everything goes through `service`.
//!
//! `v1` is our own API, `page` the web page, which speaks only `v1`. `errors` alone gives statuses.

mod auth;
mod docs;
mod errors;
mod health;
mod layers;
mod negotiate;
mod openapi;
pub mod page;
mod v1;

pub use auth::ApiKey;
pub use openapi::document;

use std::sync::Arc;
use std::time::Duration;

use axum::{Router, middleware};

use crate::service::GenerationService;
use crate::telemetry::Metrics;

/// How the server talks.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// Origins of web pages that may call the API; `*`: any.
    pub cors_origins: Vec<String>,
    /// Largest request body, in bytes.
    pub max_body_bytes: usize,
    /// Longest time a request waits for its job.
    pub max_wait: Duration,
    /// A comment line on silent event streams every so often.
    pub heartbeat: Duration,
    /// Who may ask; empty: anybody.
    pub keys: Vec<ApiKey>,
}

/// What every handler sees.
#[derive(Clone)]
struct Door {
    service: Arc<GenerationService>,
    metrics: Arc<Metrics>,
    options: Arc<HttpOptions>,
}

/// Every route, with its layers.
pub fn router(service: Arc<GenerationService>, metrics: Arc<Metrics>, options: HttpOptions) -> Router {
    let door = Door { service, metrics, options: Arc::new(options) };
    let (keyed, _) = openapi::keyed_routes().split_for_parts();
    let (open, _) = openapi::open_routes().split_for_parts();
    let keyed = keyed.route_layer(middleware::from_fn_with_state(door.clone(), auth::require_key));
    let routes = keyed.merge(open).merge(docs::router()).with_state(door.clone()).merge(page::router());
    layers::wrap(routes, &door)
}
