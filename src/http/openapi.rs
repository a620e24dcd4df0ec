//! The API's description, from the handlers themselves; the committed `openapi.yaml` is what [`document`] prints.

use utoipa::openapi::path::Operation;
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Door, health, v1};

/// The scheme's name in the description.
const KEY: &str = "key";

#[derive(OpenApi)]
#[openapi(
    modifiers(&KeyScheme),
    info(
        title = "Darkroom",
        description = "Image generation: submit a job, watch it, fetch its pictures. Errors are application/problem+json (RFC 9457) and name every faulty field at once.",
        license(name = "MIT OR Apache-2.0")
    ),
    tags((name = "jobs", description = "Submit, watch, cancel."), (name = "images", description = "Finished pictures."),
        (name = "models", description = "What can be asked for."), (name = "operations", description = "Health and metrics."))
)]
struct Description;

struct KeyScheme;

impl Modify for KeyScheme {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let about = "An API key, where the server is configured with some (`keys`); a server without asks for none.";
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(about)).build();
        api.components.get_or_insert_default().add_security_scheme(KEY, SecurityScheme::Http(scheme));
    }
}

/// Every route that is described.
pub(super) fn routes() -> OpenApiRouter<Door> {
    keyed_routes().merge(open_routes())
}

/// Those that want a key, where there are keys: a new route belongs here.
pub(super) fn keyed_routes() -> OpenApiRouter<Door> {
    let mut routes = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(v1::jobs::create, v1::jobs::list))
        .routes(routes!(v1::jobs::get, v1::jobs::delete))
        .routes(routes!(v1::events::events))
        .routes(routes!(v1::images::image))
        .routes(routes!(v1::images::input))
        .routes(routes!(v1::models::models))
        .routes(routes!(v1::models::model))
        .routes(routes!(v1::models::loras))
        .routes(routes!(v1::models::samplers))
        .routes(routes!(v1::stats::stats));
    for path in routes.get_openapi_mut().paths.paths.values_mut() {
        let methods = [&mut path.get, &mut path.post, &mut path.put, &mut path.patch, &mut path.delete];
        methods.into_iter().flatten().for_each(wants_key);
    }
    routes
}

fn wants_key(operation: &mut Operation) {
    operation.security = Some(vec![SecurityRequirement::new(KEY, [""; 0])]);
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let refusal = ResponseBuilder::new()
        .description("The server asks for an API key, and this is none of its keys.")
        .content("application/problem+json", content);
    operation.responses.responses.insert("401".to_owned(), refusal.build().into());
}

/// Those that never want one: what a load balancer and monitoring ask. They tell no job's content and nobody's name.
pub(super) fn open_routes() -> OpenApiRouter<Door> {
    OpenApiRouter::new()
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
