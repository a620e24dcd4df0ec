//! Models that are loaded when a job wants them and dropped when another needs the room.

use std::path::Path;

use darkroom::domain::ModelLoad;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::app::{Builder, TestApp, body, with};
use crate::support::drafts::{copy_folder, fixtures};
use crate::support::gate::LoadGate;

/// `a` and `c` below take 1.4 MiB, `b` and `d` 2.9 MiB: any two fit in but the large ones, and three do not.
const ROOM_FOR_TWO_MB: u64 = 5;

/// Models `a`, `b`, `c`, ... described in a folder; loaded at first use.
fn described(folder: &Path, paths: &[&Path]) -> Builder {
    for (name, path) in ["a", "b", "c", "d"].iter().zip(paths) {
        std::fs::write(folder.join(format!("{name}.toml")), format!("path = {:?}\n", path.display().to_string()))
            .unwrap();
    }
    let folder = folder.to_owned();
    TestApp::builder().settings(move |settings| {
        settings.models.serve = vec!["*".to_owned()];
        settings.models.descriptions = folder;
        settings.models.load = ModelLoad::FirstUse;
    })
}

fn four(folder: &Path) -> Builder {
    let (first, second) = (fixtures().join("tiny-sd"), fixtures().join("tiny-sd2"));
    described(folder, &[&first, &second, &first, &second])
}

/// A small picture by this model.
fn by(model: &str, seed: u64) -> Value {
    with(body("a red house", seed), json!({"model": model, "width": 32, "height": 32, "steps": 2}))
}

async fn submitted(app: &TestApp, request: &Value) -> String {
    app.submit(request).await["id"].as_str().unwrap().to_owned()
}

/// The hash of the picture.
async fn drawn(app: &TestApp, request: &Value) -> String {
    let id = submitted(app, request).await;
    let job = app.ended(&id).await;
    assert_eq!(job["status"], "succeeded", "{job}");
    job["images"][0]["sha256"].as_str().unwrap().to_owned()
}

/// Of each model, in the order served.
async fn states(app: &TestApp) -> Vec<String> {
    let models = app.json("/v1/models").await;
    models["models"].as_array().unwrap().iter().map(|model| model["state"].as_str().unwrap().to_owned()).collect()
}

