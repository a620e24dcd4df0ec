use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use darkroom::domain::{ImageFormat, OutputOptions};
use darkroom::images::{RgbImage, decode, encode};
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::support::app::{TestApp, body, with};
use crate::support::drafts::fixtures;

pub(super) fn file(name: &str) -> Vec<u8> {
    std::fs::read(fixtures().join("images/files").join(name)).unwrap()
}

/// Of this size, lossless.
fn png(picture: &RgbImage) -> Vec<u8> {
    encode(picture, OutputOptions { format: ImageFormat::Png, quality: 90 }, None).unwrap()
}

fn rgb(width: u32, height: u32, color: impl Fn(u32, u32) -> [u8; 3]) -> RgbImage {
    let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    RgbImage::from_pixels(width, height, pixels.flat_map(|(x, y)| color(x, y)).collect()).unwrap()
}

/// White in the middle.
fn mask(width: u32, height: u32) -> RgbImage {
    let is_in = |at: u32, len: u32| (len / 4..len / 2).contains(&at);
    rgb(width, height, |x, y| if is_in(x, width) && is_in(y, height) { [255; 3] } else { [0; 3] })
}

pub(super) fn coded(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// A request without a size of its own, starting from a picture.
fn started(init_image: Value) -> Value {
    json!({"prompt": "a house", "steps": 4, "seed": 5, "strength": 0.5, "init_image": init_image})
}

pub(super) async fn drawn(app: &TestApp, request: &Value) -> (Value, Vec<u8>) {
    let job = app.submit(request).await;
    let job = app.ended(job["id"].as_str().unwrap()).await;
    assert_eq!(job["status"], "succeeded", "{job}");
    let bytes = app.get(job["images"][0]["url"].as_str().unwrap()).await.bytes().await.unwrap();
    (job, bytes.to_vec())
}

/// A form of parts: name, file name or nothing, bytes.
pub(super) async fn post_form(app: &TestApp, parts: &[(&str, Option<&str>, &[u8])]) -> Response {
    let mut form = Vec::new();
    for (name, file_name, bytes) in parts {
        let file_name = file_name.map_or_else(String::new, |name| format!("; filename=\"{name}\""));
        let head = format!("--edge\r\nContent-Disposition: form-data; name=\"{name}\"{file_name}\r\n\r\n");
        form.extend_from_slice(head.as_bytes());
        form.extend_from_slice(bytes);
        form.extend_from_slice(b"\r\n");
    }
    form.extend_from_slice(b"--edge--\r\n");
    let request = app.request(Method::POST, "/v1/jobs").header("content-type", "multipart/form-data; boundary=edge");
    request.body(form).send().await.unwrap()
}

pub(super) async fn faults(response: Response) -> Vec<(String, String)> {
    assert_eq!(response.status(), 422);
    let problem: Value = response.json().await.unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    problem["errors"].as_array().unwrap().iter().map(|each| (text(&each["field"]), text(&each["message"]))).collect()
}

#[tokio::test]
async fn a_picture_to_start_from_comes_in_every_way() {
    let app = TestApp::builder().durable().start().await;
    let given = file("rgb.png");
    let (job, bytes) = drawn(&app, &started(json!(coded(&given)))).await;
    let request = &job["request"];
    assert_eq!((&request["width"], &request["height"]), (&json!(26), &json!(20)), "its size follows from the picture");
    assert_eq!((&request["init_image"]["width"], &request["init_image"]["job"]), (&json!(26), &job["id"]));
    assert_eq!((&request["strength"], &request["mask_image"]), (&json!(0.5), &Value::Null));
    assert_eq!(job["progress"]["steps"], 2, "half of four steps");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert!(text.contains(", Denoising strength: 0.5"), "the PNG carries its parameters");

    let id = job["id"].as_str().unwrap();
    let kept = app.get(&format!("/v1/jobs/{id}/inputs/init_image")).await;
    assert_eq!(kept.headers()["content-type"], "image/png");
    assert_eq!(kept.bytes().await.unwrap(), given);
    assert_eq!(app.get(&format!("/v1/jobs/{id}/inputs/mask_image")).await.status(), 404);

    // What the job says of its request, sent again as it stands, and other ways to say the same.
    for again in [
        request.clone(),
        started(json!(format!("data:image/png;base64,{}", coded(&given)))),
        started(json!({"job": id, "input": "init_image"})),
    ] {
        assert_eq!(drawn(&app, &again).await.1, bytes, "{again}");
    }
    let parts: [(&str, Option<&str>, &[u8]); 5] = [
        ("request", None, br#"{"steps": 4, "seed": 5}"#),
        ("prompt", None, b"a house"),
        ("strength", None, b"0.5"),
        ("init_image", Some("rgb.png"), &given),
        ("mask_image", Some(""), b""),
    ];
    let response = post_form(&app, &parts).await;
    assert_eq!(response.status(), 202, "{}", response.text().await.unwrap());
    let form: Value = response.json().await.unwrap();
    let form = app.ended(form["id"].as_str().unwrap()).await;
    assert_eq!(app.get(form["images"][0]["url"].as_str().unwrap()).await.bytes().await.unwrap(), bytes);

    // An earlier job's picture is that file.
    let (_, by_name) = drawn(&app, &started(json!({"job": id, "image": 0}))).await;
    assert_eq!(drawn(&app, &started(json!(coded(&bytes)))).await.1, by_name);
    assert_ne!(by_name, bytes);

    // It goes with its job.
    assert_eq!(app.request(Method::DELETE, &format!("/v1/jobs/{id}")).send().await.unwrap().status(), 204);
    assert_eq!(app.get(&format!("/v1/jobs/{id}/inputs/init_image")).await.status(), 404);
    let gone = faults(app.post(&started(json!({"job": id, "input": "init_image"}))).await).await;
    assert!(gone[0].0 == "init_image" && gone[0].1.contains("not here"), "{gone:?}");
    app.finish().await;
}

#[tokio::test]
async fn what_a_mask_keeps_is_kept() {
    let app = TestApp::builder().start().await;
    let picture = rgb(32, 32, |x, y| [(x * 7) as u8, (y * 7) as u8, 90]);
    let request = with(
        started(json!(coded(&png(&picture)))),
        json!({"mask_image": coded(&png(&mask(32, 32))), "preserve_unmasked": true}),
    );
    let (job, bytes) = drawn(&app, &request).await;
    assert_eq!((&job["request"]["inpaint_area"], &job["request"]["mask_blur"]), (&json!("whole"), &json!(0.0)));
    let drawn_picture = decode(&bytes, ImageFormat::Png).unwrap();
    assert_eq!(changed(&picture, &drawn_picture), (8..16, 8..16), "the masked square is drawn, nothing else");

    let inverted = with(request.clone(), json!({"invert_mask": true}));
    let inverted = decode(&drawn(&app, &inverted).await.1, ImageFormat::Png).unwrap();
    let inside = |picture: &RgbImage| picture.cropped(darkroom::images::Region { x: 8, y: 8, width: 8, height: 8 });
    assert_eq!(inside(&inverted), inside(&picture));
    assert_ne!(inverted, picture);

    // A part of a large picture, drawn at another size; the picture keeps its own.
    let large = rgb(61, 47, |x, y| [(x * 4) as u8, (y * 5) as u8, 40]);
    let part = with(
        body("a house", 5),
        json!({"init_image": coded(&png(&large)), "mask_image": coded(&png(&mask(61, 47))), "inpaint_area": "only_masked",
            "only_masked_padding": 2, "strength": 0.8, "mask_blur": 0}),
    );
    let (job, bytes) = drawn(&app, &part).await;
    assert_eq!((&job["images"][0]["width"], &job["images"][0]["height"]), (&json!(61), &json!(47)));
    let (x, y) = changed(&large, &decode(&bytes, ImageFormat::Png).unwrap());
    assert!(x.start >= 15 && x.end <= 30 && y.start >= 11 && y.end <= 23, "{x:?} {y:?}");
    app.finish().await;
}

/// The columns and rows between which two pictures differ.
fn changed(before: &RgbImage, after: &RgbImage) -> (std::ops::Range<u32>, std::ops::Range<u32>) {
    assert_eq!(before.size(), after.size());
    let pairs = before.pixels().as_chunks::<3>().0.iter().zip(after.pixels().as_chunks::<3>().0);
    let different =
        (0..).zip(pairs).filter(|(_, (a, b))| a != b).map(|(at, _)| (at % before.width(), at / before.width()));
    let different: Vec<(u32, u32)> = different.collect();
    let span = |of: fn(&(u32, u32)) -> u32| {
        different.iter().map(of).min().unwrap()..different.iter().map(of).max().unwrap() + 1
    };
    (span(|at| at.0), span(|at| at.1))
}

#[tokio::test]
async fn each_fault_of_a_picture_is_named() {
    let app = TestApp::builder()
        .settings(|settings| {
            settings.limits.max_input_pixels = 600;
            settings.limits.max_input_bytes = 20_000;
        })
        .start()
        .await;
    let small = coded(&file("rgb.png"));
    let large = coded(&png(&rgb(26, 24, |_, _| [0; 3])));
    let long = coded(&[0; 20_001]);
    let unknown = "01a20dc3-0a9a-74ab-b530-a519827ad0c2";
    let cases = [
        (json!({"init_image": "https://example.org/a.png"}), "init_image", "is a URL"),
        (json!({"init_image": 7}), "init_image", "must be a picture's file"),
        (json!({"init_image": "AAAA"}), "init_image", "is no PNG, JPEG or WebP picture"),
        (json!({"init_image": ""}), "init_image", "is empty"),
        (json!({"init_image": large}), "init_image", "is 26x24; at most 600 pixels"),
        (json!({"init_image": long}), "init_image", "has 20001 bytes; at most 20000"),
        (json!({"init_image": coded(&file("animation.webp"))}), "init_image", "is an animation"),
        (json!({"init_image": coded(&file("rgb.png")[..99])}), "init_image", "cannot be read"),
        (json!({"init_image": {"job": unknown, "image": 0}}), "init_image", "not here"),
        (json!({"init_image": {"job": unknown, "input": "init_image"}}), "init_image", "not here"),
        (json!({"init_image": small, "mask_image": "AAAA"}), "mask_image", "is no PNG"),
        (json!({"mask_image": small}), "init_image", "is required with `mask_image`"),
        (json!({"strength": 0.5}), "strength", "send `init_image` too"),
        (json!({"init_image": small, "strength": 1.1}), "strength", "from 0 to 1"),
        (json!({"init_image": small, "strength": 0.2}), "strength", "of 4 steps leaves none"),
        (json!({"init_image": small, "mask_blur": 4}), "mask_blur", "send `mask_image` too"),
        (json!({"init_image": small, "mask_image": small, "mask_blur": -1}), "mask_blur", "from 0 to 256"),
        (json!({"init_image": small, "mask_image": small, "invert_mask": 1}), "invert_mask", "true or false"),
        (json!({"init_image": small, "mask_image": small, "inpaint_area": "half"}), "inpaint_area", "`only_masked`"),
        (
            json!({"init_image": small, "mask_image": small, "only_masked_padding": 3}),
            "only_masked_padding",
            "`inpaint_area` `only_masked`",
        ),
    ];
    for (change, field, expected) in cases {
        let told = faults(app.post(&with(body("x", 1), change.clone())).await).await;
        assert_eq!(told.len(), 1, "{change}: {told:?}");
        assert!(told[0].0 == field && told[0].1.contains(expected), "{change}: {told:?}");
    }
    // All at once, by one form.
    let parts: [(&str, Option<&str>, &[u8]); 5] = [
        ("steps", None, b"many"),
        ("init_image", Some("a.png"), b"no picture"),
        ("strength", None, b"2"),
        ("init_image", Some("b.png"), b"another"),
        ("zzz", None, b"1"),
    ];
    let told = faults(post_form(&app, &parts).await).await;
    let mut fields: Vec<&str> = told.iter().map(|(field, _)| field.as_str()).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["init_image", "init_image", "prompt", "steps", "strength", "zzz"], "{told:?}");
    app.finish().await;
}

#[tokio::test]
async fn a_form_that_is_none_is_refused() {
    let app = TestApp::builder().start().await;
    let cut = "--edge\r\nContent-Disposition: form-data; name=\"prompt\"\r\n\r\na ho";
    let nameless = "--edge\r\nContent-Disposition: form-data\r\n\r\nx\r\n--edge--\r\n";
    let binary = b"--edge\r\nContent-Disposition: form-data; name=\"prompt\"\r\n\r\n\xff\xfe\r\n--edge--\r\n";
    let cases = [
        ("multipart/form-data", cut.as_bytes()),
        ("multipart/form-data; boundary=edge", cut.as_bytes()),
        ("multipart/form-data; boundary=edge", nameless.as_bytes()),
        ("multipart/form-data; boundary=edge", &binary[..]),
    ];
    for (kind, bytes) in cases {
        let request = app.request(Method::POST, "/v1/jobs").header("content-type", kind).body(bytes.to_vec());
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 400, "{kind} {}", String::from_utf8_lossy(bytes));
        assert_eq!(response.json::<Value>().await.unwrap()["code"], "invalid_form");
    }
    app.finish().await;
}

