use std::sync::Arc;

use darkroom::diffusion::engine::{Fault, FaultHook, FaultPoint};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::app::{TestApp, body};

#[tokio::test]
async fn health_readiness_metrics_and_documents_answer() {
    let app = TestApp::builder().start().await;
    assert_eq!(app.get("/healthz").await.text().await.unwrap(), "ok\n");
    assert_eq!(app.json("/readyz").await, json!({"ready": true, "reasons": [], "devices_out": []}));
    let metrics = app.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("darkroom_workers{state=\"idle\"} 1"), "{metrics}");
    let yaml = app.get("/openapi.yaml").await.text().await.unwrap();
    assert!(yaml.starts_with("openapi: 3.1"), "{}", &yaml[..40]);
    let docs = app.get("/docs").await;
    assert!(docs.headers()["content-security-policy"].to_str().unwrap().contains("default-src 'none'"));
    assert!(docs.text().await.unwrap().contains("POST /v1/jobs"));
    let page = app.get("/").await;
    assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
    app.finish().await;
}

#[tokio::test]
async fn models_and_samplers_tell_what_can_be_asked_for() {
    let app = TestApp::builder().start().await;
    let models = app.json("/v1/models").await;
    let model = &models["models"][0];
    assert_eq!((&model["id"], &model["default"]), (&json!("tiny-sd"), &json!(true)));
    assert_eq!(model["defaults"]["width"], 32);
    assert_eq!(app.json("/v1/models/tiny-sd").await["id"], "tiny-sd");
    let samplers = app.json("/v1/samplers").await;
    assert_eq!(samplers["samplers"][0], json!({"name": "ddpm", "label": "DDPM", "diffusers": "DDPMScheduler"}));
    let stats = app.json("/v1/stats").await;
    assert_eq!(stats["workers"].as_object().unwrap().len(), 1);
    app.finish().await;
}

#[tokio::test]
async fn request_ids_go_through_and_answers_are_guarded() {
    let app = TestApp::builder()
        .settings(|settings| settings.server.cors_origins = vec!["https://example.org".to_owned()])
        .start()
        .await;
    let response = app
        .request(Method::GET, "/v1/stats")
        .header("x-request-id", "mine")
        .header("origin", "https://example.org")
        .send()
        .await
        .unwrap();
    assert_eq!(response.headers()["x-request-id"], "mine");
    assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    assert_eq!(response.headers()["access-control-allow-origin"], "https://example.org");
    let other = app.request(Method::GET, "/v1/stats").header("origin", "https://evil.example").send().await.unwrap();
    assert!(!other.headers().contains_key("access-control-allow-origin"));
    assert_eq!(other.headers()["x-request-id"].len(), 36);
    let packed = app.request(Method::GET, "/openapi.yaml").header("accept-encoding", "gzip").send().await.unwrap();
    assert_eq!(packed.headers()["content-encoding"], "gzip");
    app.finish().await;
}

#[tokio::test]
async fn a_stopping_server_finishes_what_is_aboard() {
    let mut app = TestApp::builder().durable().start().await;
    let job = app.submit(&body("aboard", 1)).await;
    let stream = app.get(job["links"]["events"].as_str().unwrap()).await;
    let (events, ()) = tokio::join!(crate::support::sse::read(stream), app.shut_down());
    // Either it was drawn to its end, or it went back to the queue before it began.
    let last = events.last().map(|event| event.name.clone()).unwrap_or_default();
    assert!(matches!(last.as_str(), "succeeded" | "queued"), "{last}");
    assert!(app.client.get(format!("{}/healthz", app.base)).send().await.is_err(), "nobody listens any more");
    let _: Value = job;
}

#[tokio::test]
async fn a_device_that_is_taken_out_is_told_and_its_queue_is_kept() {
    let gone: FaultHook = Arc::new(|_, point| match point {
        FaultPoint::Evaluate { .. } => Fault::Device,
        _ => Fault::None,
    });
    let mut app = TestApp::builder().fault(gone).start().await;
    let job = app.submit(&body("a house", 1)).await;
    let ended = app.ended(job["id"].as_str().unwrap()).await;
    assert_eq!((&ended["error"]["code"], &ended["attempts"]), (&json!("worker_lost"), &json!(3)), "{ended}");
    let response = app.get("/readyz").await;
    assert_eq!(response.status(), 503);
    let readiness: Value = response.json().await.unwrap();
    let reason = readiness["reasons"][0].as_str().unwrap();
    assert!(reason.starts_with("no device works: cpu: 3 engines failed") && reason.contains("CUDA_ERROR"), "{reason}");
    assert!(readiness["devices_out"][0].as_str().unwrap().starts_with("cpu: "), "{readiness}");
    let stats = app.json("/v1/stats").await;
    let worker = stats["workers"].as_object().unwrap().values().next().unwrap();
    assert_eq!((&worker["state"], &worker["failures"]), (&json!("failed"), &json!(3)), "{worker}");
    assert!(worker["reason"].as_str().unwrap().starts_with("3 engines failed"));
    assert_eq!(app.metric("darkroom_engine_failures_total{kind=\"device\"}").await, 3.0);
    assert_eq!(app.metric("darkroom_workers{state=\"failed\"}").await, 1.0);
    let waits = app.submit(&body("a house", 2)).await;
    assert_eq!(app.json(waits["links"]["self"].as_str().unwrap()).await["status"], "queued");
    app.shut_down().await;
}
