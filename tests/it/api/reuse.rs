use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::app::{Builder, TestApp, body, with};
use crate::support::drafts::{copy_folder, fixtures};
use crate::support::gate::Gate;
use crate::support::sse;

fn reusing() -> Builder {
    TestApp::builder().settings(|settings| settings.queue.reuse = true)
}

/// Drawn, or given an identical one's pictures.
async fn ended(app: &TestApp, request: &Value) -> Value {
    let response = app.post(request).await;
    assert!(matches!(response.status().as_u16(), 200 | 202), "{}", response.status());
    let job: Value = response.json().await.unwrap();
    let ended = app.ended(job["id"].as_str().unwrap()).await;
    assert_eq!(ended["status"], "succeeded", "{ended}");
    ended
}

async fn picture(app: &TestApp, job: &Value) -> Vec<u8> {
    let response = app.get(job["images"][0]["url"].as_str().unwrap()).await;
    assert_eq!(response.status(), 200);
    response.bytes().await.unwrap().to_vec()
}

async fn forwards(app: &TestApp) -> f64 {
    app.metric("darkroom_batch_samples_count").await
}

#[tokio::test]
async fn an_exact_repeat_is_answered_at_once_and_its_pictures_are_its_own() {
    let app = reusing().durable().start().await;
    let first = ended(&app, &with(body("a house", 7), json!({"metadata": {"mine": "secret"}}))).await;
    assert_eq!(first["reused_from"], Value::Null);
    let (drawn, before) = (picture(&app, &first).await, forwards(&app).await);
    assert!(!drawn.windows(6).any(|bytes| bytes == b"secret"), "what is the asker's own is in no picture");

    let changes = json!({"metadata": {"yours": 1}, "priority": "bulk", "start_within": 60});
    let response = app.post(&with(body("a house", 7), changes)).await;
    assert_eq!(response.status(), 200, "it has ended");
    let second: Value = response.json().await.unwrap();
    assert_eq!((&second["status"], &second["reused_from"]), (&json!("succeeded"), &first["id"]));
    assert_ne!(second["id"], first["id"]);
    assert_eq!(second["images"][0]["sha256"], first["images"][0]["sha256"]);
    assert_eq!((&second["attempts"], &second["started_at"]), (&json!(0), &Value::Null));
    assert_eq!(second["request"]["metadata"], json!({"yours": 1}));
    let stream = app.get(second["links"]["events"].as_str().unwrap()).await;
    assert_eq!(sse::read(stream).await.last().unwrap().name, "succeeded");

    // Removed with its pictures, the first takes nothing of the second's.
    let gone =
        app.request(Method::DELETE, &format!("/v1/jobs/{}", first["id"].as_str().unwrap())).send().await.unwrap();
    assert_eq!(gone.status(), 204);
    assert_eq!(picture(&app, &second).await, drawn);
    let third = ended(&app, &body("a house", 7)).await;
    assert_eq!(third["reused_from"], second["id"]);
    assert_eq!(forwards(&app).await, before, "nothing was drawn");
    assert_eq!(app.metric("darkroom_reused_jobs_total{how=\"stored\"}").await, 2.0);
    app.finish().await;
}

#[tokio::test]
async fn what_decides_a_picture_makes_another_of_it() {
    let app = reusing().start().await;
    let asked = body("a house", 7);
    let first = ended(&app, &asked).await;
    let others = [
        json!({"prompt": "a house "}),
        json!({"seed": 8}),
        json!({"steps": 3}),
        json!({"sampler": "heun"}),
        json!({"guidance_scale": 2.0}),
        json!({"num_images": 2}),
        json!({"output": {"format": "jpeg"}}),
        json!({"output": {"format": "jpeg", "quality": 50}}),
        json!({"reuse": false}),
    ];
    for change in others {
        let other = ended(&app, &with(asked.clone(), change.clone())).await;
        assert_eq!(other["reused_from"], Value::Null, "{change}");
    }
    // A default that is said is the default.
    let same = ended(&app, &with(asked, json!({"num_images": 1, "negative_prompt": ""}))).await;
    assert_eq!(same["reused_from"], first["id"]);
    app.finish().await;
}

#[tokio::test]
async fn a_seed_that_was_drawn_asks_for_a_picture_that_nobody_has() {
    let app = reusing().start().await;
    let mut asked = body("a house", 7);
    asked.as_object_mut().unwrap().remove("seed");
    let first = ended(&app, &asked).await;
    let again = ended(&app, &first["request"]).await;
    assert_eq!(again["reused_from"], Value::Null, "the first did not choose its seed");
    assert_eq!(ended(&app, &first["request"]).await["reused_from"], again["id"]);
    app.finish().await;
}

