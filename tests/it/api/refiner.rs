use serde_json::{Value, json};

use crate::support::app::TestApp;
use crate::support::drafts::fixtures;

/// A base, its refiner, and a model with other latents.
async fn app() -> TestApp {
    let served = ["tiny-sdxl", "tiny-sdxl-refiner", "tiny-sd"];
    let places = served.map(|name| fixtures().join(name).display().to_string());
    TestApp::builder().settings(|settings| settings.models.serve = places.to_vec()).start().await
}

fn request(changes: &Value) -> Value {
    let mut request =
        json!({"prompt": "a house", "width": 64, "height": 64, "steps": 5, "seed": 5, "sampler": "euler"});
    request.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    request
}

async fn drawn(app: &TestApp, request: &Value) -> (Value, Vec<u8>) {
    let job = app.submit(request).await;
    let job = app.ended(job["id"].as_str().unwrap()).await;
    assert_eq!(job["status"], "succeeded", "{job}");
    let bytes = app.get(job["images"][0]["url"].as_str().unwrap()).await.bytes().await.unwrap();
    (job, bytes.to_vec())
}

#[tokio::test]
async fn a_refiner_goes_on_and_the_request_can_be_sent_again() {
    let app = app().await;
    let (job, bytes) = drawn(&app, &request(&json!({"refiner": {"model": "tiny-sdxl-refiner"}}))).await;
    let resolved = json!({"model": "tiny-sdxl-refiner", "switch_at": 0.8, "steps": 5});
    assert_eq!(job["request"]["refiner"], resolved);
    assert_eq!((&job["progress"]["step"], &job["progress"]["steps"]), (&json!(5), &json!(5)));
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert!(text.contains("Refiner: tiny-sdxl-refiner [") && text.contains("], Refiner switch at: 0.8"), "{text}");
    assert_eq!(drawn(&app, &job["request"]).await.1, bytes);
    let (_, alone) = drawn(&app, &request(&json!({}))).await;
    assert_ne!(alone, bytes, "the base alone draws another picture");
    // Ended early, the picture keeps its noise; begun late, the refiner takes a picture as it is.
    let (early, _) = drawn(&app, &request(&json!({"denoising_end": 0.5}))).await;
    let late =
        json!({"model": "tiny-sdxl-refiner", "denoising_start": 0.5, "init_image": {"job": early["id"], "image": 0}});
    let (late, bytes) = drawn(&app, &request(&late)).await;
    assert_eq!((&late["request"]["denoising_start"], &late["request"]["strength"]), (&json!(0.5), &Value::Null));
    assert_eq!(drawn(&app, &late["request"]).await.1, bytes);
    app.finish().await;
}

#[tokio::test]
async fn a_refiner_that_cannot_go_on_is_refused() {
    let app = app().await;
    let (early, _) = drawn(&app, &request(&json!({}))).await;
    let picture = json!({"job": early["id"], "image": 0});
    let refiner = |changes: Value| {
        let mut refiner = json!({"model": "tiny-sdxl-refiner"});
        refiner.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        json!({"refiner": refiner})
    };
    let cases = [
        (refiner(json!({"model": "none"})), "refiner.model", "is not served here; use one of `tiny-sdxl-refiner`"),
        (refiner(json!({"model": "tiny-sd"})), "refiner.model", "latents of another kind than `tiny-sdxl`"),
        (refiner(json!({"model": null})), "refiner.model", "is required"),
        (refiner(json!({"model": 7})), "refiner.model", "must be text"),
        (refiner(json!({"switch_at": 1})), "refiner.switch_at", "above 0 and below 1"),
        (refiner(json!({"switch_at": 0})), "refiner.switch_at", "above 0 and below 1"),
        (refiner(json!({"steps": 0})), "refiner.steps", "from 1 to 150"),
        (refiner(json!({"strength": 0.5})), "refiner.strength", "`refiner` has model, switch_at, steps"),
        (json!({"refiner": "tiny-sdxl-refiner"}), "refiner", "an object"),
        (
            json!({"model": "tiny-sd", "refiner": {"model": "tiny-sdxl"}}),
            "refiner.model",
            "no model served here can go on",
        ),
        (json!({"refiner": {"model": "tiny-sdxl-refiner"}, "hires": {}}), "refiner", "does not go with `hires`"),
        (json!({"denoising_end": 0.5, "hires": {}}), "denoising_end", "does not go with `hires`"),
        (json!({"denoising_end": 1.5}), "denoising_end", "above 0 and below 1"),
        (json!({"denoising_start": 0.5}), "denoising_start", "send `init_image` too"),
        (
            json!({"denoising_start": 0.5, "init_image": picture, "strength": 0.5}),
            "denoising_start",
            "leave one of them out",
        ),
        (
            json!({"denoising_start": 0.5, "denoising_end": 0.5, "init_image": picture}),
            "denoising_end",
            "above 0.5, where the run begins",
        ),
        (
            json!({"refiner": {"model": "tiny-sdxl-refiner", "switch_at": 0.6}, "init_image": picture, "strength": 0.4}),
            "refiner.switch_at",
            "above 0.6, where the picture to start from begins",
        ),
        (
            json!({"refiner": {"model": "tiny-sdxl-refiner"}, "denoising_end": 0.7}),
            "denoising_end",
            "above 0.8, where the refiner takes over",
        ),
    ];
    for (change, field, told) in cases {
        let response = app.post(&request(&change)).await;
        let (status, problem): (_, Value) = (response.status(), response.json().await.unwrap());
        assert_eq!(status, 422, "{change}: {problem}");
        let fault = problem["errors"].as_array().unwrap().iter().find(|fault| fault["field"] == field).cloned();
        let fault = fault.unwrap_or_else(|| panic!("{change}: {problem}"));
        assert!(fault["message"].as_str().unwrap().contains(told), "{change}: {fault}");
    }
    // Where the steps lie is known to the model alone.
    let none_left = app.submit(&request(&json!({"steps": 1, "refiner": {"model": "tiny-sdxl-refiner"}}))).await;
    let job = app.ended(none_left["id"].as_str().unwrap()).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("invalid_request")), "{job}");
    app.finish().await;
}
