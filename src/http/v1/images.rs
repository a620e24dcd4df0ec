//! Finished pictures by job and index, and those that came with a request.

use axum::Extension;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::jobs::job_id;
use crate::domain::{ErrorCode, FieldError, ImageFormat, InputName};
use crate::http::Door;
use crate::http::errors::{Problem, Result};
use crate::http::negotiate::preferred;
use crate::service::{Caller, Error, StoredImage};

#[derive(Deserialize)]
pub(in crate::http) struct ImageQuery {
    format: Option<String>,
}

/// A picture's bytes.
///
/// Another encoding by `Accept` or `?format=`; without either, as stored. The bytes never change: `ETag` is strong, and a
/// cache may keep them.
#[utoipa::path(get, path = "/v1/jobs/{id}/images/{index}", tag = "images",
    params(("id" = String, Path, description = "The job's id."), ("index" = u32, Path, description = "Which picture, from 0."),
        ("format" = Option<String>, Query, description = "`png`, `jpeg` or `webp`; wins over `Accept`."),
        ("If-None-Match" = Option<String>, Header, description = "An `ETag`: 304 when it is still that picture.")),
    responses((status = 200, description = "The picture.", content((String = "image/png"), (String = "image/jpeg"), (String = "image/webp"))),
        (status = 304, description = "It is the one you have."),
        (status = 404, description = "No such job or picture (yet).", body = Problem, content_type = "application/problem+json"),
        (status = 406, description = "No such encoding.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`format` is at fault.", body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn image(
    State(door): State<Door>,
    Extension(caller): Extension<Caller>,
    Path((id, index)): Path<(String, String)>,
    Query(query): Query<ImageQuery>,
    headers: HeaderMap,
) -> Result<Response> {
    let id = job_id(&id)?;
    let unknown = |_| {
        Problem::new(StatusCode::NOT_FOUND, ErrorCode::ImageNotFound.name(), "the index of an image is a number from 0")
    };
    let index: u32 = index.parse().map_err(unknown)?;
    let artifact = door.service.artifact(&caller, id, index).await?;
    let format = wanted(&query, &headers, artifact.format)?;
    let tag = etag(&artifact.sha256, artifact.format, format);
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).unwrap_or("");
    if known.split(',').map(str::trim).any(|each| each == "*" || each.trim_start_matches("W/") == tag) {
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        cache_headers(response.headers_mut(), &tag);
        return Ok(response);
    }
    Ok(answer(door.service.image(&caller, id, index, Some(format)).await?))
}

fn wanted(query: &ImageQuery, headers: &HeaderMap, stored: ImageFormat) -> Result<ImageFormat> {
    if let Some(name) = &query.format {
        let fault = |()| {
            Error::Invalid(vec![FieldError::new("format", name.as_str(), "must be one of `png`, `jpeg`, `webp`")])
                .into()
        };
        return name.parse().map_err(fault);
    }
    // The stored one first: it is what a client that takes anything gets.
    let mut offers = vec![stored.content_type()];
    offers.extend(
        ImageFormat::ALL.iter().map(|format| format.content_type()).filter(|kind| *kind != stored.content_type()),
    );
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let kind = preferred(accept, &offers).ok_or_else(|| {
        Problem::new(StatusCode::NOT_ACCEPTABLE, "not_acceptable", format!("this picture can be {}", offers.join(", ")))
    })?;
    Ok(ImageFormat::ALL.iter().copied().find(|format| format.content_type() == kind).unwrap_or(stored))
}

/// Strong, and different for each encoding. The stored one's is its hash; others are made of it by this version.
fn etag(sha256: &str, stored: ImageFormat, format: ImageFormat) -> String {
    if stored == format {
        format!("\"{sha256}\"")
    } else {
        format!("\"{sha256}-{format}-{}\"", env!("CARGO_PKG_VERSION"))
    }
}

fn cache_headers(headers: &mut HeaderMap, tag: &str) {
    headers.insert(header::ETAG, HeaderValue::from_str(tag).unwrap_or(HeaderValue::from_static("\"\"")));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=31536000, immutable"));
    headers.insert(header::VARY, HeaderValue::from_static("accept"));
}

/// A picture that came with a job's request.
///
/// As it came: the file's own encoding.
#[utoipa::path(get, path = "/v1/jobs/{id}/inputs/{input}", tag = "images",
    params(("id" = String, Path, description = "The job's id."), ("input" = String, Path, description = "`init_image`, `mask_image`, or `control_0` for the picture of the first control, and so on.")),
    responses((status = 200, description = "The picture.", content((String = "image/png"), (String = "image/jpeg"), (String = "image/webp"))),
        (status = 404, description = "No such job, or it came without one.", body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn input(
    State(door): State<Door>,
    Extension(caller): Extension<Caller>,
    Path((id, input)): Path<(String, String)>,
) -> Result<Response> {
    let id = job_id(&id)?;
    let unknown = |()| {
        let detail = "a job may have come with `init_image`, `mask_image`, and `control_0` and so on";
        Problem::new(StatusCode::NOT_FOUND, ErrorCode::ImageNotFound.name(), detail)
    };
    let bytes = door.service.input(&caller, id, input.parse::<InputName>().map_err(unknown)?).await?;
    // It was decoded before it was stored, so its first bytes tell which of the three it is.
    let format = match bytes.first() {
        Some(0x89) => ImageFormat::Png,
        Some(0xff) => ImageFormat::Jpeg,
        _ => ImageFormat::Webp,
    };
    let immutable = (header::CACHE_CONTROL, "private, max-age=31536000, immutable");
    Ok(([(header::CONTENT_TYPE, format.content_type()), immutable], bytes).into_response())
}

/// The answer that carries a picture.
pub(super) fn answer(image: StoredImage) -> Response {
    let StoredImage { artifact, format, bytes } = image;
    let tag = etag(&artifact.sha256, artifact.format, format);
    let name = format!("inline; filename=\"darkroom-{}.{format}\"", artifact.seed);
    let mut response = ([(header::CONTENT_TYPE, format.content_type())], bytes).into_response();
    let headers = response.headers_mut();
    cache_headers(headers, &tag);
    headers.insert(
        header::CONTENT_DISPOSITION,
        HeaderValue::from_str(&name).unwrap_or(HeaderValue::from_static("inline")),
    );
    headers.insert(HeaderName::from_static("x-darkroom-seed"), HeaderValue::from(artifact.seed));
    response
}
