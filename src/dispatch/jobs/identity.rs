//! What makes two requests the same.

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::domain::{GenerationRequest, ModelId, OwnerId, hex};

/// Names all that decides a request's pictures, to the byte: the request but for who waits for it, the files of its models, and
/// this program; and whose it is, so that nobody learns of another's. Lower-case hex SHA-256. Requests of one name are drawn once.
///
/// `files` tells a model's files from others. `None`: another's pictures will not do, or it cannot be told that they would
/// (files that are not known, and ControlNets, whose files are not).
pub fn identity(
    request: &GenerationRequest,
    owner: Option<&OwnerId>,
    files: impl Fn(&ModelId) -> Option<String>,
) -> Option<String> {
    if !request.reuse() || !request.controls().is_empty() {
        return None;
    }
    let models = request.models().into_iter().map(|model| Some((model.clone(), files(model)?)));
    let models: Vec<(ModelId, String)> = models.collect::<Option<_>>()?;
    let all = json!({
        "program": env!("CARGO_PKG_VERSION"),
        "owner": owner.map(OwnerId::as_str),
        "models": models,
        "request": request.to_drawing(),
    });
    Some(hex(Sha256::digest(all.to_string())))
}
