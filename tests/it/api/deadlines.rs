//! `start_within` and `expires_in`, as clients meet them.

use std::sync::Arc;

use darkroom::config::Settings;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::app::{TestApp, body, with};
use crate::support::gate::Gate;
use crate::support::sse;

/// A worker that takes nothing of another size while it works.
fn grouped(settings: &mut Settings) {
    settings.workers.policy = "grouped".to_owned();
}

#[tokio::test]
async fn what_does_not_start_or_end_in_time_fails_with_expired_and_leaves_the_others_alone() {
    let gate = Arc::new(Gate::after_steps(1));
    let app = TestApp::builder().fault(gate.hook()).settings(grouped).start().await;
    let first = app.submit(&with(body("a house", 1), json!({"steps": 30, "expires_in": 1}))).await;
    app.running(first["id"].as_str().unwrap()).await;
    let waits = app.submit(&with(body("a cat", 2), json!({"width": 32, "start_within": 1, "expires_in": 600}))).await;
    assert_eq!((&waits["request"]["start_within"], &waits["request"]["expires_in"]), (&1.into(), &600.into()));
    let patient = app.submit(&with(body("a boat", 3), json!({"width": 32}))).await;

    let ended = app.ended(waits["id"].as_str().unwrap()).await;
    assert_eq!((&ended["status"], &ended["error"]["code"]), (&"failed".into(), &"expired".into()), "{ended}");
    assert_eq!((&ended["attempts"], &ended["started_at"]), (&0.into(), &Value::Null), "it never ran");
    let events = sse::read(app.get(&format!("/v1/jobs/{}/events", waits["id"].as_str().unwrap())).await).await;
    assert_eq!(events.last().unwrap().name, "failed");
    gate.open();
    let ended = app.ended(first["id"].as_str().unwrap()).await;
    assert_eq!((&ended["status"], &ended["error"]["code"]), (&"failed".into(), &"expired".into()), "{ended}");
    assert_eq!(app.ended(patient["id"].as_str().unwrap()).await["status"], "succeeded");
    app.finish().await;
}

#[tokio::test]
async fn who_waits_for_a_picture_is_told_504() {
    let gate = Arc::new(Gate::after_steps(1));
    let app = TestApp::builder().fault(gate.hook()).settings(grouped).start().await;
    let first = app.submit(&with(body("a house", 1), json!({"steps": 4}))).await;
    app.running(first["id"].as_str().unwrap()).await;
    let late = with(body("a cat", 2), json!({"width": 32, "start_within": 1}));
    let request = app.request(Method::POST, "/v1/jobs").header("accept", "image/png").json(&late);
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 504);
    let problem: Value = response.json().await.unwrap();
    assert_eq!(problem["code"], "expired");
    assert!(problem["detail"].as_str().unwrap().contains("start_within"), "{problem}");
    gate.open();
    assert_eq!(app.ended(first["id"].as_str().unwrap()).await["status"], "succeeded");
    app.finish().await;
}

#[tokio::test]
async fn impossible_deadlines_are_refused() {
    let app = TestApp::builder().settings(|settings| settings.limits.max_deadline_s = 60).start().await;
    for (changes, field, part) in [
        (json!({"expires_in": 0}), "expires_in", "from 1 to 60"),
        (json!({"start_within": 61}), "start_within", "from 1 to 60"),
        (json!({"expires_in": -1}), "expires_in", "from 1 to 60"),
        (json!({"expires_in": 1.5}), "expires_in", ""),
        (json!({"expires_in": "10s"}), "expires_in", ""),
        (json!({"start_within": 20, "expires_in": 10}), "start_within", "`expires_in`, which is 10"),
    ] {
        let response = app.post(&with(body("a cat", 1), changes.clone())).await;
        assert_eq!(response.status(), 422, "{changes}");
        let problem: Value = response.json().await.unwrap();
        assert_eq!(problem["errors"][0]["field"], field, "{problem}");
        assert!(problem["errors"][0]["message"].as_str().unwrap().contains(part), "{problem}");
    }
    app.finish().await;
}
