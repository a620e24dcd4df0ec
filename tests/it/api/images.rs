use std::sync::Arc;

use darkroom::domain::ImageFormat;
use darkroom::images::decode;
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::support::app::{TestApp, body, with};
use crate::support::gate::Gate;
use crate::support::sse;

async fn draw(app: &TestApp, request: Value, accept: &str) -> Response {
    app.request(Method::POST, "/v1/jobs").header("accept", accept).json(&request).send().await.unwrap()
}

#[tokio::test]
async fn accept_image_answers_with_the_picture() {
    let app = TestApp::builder().start().await;
    let response = draw(&app, body("a house", 9), "image/png").await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "image/png");
    assert_eq!(response.headers()["x-darkroom-seed"], "9");
    let job = response.headers()["x-darkroom-job"].to_str().unwrap().to_owned();
    let bytes = response.bytes().await.unwrap();
    assert_eq!(decode(&bytes, ImageFormat::Png).unwrap().width(), 16);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert!(text.contains("parameters\0a house\nSteps: 4, Sampler: DPM++ 2M"), "the PNG carries its parameters");
    let stored = app.get(&format!("/v1/jobs/{job}/images/0")).await.bytes().await.unwrap();
    assert_eq!(stored, bytes);
    // The same seed, the same bytes.
    let again = draw(&app, body("a house", 9), "image/png").await.bytes().await.unwrap();
    assert_eq!(again, bytes);
    let several = draw(&app, with(body("x", 1), json!({"num_images": 2})), "image/*").await;
    assert_eq!(several.status(), 422, "one answer carries one picture");
    app.finish().await;
}

#[tokio::test]
async fn a_picture_comes_in_the_encoding_asked_for() {
    let app = TestApp::builder().start().await;
    let job = app.submit(&body("a house", 3)).await;
    let job = app.ended(job["id"].as_str().unwrap()).await;
    let url = job["images"][0]["url"].as_str().unwrap().to_owned();
    let get = |accept: &'static str, query: &str| {
        app.request(Method::GET, &format!("{url}{query}")).header("accept", accept).send()
    };
    let mut tags = Vec::new();
    for (accept, query, kind, format) in [
        ("*/*", "", "image/png", ImageFormat::Png),
        ("image/webp,image/*;q=0.8", "", "image/webp", ImageFormat::Webp),
        ("image/jpeg", "", "image/jpeg", ImageFormat::Jpeg),
        ("image/png", "?format=jpeg", "image/jpeg", ImageFormat::Jpeg),
    ] {
        let response = get(accept, query).await.unwrap();
        assert_eq!(response.headers()["content-type"], kind);
        assert!(response.headers()["cache-control"].to_str().unwrap().contains("immutable"));
        tags.push(response.headers()["etag"].to_str().unwrap().to_owned());
        let picture = decode(&response.bytes().await.unwrap(), format).unwrap();
        assert_eq!((picture.width(), picture.height()), (16, 16));
    }
    assert_eq!(tags[0], format!("\"{}\"", job["images"][0]["sha256"].as_str().unwrap()));
    assert!(tags[0] != tags[1] && tags[1] != tags[2] && tags[2] == tags[3]);
    let known = app.request(Method::GET, &url).header("if-none-match", &tags[0]).send().await.unwrap();
    assert_eq!(known.status(), 304);
    assert_eq!(get("text/html", "").await.unwrap().status(), 406);
    assert_eq!(get("*/*", "?format=gif").await.unwrap().status(), 422);
    assert_eq!(app.get(&url.replace("images/0", "images/1")).await.status(), 404);
    let head = app.request(Method::HEAD, &url).send().await.unwrap();
    assert_eq!((head.status().as_u16(), head.headers()["content-type"].to_str().unwrap()), (200, "image/png"));
    app.finish().await;
}

#[tokio::test]
async fn the_stored_encoding_is_what_the_request_says() {
    let app = TestApp::builder().start().await;
    let request = with(body("a house", 3), json!({"output": {"format": "webp", "quality": 60}}));
    let job = app.submit(&request).await;
    let job = app.ended(job["id"].as_str().unwrap()).await;
    assert_eq!(job["images"][0]["content_type"], "image/webp");
    assert_eq!(job["request"]["output"], json!({"format": "webp", "quality": 60}));
    let bytes = app.get(job["images"][0]["url"].as_str().unwrap()).await.bytes().await.unwrap();
    assert_eq!(decode(&bytes, ImageFormat::Webp).unwrap().height(), 16);
    app.finish().await;
}

#[tokio::test]
async fn a_picture_can_be_fetched_when_its_event_tells_of_it() {
    let gate = Arc::new(Gate::after_pictures(1));
    let app = TestApp::builder().fault(gate.hook()).start().await;
    let job = app.submit(&with(body("two of them", 3), json!({"num_images": 2}))).await;
    let stream = app.get(job["links"]["events"].as_str().unwrap()).await;
    let events = sse::read_until(stream, |event| event.name == "image").await;
    let told = &events.last().unwrap().data["image"];
    let early = app.get(told["url"].as_str().unwrap()).await;
    assert_eq!(early.status(), 200, "the other picture is still drawn");
    assert_eq!(early.headers()["etag"], format!("\"{}\"", told["sha256"].as_str().unwrap()));
    assert_eq!(early.headers()["x-darkroom-seed"], told["seed"].to_string());
    let early = early.bytes().await.unwrap();
    let other = |index: u32| format!("/v1/jobs/{}/images/{index}", job["id"].as_str().unwrap());
    assert_eq!(app.get(&other(1)).await.status(), 404);
    assert_eq!(app.get(&other(2)).await.status(), 404);
    gate.open();
    let ended = app.ended(job["id"].as_str().unwrap()).await;
    assert_eq!(&ended["images"][0], told);
    assert_eq!(app.get(told["url"].as_str().unwrap()).await.bytes().await.unwrap(), early);
    app.finish().await;
}
