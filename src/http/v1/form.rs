//! A form (`multipart/form-data`): one part a field, files for the pictures, and a part `request` for JSON.

use axum::body::{Body, Bytes};
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::{StatusCode, header};
use serde_json::Value;

use super::body::Reader;
use crate::domain::InputName;
use crate::http::errors::{Problem, Result};

/// The part whose text is a JSON object.
const JSON_PART: &str = "request";
/// Fields whose text is not JSON.
const TEXTS: &[&str] = &[
    "model",
    "prompt",
    "negative_prompt",
    "prompt_syntax",
    "sampler",
    "sigma_schedule",
    "noise",
    "priority",
    "inpaint_area",
];

fn bad(reason: impl std::fmt::Display) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid_form", format!("the body is no form: {reason}"))
}

/// Reads every part. `kind` is the whole Content-Type, which names the boundary between them.
pub(super) async fn read(kind: &str, body: Bytes, reader: &mut Reader) -> Result<()> {
    let request = Request::builder().header(header::CONTENT_TYPE, kind).body(Body::from(body)).map_err(bad)?;
    let mut form = Multipart::from_request(request, &()).await.map_err(bad)?;
    let told = |error: MultipartError| bad(error.body_text());
    while let Some(field) = form.next_field().await.map_err(told)? {
        let Some(name) = field.name().map(str::to_owned) else { return Err(bad("a part has no name")) };
        let input = InputName::of_field(&name);
        match input {
            Some(input) if is_file(&field) => {
                // A browser sends an empty file where none was picked.
                let is_none_picked = field.file_name() == Some("");
                let bytes = field.bytes().await.map_err(told)?;
                if !(is_none_picked && bytes.is_empty()) {
                    reader.file(input, bytes);
                }
            }
            _ => {
                let bytes = field.bytes().await.map_err(told)?;
                let text = std::str::from_utf8(&bytes)
                    .map_err(|_| bad(format!("the part `{}` is no text", name.chars().take(64).collect::<String>())))?;
                match name.as_str() {
                    JSON_PART => reader.object("the part `request`", text.as_bytes())?,
                    name => reader.member(name, value(name, text)),
                }
            }
        }
    }
    Ok(())
}

fn is_file(field: &Field<'_>) -> bool {
    field.file_name().is_some() || field.content_type().is_some_and(|kind| !kind.starts_with("text/"))
}

/// What a part's text says, as the field would have it in JSON. An empty one says nothing, as a form's empty box.
fn value(name: &str, text: &str) -> Value {
    if TEXTS.contains(&name) {
        return if text.is_empty() && name != "prompt" { Value::Null } else { Value::from(text) };
    }
    if text.trim().is_empty() {
        return Value::Null;
    }
    serde_json::from_str(text).unwrap_or_else(|_| Value::from(text))
}
