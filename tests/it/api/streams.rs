use std::sync::Arc;

use serde_json::json;

use crate::support::app::{TestApp, body, with};
use crate::support::gate::Gate;
use crate::support::sse;

fn names(events: &[sse::Event]) -> Vec<&str> {
    events.iter().map(|event| event.name.as_str()).collect()
}

#[tokio::test]
async fn a_stream_tells_a_jobs_whole_story_in_order() {
    let gate = Arc::new(Gate::default());
    let app = TestApp::builder().fault(gate.hook()).start().await;
    let job = app.submit(&with(body("told", 1), json!({"num_images": 2}))).await;
    let stream = app.get(job["links"]["events"].as_str().unwrap()).await;
    gate.open();
    let events = sse::read(stream).await;
    let told = names(&events);
    assert!(matches!(told[0], "queued" | "started"), "{told:?}");
    assert_eq!(told.iter().filter(|name| **name == "image").count(), 2, "{told:?}");
    assert_eq!(told.last(), Some(&"succeeded"));
    assert_eq!(told.iter().filter(|name| matches!(**name, "succeeded" | "failed" | "cancelled")).count(), 1);
    assert!(told.contains(&"progress"), "{told:?}");
    let ids: Vec<u64> = events.iter().map(|event| event.id.parse().unwrap()).collect();
    assert!(ids.is_sorted(), "{ids:?}");
    let progress = events.iter().find(|event| event.name == "progress").unwrap();
    assert_eq!(progress.data["steps"], 4);
    app.finish().await;
}

#[tokio::test]
async fn a_returning_client_goes_on_after_the_last_event_it_saw() {
    let gate = Arc::new(Gate::default());
    let app = TestApp::builder().fault(gate.hook()).start().await;
    let job = app.submit(&body("told", 1)).await;
    let url = job["links"]["events"].as_str().unwrap().to_owned();
    let first = sse::read_until(app.get(&url).await, |event| event.name == "started").await;
    let last = first.last().unwrap().id.clone();
    gate.open();
    let rest = app.request(reqwest::Method::GET, &url).header("last-event-id", &last).send().await.unwrap();
    let rest = sse::read(rest).await;
    assert!(!names(&rest).contains(&"queued") && !names(&rest).contains(&"started"), "{:?}", names(&rest));
    assert_eq!(names(&rest).last(), Some(&"succeeded"));
    // Later still: an ended job tells its end at once, and only that.
    let late = sse::read(app.get(&format!("{url}?after={last}")).await).await;
    assert_eq!(names(&late), ["succeeded"]);
    assert_eq!(names(&sse::read(app.get(&url).await).await), ["succeeded"]);
    assert_eq!(app.get(&format!("{url}?after=x")).await.status(), 422);
    app.finish().await;
}

#[tokio::test]
async fn a_silent_stream_is_kept_open_by_comments() {
    let gate = Arc::new(Gate::default());
    let app = TestApp::builder().fault(gate.hook()).settings(|settings| settings.server.heartbeat_s = 1).start().await;
    let job = app.submit(&body("silent", 1)).await;
    let url = job["links"]["events"].as_str().unwrap().to_owned();
    let events = sse::read_until(app.get(&url).await, |event| event.name == ":").await;
    assert_eq!(names(&events).last(), Some(&":"));
    gate.open();
    app.ended(job["id"].as_str().unwrap()).await;
    app.finish().await;
}

#[tokio::test]
async fn too_many_streams_are_refused_and_closing_one_makes_room() {
    let gate = Arc::new(Gate::default());
    let app = TestApp::builder().fault(gate.hook()).settings(|settings| settings.server.max_watchers = 1).start().await;
    let job = app.submit(&body("watched", 1)).await;
    let url = job["links"]["events"].as_str().unwrap().to_owned();
    let open = app.get(&url).await;
    let refused = app.get(&url).await;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    gate.open();
    assert_eq!(names(&sse::read(open).await).last(), Some(&"succeeded"));
    assert_eq!(names(&sse::read(app.get(&url).await).await), ["succeeded"]);
    app.finish().await;
}
