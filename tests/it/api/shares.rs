use std::sync::Arc;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::app::{TestApp, body, with};
use crate::support::gate::Gate;

/// Jobs of these owners, so many each, submitted one owner after the other while the engine holds the first; the names of their
/// owners in the order in which workers took them. (They end beside one another, in any order on a busy machine.)
async fn taken_in_order(app: &TestApp, gate: &Gate, owners: &[(&str, usize)]) -> Vec<String> {
    let mut jobs = Vec::new();
    for (name, count) in owners {
        for seed in 0..*count {
            let small = with(body(name, seed as u64), json!({"steps": 2}));
            let response = app.request_as(name, Method::POST, "/v1/jobs").json(&small).send().await.unwrap();
            assert_eq!(response.status(), 202);
            jobs.push(response.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned());
            if jobs.len() == 1 {
                app.running(&jobs[0]).await;
            }
        }
    }
    gate.open();
    let mut taken = Vec::new();
    for id in &jobs {
        let job = app.ended(id).await;
        taken.push((
            job["started_at"].as_str().unwrap().to_owned(),
            job["request"]["prompt"].as_str().unwrap().to_owned(),
        ));
    }
    taken.sort();
    taken.into_iter().map(|(_, owner)| owner).collect()
}

/// One picture at a time, so that the order can be told; the first waits at the gate.
async fn slow_app(gate: &Arc<Gate>, keys: &[(&str, u32)]) -> TestApp {
    let builder = TestApp::builder().fault(gate.hook()).settings(|settings| settings.workers.max_rows = 2);
    keys.iter().fold(builder, |builder, (name, weight)| builder.key(name, *weight)).start().await
}

#[tokio::test]
async fn who_comes_late_is_not_behind_anothers_flood() {
    let gate = Arc::new(Gate::default());
    let app = slow_app(&gate, &[("alice", 1), ("bob", 1)]).await;
    let taken = taken_in_order(&app, &gate, &[("alice", 40), ("bob", 2)]).await;
    let bobs: Vec<usize> = (0..taken.len()).filter(|at| taken[*at] == "bob").collect();
    // Alice's first is drawn when Bob comes, and some of hers may have been taken into the engine by then.
    assert!(bobs.len() == 2 && bobs[1] <= 7, "{bobs:?} of {}", taken.len());
    app.finish().await;
}

#[tokio::test]
async fn the_devices_are_shared_by_weight_and_administrators_see_how() {
    let gate = Arc::new(Gate::default());
    let app = slow_app(&gate, &[("alice", 3), ("bob", 1)]).await;
    let taken = taken_in_order(&app, &gate, &[("bob", 20), ("alice", 30)]).await;
    // While both wait: not the very first, which were in the engine when Alice came.
    let alices = taken[4..32].iter().filter(|owner| *owner == "alice").count();
    assert!((19..=23).contains(&alices), "{alices} of 28, for a share of 21: {taken:?}");
    let stats = app.json("/v1/stats").await;
    let alice = &stats["owners"]["alice"];
    assert_eq!((&alice["weight"], &alice["queued"], &alice["running"]), (&json!(3), &json!(0), &json!(0)), "{stats}");
    assert_eq!(alice["pixel_steps"], 30 * 2 * 16 * 16);
    assert_eq!(alice["share"], 0.6);
    let theirs: Value = app.request_as("bob", Method::GET, "/v1/stats").send().await.unwrap().json().await.unwrap();
    assert!(theirs["owners"].is_null() && theirs["queued"] == 0, "{theirs}");
    app.finish().await;
}

#[tokio::test]
async fn an_open_server_has_no_owners() {
    let app = TestApp::builder().start().await;
    assert!(app.json("/v1/stats").await["owners"].is_null());
    app.finish().await;
}
