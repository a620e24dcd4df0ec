use reqwest::Method;
use serde_json::{Value, json};

use crate::support::app::{TestApp, body, with};

/// Posts a faulty body: (status, problem).
async fn refused(app: &TestApp, body: &Value) -> (u16, Value) {
    let response = app.post(body).await;
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    (response.status().as_u16(), response.json().await.unwrap())
}

#[tokio::test]
async fn each_faulty_field_is_named_with_what_is_allowed() {
    let app = TestApp::builder().start().await;
    let cases = [
        (json!({"width": 0}), "width", "multiple of 2 from 16 to 4096"),
        (json!({"width": 7}), "width", "multiple of 2"),
        (json!({"width": 100_000}), "width", "to 4096"),
        (json!({"steps": 0}), "steps", "from 1 to 150"),
        (json!({"steps": 1_000_000_000}), "steps", "from 1 to 150"),
        (json!({"guidance_scale": "NaN"}), "guidance_scale", "must be a number"),
        (json!({"guidance_scale": 1e300}), "guidance_scale", "from 0 to 100"),
        (json!({"guidance_scale": -1}), "guidance_scale", "from 0 to 100"),
        (json!({"guidance_rescale": 1.5}), "guidance_rescale", "from 0 to 1"),
        (json!({"guidance_start": -0.1}), "guidance_start", "from 0 to 1"),
        (json!({"guidance_start": 0.7, "guidance_end": 0.3}), "guidance_end", "`guidance_start`, which is 0.7"),
        (json!({"sampler": "eulr"}), "sampler", "`euler`"),
        (json!({"sampler": "DPM++ 2M Karass"}), "sampler", "`dpmpp_2m`"),
        (json!({"sampler": "DPM++ 2M Karras", "sigma_schedule": "beta"}), "sigma_schedule", "is not `karras`"),
        (json!({"sigma_schedule": "linear"}), "sigma_schedule", "`karras`"),
        (json!({"model": "sdxl"}), "model", "`tiny-sd`"),
        (json!({"widht": 64}), "widht", "did you mean `width`?"),
        (json!({"seed": -1}), "seed", "from 0 to"),
        (json!({"seed": u64::MAX}), "seed", "from 0 to"),
        (json!({"num_images": 17}), "num_images", "from 1 to 16"),
        (json!({"eta": 2}), "eta", "from 0 to 1"),
        (json!({"prompt_syntax": "comfy"}), "prompt_syntax", "`a1111`"),
        (json!({"prompt_syntax": "a1111", "prompt": "a (house:1.2.3)"}), "prompt", "the weight `1.2.3`"),
        (
            json!({"prompt_syntax": "a1111", "negative_prompt": "(a:1e)(b:99999)"}),
            "negative_prompt",
            "from -1000 to 1000",
        ),
        (json!({"clip_skip": 3}), "clip_skip", "from 0 to 2"),
        (json!({"noise": "torch-mps"}), "noise", "`torch-cuda`"),
        (json!({"output": {"format": "gif"}}), "output.format", "`webp`"),
        (json!({"output": {"quality": 50}}), "output.quality", "lossless"),
        (json!({"size_conditioning": {"crop_top": 4}}), "size_conditioning", "model `tiny-sd` is not told sizes"),
        (json!({"size_conditioning": 1024}), "size_conditioning", "an object"),
        (
            json!({"size_conditioning": {"width": 4}}),
            "size_conditioning.width",
            "`size_conditioning` has original_width",
        ),
        (json!({"size_conditioning": {"crop_top": "x"}}), "size_conditioning.crop_top", "an integer"),
        (json!({"hires": {"scale": 5}}), "hires.scale", "from 1 to 4"),
        (json!({"hires": {"upscaler": "esrgan"}}), "hires.upscaler", "`lanczos`"),
        (json!({"hires": {"strength": 0.1}}), "hires.strength", "leaves none to take"),
        (json!({"hires": {"steps": 0}}), "hires.steps", "from 1 to 150"),
        (json!({"hires": {"size": 2}}), "hires.size", "`hires` has scale, upscaler, strength, steps"),
        (json!({"hires": 2}), "hires", "an object"),
        (json!({"width": 2048, "height": 2048, "hires": {"scale": 2}}), "hires.scale", "at most 4194304"),
        (json!({"width": 2050, "hires": {"scale": 2}}), "hires.scale", "takes sides up to 4096"),
        (json!({"priority": "urgent"}), "priority", "`interactive`"),
        (json!({"metadata": "x"}), "metadata", "an object"),
        (json!({"metadata": {"x": "y".repeat(5000)}}), "metadata", "at most 4096"),
        (json!({"prompt": "x".repeat(5000)}), "prompt", "at most 4000"),
        (json!({"prompt": null}), "prompt", "is required"),
        (json!({"width": 4096, "height": 4096}), "width", "pixels"),
    ];
    for (change, field, allowed) in cases {
        let (status, problem) = refused(&app, &with(body("x", 1), change.clone())).await;
        assert_eq!(status, 422, "{change}: {problem}");
        let fault = problem["errors"].as_array().unwrap().iter().find(|fault| fault["field"] == field).cloned();
        let fault = fault.unwrap_or_else(|| panic!("{change}: {problem}"));
        assert!(fault["message"].as_str().unwrap().contains(allowed), "{change}: {fault}");
    }
    app.finish().await;
}