#[tokio::test]
async fn an_operator_can_have_everything_drawn() {
    let app = TestApp::builder().settings(|settings| settings.queue.reuse = false).start().await;
    for _ in 0..2 {
        assert_eq!(ended(&app, &body("a house", 7)).await["reused_from"], Value::Null);
    }
    app.finish().await;
}

#[tokio::test]
async fn those_that_come_while_one_is_drawn_are_given_its_pictures() {
    let gate = Arc::new(Gate::default());
    let app = reusing().durable().fault(gate.hook()).start().await;
    let id = |job: &Value| job["id"].as_str().unwrap().to_owned();
    let first = id(&app.submit(&body("a house", 7)).await);
    app.running(&first).await;
    let mut others = Vec::new();
    for k in 0..5 {
        others.push(id(&app.submit(&with(body("a house", 7), json!({"metadata": {"k": k}}))).await));
    }
    gate.open();
    let mut files = HashSet::new();
    for other in &others {
        let job = app.ended(other).await;
        assert_eq!((&job["status"], &job["reused_from"]), (&json!("succeeded"), &json!(first)), "{job}");
        files.insert(picture(&app, &job).await);
    }
    files.insert(picture(&app, &app.ended(&first).await).await);
    assert_eq!(files.len(), 1, "the same to the byte");
    assert_eq!(forwards(&app).await, 4.0, "one picture was drawn, of four steps");
    // The worker may look at the queue between the first's end and the moment it takes those that wait for it.
    let how = |how: &str| format!("darkroom_reused_jobs_total{{how=\"{how}\"}}");
    assert_eq!(app.metric(&how("in_flight")).await + app.metric(&how("stored")).await, 5.0);
    app.finish().await;
}

#[tokio::test]
async fn when_the_one_that_is_drawn_is_cancelled_the_next_is_drawn() {
    let gate = Arc::new(Gate::default());
    let app = reusing().fault(gate.hook()).start().await;
    let id = |job: &Value| job["id"].as_str().unwrap().to_owned();
    let first = id(&app.submit(&body("a house", 7)).await);
    app.running(&first).await;
    let second = id(&app.submit(&body("a house", 7)).await);
    let third = id(&app.submit(&body("a house", 7)).await);
    app.request(Method::DELETE, &format!("/v1/jobs/{first}")).send().await.unwrap();
    gate.open();
    assert_eq!(app.ended(&first).await["status"], "cancelled");
    let second = app.ended(&second).await;
    assert_eq!((&second["status"], &second["reused_from"]), (&json!("succeeded"), &Value::Null));
    assert_eq!(app.ended(&third).await["reused_from"], second["id"]);
    app.finish().await;
}

fn rewrite(file: &Path, change: impl FnOnce(String) -> String) {
    std::fs::write(file, change(std::fs::read_to_string(file).unwrap())).unwrap();
}

#[tokio::test]
async fn other_files_of_a_model_draw_other_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("tiny-sd");
    copy_folder(&fixtures().join("tiny-sd"), &model);
    let serve = vec![model.display().to_string()];
    let app = reusing().settings(|settings| settings.models.serve = serve).start().await;
    let first = ended(&app, &body("a house", 7)).await;
    assert_eq!(ended(&app, &body("a house", 7)).await["reused_from"], first["id"]);
    // Not the weights, but part of what a server that starts now would draw with; this one has the old ones loaded.
    rewrite(&model.join("model_index.json"), |text| text + "\n");
    for _ in 0..2 {
        assert_eq!(ended(&app, &body("a house", 7)).await["reused_from"], Value::Null);
    }
    app.finish().await;
}

#[tokio::test]
async fn nobody_is_given_the_pictures_of_another_owner() {
    let app = reusing().key("alice", 1).key("bob", 1).start().await;
    let ask = async |name: &str| {
        let asked = app.request_as(name, Method::POST, "/v1/jobs").json(&body("a house", 7)).send().await.unwrap();
        let job: Value = asked.json().await.unwrap();
        app.ended(job["id"].as_str().unwrap()).await
    };
    let alices = ask("alice").await;
    let bobs = ask("bob").await;
    assert_eq!((&alices["status"], &alices["reused_from"]), (&json!("succeeded"), &Value::Null));
    assert_eq!((&bobs["status"], &bobs["reused_from"]), (&json!("succeeded"), &Value::Null));
    assert_eq!(ask("alice").await["reused_from"], alices["id"]);
    assert_eq!(ask("bob").await["reused_from"], bobs["id"]);
    app.finish().await;
}
