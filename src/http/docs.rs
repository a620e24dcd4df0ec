//! `/openapi.yaml`, and `/docs`: the same for people, without a request to anywhere else.

use axum::Router;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use serde_json::Value;

use super::errors::Problem;
use super::{Door, openapi};

pub(super) fn router() -> Router<Door> {
    Router::new().route("/openapi.yaml", get(yaml)).route("/docs", get(docs))
}

async fn yaml() -> Result<Response, Problem> {
    let text =
        openapi::document().map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error))?;
    Ok(([(header::CONTENT_TYPE, "application/yaml")], text).into_response())
}

async fn docs() -> Response {
    let api = serde_json::to_value(openapi::routes().to_openapi()).unwrap_or_default();
    let mut page = Html(render(&api)).into_response();
    let policy = HeaderValue::from_static("default-src 'none'; style-src 'self'");
    page.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    page
}

/// Text made safe to stand in HTML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

fn render(api: &Value) -> String {
    let mut body =
        format!("<h1>{} API</h1><p>{}</p>", escape(text(api, "/info/title")), escape(text(api, "/info/description")));
    body.push_str("<p><a href=\"/openapi.yaml\">openapi.yaml</a></p>");
    for (path, methods) in api["paths"].as_object().into_iter().flatten() {
        for (method, operation) in methods.as_object().into_iter().flatten() {
            body.push_str(&operation_html(path, method, operation));
        }
    }
    body.push_str("<h2>Schemas</h2>");
    for (name, schema) in api["components"]["schemas"].as_object().into_iter().flatten() {
        body.push_str(&schema_html(name, schema));
    }
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Darkroom API</title><link rel=\"stylesheet\" href=\"/assets/docs.css\"><body><main>{body}</main></body></html>"
    )
}

fn operation_html(path: &str, method: &str, operation: &Value) -> String {
    let (summary, description) = (text(operation, "/summary"), text(operation, "/description"));
    let mut html =
        format!("<section><h2><code>{} {}</code></h2><p>{}</p>", method.to_uppercase(), escape(path), escape(summary));
    if !description.is_empty() {
        html.push_str(&format!("<p>{}</p>", escape(description)));
    }
    let rows = |rows: Vec<(String, String)>, head: &str| {
        let each: String = rows
            .iter()
            .map(|(a, b)| format!("<tr><th scope=\"row\"><code>{}</code></th><td>{}</td></tr>", escape(a), escape(b)))
            .collect();
        if each.is_empty() { String::new() } else { format!("<table><caption>{head}</caption>{each}</table>") }
    };
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    let parameter =
        |p: &Value| (format!("{} ({})", text(p, "/name"), text(p, "/in")), text(p, "/description").to_owned());
    html.push_str(&rows(parameters.map(parameter).collect(), "Parameters"));
    let responses = operation["responses"].as_object().into_iter().flatten();
    html.push_str(&rows(
        responses.map(|(status, r)| (status.clone(), text(r, "/description").to_owned())).collect(),
        "Answers",
    ));
    html.push_str("</section>");
    html
}

fn schema_html(name: &str, schema: &Value) -> String {
    let mut html = format!("<section><h3>{}</h3><p>{}</p><table>", escape(name), escape(text(schema, "/description")));
    for (field, about) in schema["properties"].as_object().into_iter().flatten() {
        html.push_str(&format!(
            "<tr><th scope=\"row\"><code>{}</code></th><td>{}</td></tr>",
            escape(field),
            escape(text(about, "/description"))
        ));
    }
    html.push_str("</table></section>");
    html
}