#[tokio::test]
async fn a_repeat_with_another_picture_is_another_request() {
    let app = TestApp::builder().start().await;
    let send = |name: &str| {
        let request = app.request(Method::POST, "/v1/jobs").header("idempotency-key", "once");
        request.json(&started(json!(coded(&file(name))))).send()
    };
    let first: Value = send("rgb.png").await.unwrap().json().await.unwrap();
    let again = send("rgb.png").await.unwrap();
    assert_eq!((again.status().as_u16(), &again.json::<Value>().await.unwrap()["id"]), (200, &first["id"]));
    assert_eq!(send("gray.png").await.unwrap().status(), 409);
    assert_eq!(app.ended(first["id"].as_str().unwrap()).await["status"], "succeeded");
    app.finish().await;
}

#[tokio::test]
async fn a_second_pass_makes_a_larger_picture_in_as_many_more_steps() {
    let app = TestApp::builder().start().await;
    let request = with(body("a house", 5), json!({"hires": {"scale": 1.6, "upscaler": "lanczos", "strength": 0.5}}));
    let (job, bytes) = drawn(&app, &request).await;
    // 25.6, to the nearest multiple of 2.
    assert_eq!((&job["images"][0]["width"], &job["images"][0]["height"]), (&json!(26), &json!(26)));
    assert_eq!(
        (&job["progress"]["step"], &job["progress"]["steps"]),
        (&json!(6), &json!(6)),
        "four, then half of four"
    );
    let resolved = json!({"scale": 1.6, "upscaler": "lanczos", "strength": 0.5, "steps": 4});
    assert_eq!(job["request"]["hires"], resolved);
    assert!(String::from_utf8_lossy(&bytes).contains("Hires upscale: 1.6, Hires steps: 4, Hires upscaler: Lanczos"));
    assert_eq!(drawn(&app, &job["request"]).await.1, bytes, "its request can be sent again");

    // Over a picture that a request came with, too.
    let started = with(started(json!(coded(&file("rgb.png")))), json!({"hires": {}}));
    let (job, _) = drawn(&app, &started).await;
    assert_eq!((&job["images"][0]["width"], &job["images"][0]["height"]), (&json!(52), &json!(40)));
    app.finish().await;
}
