//! `darkroom openapi`

use super::say;

pub(super) fn openapi() -> Result<(), String> {
    say(crate::http::document()?.trim_end())
}
