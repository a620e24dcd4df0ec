//! What can be asked for.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::domain::{ErrorCode, ModelInfo, SamplerKind, SigmaSchedule};
use crate::http::Door;
use crate::http::errors::{Problem, Result};

fn about(model: &ModelInfo, is_default: bool, door: &Door) -> Value {
    let limits = door.service.limits();
    let mut value = serde_json::to_value(model).unwrap_or_default();
    value["default"] = is_default.into();
    // What other programs call a model's hash ("AutoV2").
    value["hash"] = model.sha256.as_deref().and_then(|sha256| sha256.get(..10)).into();
    if let (Value::Object(all), Ok(Value::Object(standing))) =
        (&mut value, serde_json::to_value(door.service.model_standing(&model.id)))
    {
        all.extend(standing);
    }
    value["limits"] = json!({
        "max_steps": limits.max_steps, "max_num_images": limits.max_num_images, "max_pixels": limits.max_pixels,
        "max_prompt_chars": limits.max_prompt_chars, "max_loras": limits.max_loras,
    });
    value
}

/// Served models, with their sizes, samplers, defaults and limits; the first is the default.
///
/// `latents` tells which models can go on with each other's (`refiner`). `sha256` is that of the checkpoint's file, of a folder's
/// U-Net weights, and `hash` its first ten digits, which other programs call a model's hash. Both are null of
/// a model that is loaded at first use, since all its bytes must be read for them.
///
/// `state` tells whether it is there: `loaded`; `loading`; `available`, which is loaded when a job wants it; or `failed`, with
/// the `reason`, which is tried again for a later job. `bytes` is what its weights take, or would take. `devices` tells the same
/// of each device of this process.
#[utoipa::path(get, path = "/v1/models", tag = "models", responses((status = 200, description = "{models: [...]}", body = Value)))]
pub(in crate::http) async fn models(State(door): State<Door>) -> Json<Value> {
    let models: Vec<Value> =
        door.service.models().iter().enumerate().map(|(k, model)| about(model, k == 0, &door)).collect();
    Json(json!({ "models": models }))
}

/// One model.
#[utoipa::path(get, path = "/v1/models/{id}", tag = "models", params(("id" = String, Path, description = "The model's id.")),
    responses((status = 200, description = "The model.", body = Value),
        (status = 404, description = "No such model.", body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn model(State(door): State<Door>, Path(id): Path<String>) -> Result<Json<Value>> {
    let models = door.service.models();
    let found = models.iter().position(|model| model.id.as_str() == id);
    let missing = || {
        Problem::new(
            StatusCode::NOT_FOUND,
            ErrorCode::ModelNotFound.name(),
            "no such model is served here; /v1/models lists those that are",
        )
    };
    let at = found.ok_or_else(missing)?;
    Ok(Json(about(&models[at], at == 0, &door)))
}

/// Samplers and sigma schedules this server knows; which of them a model takes stands in /v1/models.
#[utoipa::path(get, path = "/v1/samplers", tag = "models", responses((status = 200, description = "{samplers: [...], sigma_schedules: [...]}", body = Value)))]
pub(in crate::http) async fn samplers() -> Json<Value> {
    let samplers: Vec<Value> = SamplerKind::ALL
        .iter()
        .map(|kind| json!({"name": kind.name(), "label": kind.label(), "diffusers": kind.diffusers_class()}))
        .collect();
    let schedules: Vec<Value> =
        SigmaSchedule::ALL.iter().map(|schedule| json!({"name": schedule.name(), "label": schedule.label()})).collect();
    Json(json!({"samplers": samplers, "sigma_schedules": schedules}))
}

/// LoRAs that requests may name: the files of the folder `models.loras` as it is now. A `hash` is there once the LoRA was
/// used.
#[utoipa::path(get, path = "/v1/loras", tag = "models", responses((status = 200, description = "{loras: [{name, size_bytes, hash}]}", body = Value)))]
pub(in crate::http) async fn loras(State(door): State<Door>) -> Json<Value> {
    Json(json!({ "loras": door.service.loras().await }))
}
