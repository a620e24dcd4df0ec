//! The API's description, from the handlers themselves; the committed `openapi.yaml` is what [`document`] prints.

use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Door, health, v1};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Darkroom",
        description = "Image generation: submit a job, watch it, fetch its pictures. Errors are application/problem+json (RFC 9457) and name every faulty field at once.",
        license(name = "MIT OR Apache-2.0")
    ),
    tags((name = "jobs", description = "Submit, watch, cancel."), (name = "images", description = "Finished pictures."),
        (name = "models", description = "What can be asked for."), (name = "operations", description = "Health and metrics."))
)]
struct Description;

pub(super) fn routes() -> OpenApiRouter<Door> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(v1::jobs::create, v1::jobs::list))
        .routes(routes!(v1::jobs::get, v1::jobs::delete))
        .routes(routes!(v1::events::events))
        .routes(routes!(v1::images::image))
        .routes(routes!(v1::images::input))
        .routes(routes!(v1::models::models))
        .routes(routes!(v1::models::model))
        .routes(routes!(v1::models::loras))
        .routes(routes!(v1::models::samplers))
        .routes(routes!(v1::models::stats))
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::metrics))
}

/// The OpenAPI description, as YAML.
///
/// # Errors
/// The serialiser's own.
pub fn document() -> Result<String, String> {
    routes().to_openapi().to_yaml().map_err(|error| error.to_string())
}