async fn loads(app: &TestApp, model: &str, outcome: &str) -> f64 {
    app.metric(&format!("darkroom_model_loads_total{{model=\"{model}\",outcome=\"{outcome}\"}}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_loaded_when_a_job_wants_it() {
    let folder = tempfile::tempdir().unwrap();
    let app = four(folder.path()).start().await;
    assert_eq!(app.json("/readyz").await["ready"], true);
    assert_eq!(states(&app).await, ["available"; 4]);
    let before = app.json("/v1/models/b").await;
    assert_eq!((&before["family"], &before["defaults"]["width"]), (&json!("stable-diffusion-2"), &json!(64)));
    assert_eq!(before["devices"]["cpu"]["state"], "available");
    let picture = drawn(&app, &by("b", 1)).await;
    assert_eq!(states(&app).await, ["available", "loaded", "available", "available"]);
    let after = app.json("/v1/models/b").await;
    assert_eq!(after["bytes"], before["bytes"], "what it takes was known");
    assert_eq!(app.metric("darkroom_model_bytes{device=\"cpu\",model=\"b\"}").await, after["bytes"].as_f64().unwrap());
    assert_eq!((loads(&app, "b", "loaded").await, loads(&app, "a", "loaded").await), (1.0, 0.0));
    assert_eq!(app.metric("darkroom_model_load_seconds_count").await, 1.0);
    app.finish().await;

    let app = four(folder.path()).settings(|settings| settings.models.load = ModelLoad::Start).start().await;
    assert_eq!(states(&app).await, ["loaded"; 4]);
    let mut told = app.json("/v1/models/b").await;
    // Its hash takes all its bytes: it comes with loading it, and here that came first.
    assert!(told["sha256"].is_string() && after["sha256"].is_null());
    for key in ["sha256", "hash"] {
        told[key] = Value::Null;
    }
    assert_eq!(told, after, "the same is told of it, loaded at the start");
    assert_eq!(drawn(&app, &by("b", 1)).await, picture);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_recently_used_makes_room_and_draws_the_same_when_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let app = four(folder.path()).settings(|settings| settings.models.memory_budget_mb = ROOM_FOR_TWO_MB).start().await;
    let first = drawn(&app, &by("a", 1)).await;
    drawn(&app, &by("b", 1)).await;
    assert_eq!(states(&app).await, ["loaded", "loaded", "available", "available"]);
    drawn(&app, &by("a", 2)).await;
    drawn(&app, &by("c", 1)).await;
    assert_eq!(states(&app).await, ["loaded", "available", "loaded", "available"], "`b` was used before `a`");
    drawn(&app, &by("b", 2)).await;
    assert_eq!(states(&app).await, ["available", "loaded", "loaded", "available"]);
    assert_eq!(app.metric("darkroom_model_bytes{device=\"cpu\",model=\"a\"}").await, 0.0);
    assert_eq!(drawn(&app, &by("a", 1)).await, first);
    assert_eq!((loads(&app, "a", "loaded").await, loads(&app, "b", "loaded").await), (2.0, 2.0));
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_model_loads_the_jobs_of_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let gate = LoadGate::of("b");
    let app = four(folder.path()).load(gate.hook()).start().await;
    drawn(&app, &by("a", 1)).await;
    let waiting = submitted(&app, &by("b", 1)).await;
    gate.reached().await;
    for seed in 2..5 {
        drawn(&app, &by("a", seed)).await;
    }
    assert_eq!(states(&app).await, ["loaded", "loading", "available", "available"]);
    let job = app.json(&format!("/v1/jobs/{waiting}")).await;
    assert_eq!((&job["status"], &job["queue_position"]), (&json!("queued"), &json!(0)));
    gate.open();
    assert_eq!(app.ended(&waiting).await["status"], "succeeded");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_may_be_cancelled_and_the_server_stopped_while_a_model_loads() {
    let folder = tempfile::tempdir().unwrap();
    let gate = LoadGate::of("b");
    let mut app = four(folder.path()).load(gate.hook()).start().await;
    let cancelled = submitted(&app, &by("b", 1)).await;
    gate.reached().await;
    let answer = app.request(Method::DELETE, &format!("/v1/jobs/{cancelled}")).send().await.unwrap();
    assert_eq!(answer.json::<Value>().await.unwrap()["status"], "cancelled");
    submitted(&app, &by("b", 2)).await;
    // The load stands at its gate, and nobody waits for it.
    app.shut_down().await;
    gate.open();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_cannot_be_loaded_fails_its_jobs_alone() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("secret-place/broken");
    copy_folder(&fixtures().join("tiny-sd"), &broken);
    let descriptions = folder.path().join("descriptions");
    std::fs::create_dir(&descriptions).unwrap();
    let app = described(&descriptions, &[&fixtures().join("tiny-sd"), &broken]).start().await;
    // Its header is whole; the number is found when it is read.
    let weights = broken.join("unet/diffusion_pytorch_model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&weights, bytes).unwrap();

    let mut reasons = Vec::new();
    for seed in 0..3 {
        let id = submitted(&app, &by("b", seed)).await;
        let job = app.ended(&id).await;
        assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("model_unavailable")), "{job}");
        reasons.push(job["error"]["message"].as_str().unwrap().to_owned());
    }
    let model = app.json("/v1/models/b").await;
    assert_eq!((&model["state"], &model["devices"]["cpu"]["state"]), (&json!("failed"), &json!("failed")));
    reasons.push(model["reason"].as_str().unwrap().to_owned());
    for reason in reasons {
        for part in ["broken/unet/diffusion_pytorch_model.safetensors", "tensor `", "NaN"] {
            assert!(reason.contains(part), "{part} in: {reason}");
        }
        assert!(!reason.contains("secret-place"), "clients are told no folders: {reason}");
    }
    assert_eq!(loads(&app, "b", "failed").await, 1.0, "jobs that come soon after are not worth a try each");
    drawn(&app, &by("a", 1)).await;
    assert_eq!(app.json("/readyz").await["ready"], true);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_larger_than_the_memory_for_models_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let small = |builder: Builder| builder.settings(|settings| settings.models.memory_budget_mb = 1);
    let app = small(four(folder.path())).start().await;
    let id = submitted(&app, &by("a", 1)).await;
    let error = app.ended(&id).await["error"].clone();
    let told = error["message"].as_str().unwrap();
    assert!(error["code"] == "model_unavailable" && told.contains("needs 2 MiB") && told.contains("1 MiB"), "{told}");
    app.finish().await;
    let told = small(four(folder.path())).settings(|it| it.models.load = ModelLoad::Start).refused().await;
    for part in ["`a`", "needs 2 MiB", "1 MiB", "models.memory_budget_mb"] {
        assert!(told.contains(part), "{part} in: {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_four_models_share_the_room_of_two() {
    let folder = tempfile::tempdir().unwrap();
    let app = four(folder.path())
        .settings(|settings| {
            settings.models.memory_budget_mb = ROOM_FOR_TWO_MB;
            settings.workers.devices = vec!["cpu".to_owned(); 2];
        })
        .start()
        .await;
    let mut jobs = Vec::new();
    for seed in 0..40 {
        let model = ["a", "b", "c", "d"][seed as usize % 4];
        jobs.push(submitted(&app, &with(by(model, seed), json!({"steps": 1 + seed % 5}))).await);
    }
    for id in &jobs {
        let job = app.ended(id).await;
        assert_eq!((&job["status"], &job["attempts"]), (&json!("succeeded"), &json!(1)), "{job}");
    }
    let mut held = 0.0;
    for model in ["a", "b", "c", "d"] {
        assert!(loads(&app, model, "loaded").await >= 1.0);
        held += app.metric(&format!("darkroom_model_bytes{{device=\"cpu\",model=\"{model}\"}}")).await;
    }
    assert!(held <= (ROOM_FOR_TWO_MB << 20) as f64, "{held}");
    app.finish().await;
}