#[tokio::test]
async fn all_faults_of_a_request_are_told_at_once() {
    let app = TestApp::builder().start().await;
    let faulty =
        json!({"prompt": 7, "model": "none", "width": 3, "steps": 0, "sampler": "x", "zzzz": 1, "output": {"x": 1}});
    let (status, problem) = refused(&app, &faulty).await;
    let fields: Vec<&str> =
        problem["errors"].as_array().unwrap().iter().map(|fault| fault["field"].as_str().unwrap()).collect();
    assert_eq!(status, 422);
    for field in ["prompt", "model", "width", "steps", "sampler", "zzzz", "output.x"] {
        assert_eq!(fields.iter().filter(|name| **name == field).count(), 1, "{field} in {fields:?}");
    }
    let (_, problem) = refused(&app, &json!({"prompt": "x", "model": "none"})).await;
    assert_eq!(problem["code"], "model_not_found");
    app.finish().await;
}

#[tokio::test]
async fn what_is_no_job_is_refused_before_it_is_read() {
    let app = TestApp::builder().start().await;
    let send = |kind: &'static str, bytes: Vec<u8>| {
        app.request(Method::POST, "/v1/jobs").header("content-type", kind).body(bytes).send()
    };
    let large = format!("{{\"prompt\": \"{}\"}}", "x".repeat(60_000_000));
    let cases = [
        ("application/json", b"{\"prompt\": ".to_vec(), 400, "invalid_json"),
        ("application/json", b"{\"prompt\": \"x\", \"guidance_scale\": NaN}".to_vec(), 400, "invalid_json"),
        ("text/plain", b"{\"prompt\": \"x\"}".to_vec(), 415, "unsupported_media_type"),
        ("application/json", large.into_bytes(), 413, "body_too_large"),
    ];
    for (kind, bytes, status, code) in cases {
        let response = send(kind, bytes).await.unwrap();
        assert_eq!(response.status(), status, "{code}");
        let problem: Value = response.json().await.unwrap();
        assert_eq!(problem["code"], code, "{problem}");
    }
    app.finish().await;
}

#[tokio::test]
async fn wrong_paths_methods_headers_and_ids_are_problems_too() {
    let app = TestApp::builder().start().await;
    let unknown = "01a20dc3-0a9a-74ab-b530-a519827ad0c2";
    let cases = [
        (Method::GET, "/v1/nothing".to_owned(), "accept", "*/*", 404),
        (Method::PUT, "/v1/jobs".to_owned(), "accept", "*/*", 405),
        (Method::GET, format!("/v1/jobs/{unknown}"), "accept", "*/*", 404),
        (Method::GET, "/v1/jobs/7".to_owned(), "accept", "*/*", 404),
        (Method::DELETE, format!("/v1/jobs/{unknown}"), "accept", "*/*", 404),
        (Method::GET, format!("/v1/jobs/{unknown}/events"), "accept", "*/*", 404),
        (Method::GET, format!("/v1/jobs/{unknown}/images/0"), "accept", "*/*", 404),
        (Method::GET, "/v1/jobs?status=done".to_owned(), "accept", "*/*", 422),
        (Method::GET, "/v1/jobs?limit=0".to_owned(), "accept", "*/*", 422),
        (Method::GET, "/v1/jobs?cursor=x".to_owned(), "accept", "*/*", 422),
        (Method::GET, "/v1/models/none".to_owned(), "accept", "*/*", 404),
    ];
    for (method, path, name, value, status) in cases {
        let response = app.request(method.clone(), &path).header(name, value).send().await.unwrap();
        assert_eq!(response.status(), status, "{method} {path}");
        assert_eq!(response.headers()["content-type"], "application/problem+json", "{method} {path}");
    }
    for (name, value, status) in
        [("accept", "image/gif", 406), ("prefer", "wait=soon", 422), ("idempotency-key", "", 422)]
    {
        let response =
            app.request(Method::POST, "/v1/jobs").json(&body("x", 1)).header(name, value).send().await.unwrap();
        assert_eq!(response.status(), status, "{name}: {value}");
    }
    app.finish().await;
}
