//! API keys: who asks, by `Authorization: Bearer KEY`. Where no key is configured, anybody may ask for everything.
//!
//! A key is known by its SHA-256 alone. It stands in no log line, no error and no `Debug`.

use std::fmt;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::Door;
use super::errors::Problem;
use crate::domain::OwnerId;
use crate::service::Caller;

/// A key that is taken, and whom it stands for.
#[derive(Clone)]
pub struct ApiKey {
    /// Whose the jobs are that come with it.
    pub owner: OwnerId,
    /// Sees everybody's jobs.
    pub is_admin: bool,
    /// SHA-256 of the key.
    pub sha256: [u8; 32],
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey").field("owner", &self.owner).field("is_admin", &self.is_admin).finish_non_exhaustive()
    }
}

/// In front of a route that is not for everybody: tells its handler who asks, or refuses.
pub(super) async fn require_key(State(door): State<Door>, mut request: Request, next: Next) -> Response {
    let keys = &door.options.keys;
    if keys.is_empty() {
        request.extensions_mut().insert(Caller::Anybody);
        return next.run(request).await;
    }
    match key_holder(keys, request.headers()) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            let mut response = next.run(request).await;
            // A cache that answers whoever asks must not answer another one with this.
            response.headers_mut().append(header::VARY, HeaderValue::from_static("authorization"));
            response
        }
        Err(detail) => Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail).into_response(),
    }
}

fn key_holder(keys: &[ApiKey], headers: &HeaderMap) -> Result<Caller, &'static str> {
    let mut told = headers.get_all(header::AUTHORIZATION).iter();
    let header = match (told.next(), told.next()) {
        (Some(header), None) => header,
        (None, _) => return Err("this server asks for an API key: send `Authorization: Bearer KEY`"),
        (Some(_), Some(_)) => return Err("there is more than one `Authorization`"),
    };
    let key = header.to_str().ok().and_then(|text| text.split_once(' '));
    let key = key.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, key)| key.trim());
    let key = key.ok_or("`Authorization` is not of the form `Bearer KEY`")?;
    let sha256: [u8; 32] = Sha256::digest(key).into();
    // All of them are compared, each in the same time, so that how long it takes says nothing of any.
    let mut found = None;
    for known in keys {
        if bool::from(known.sha256.ct_eq(&sha256)) {
            found = Some(known);
        }
    }
    let ApiKey { owner, is_admin, .. } = found.ok_or("this API key is not known here")?;
    Ok(Caller::KeyHolder { owner: owner.clone(), is_admin: *is_admin })
}
