use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};

use super::image_inputs::{coded, drawn, faults, file, post_form};
use crate::support::app::{TestApp, body, with};
use crate::support::drafts::fixtures;

fn with_controlnets(models: &[&str]) -> crate::support::app::Builder {
    let serve: Vec<String> = models.iter().map(|model| fixtures().join(model).display().to_string()).collect();
    TestApp::builder().settings(move |settings| {
        settings.models.serve = serve;
        settings.models.controlnets = fixtures().join("controlnets");
    })
}

#[tokio::test]
async fn a_picture_controls_what_is_drawn_however_it_comes() {
    let app = with_controlnets(&["tiny-sd"]).durable().start().await;
    let given = file("rgb.png");
    let asked = |image: Value| {
        let control = json!({"model": "edges", "image": image, "scale": 0.8, "end": 0.75});
        with(body("a house", 5), json!({"controls": [control]}))
    };
    let (plain, without) = drawn(&app, &body("a house", 5)).await;
    let (job, bytes) = drawn(&app, &asked(json!(coded(&given)))).await;
    assert_ne!(without, bytes);
    assert_eq!(plain["request"]["controls"], Value::Null);
    let control = &job["request"]["controls"][0];
    assert_eq!((&control["model"], &control["scale"]), (&json!("edges"), &json!(0.8)));
    assert_eq!((&control["start"], &control["end"]), (&json!(0.0), &json!(0.75)));
    assert_eq!((&control["image"]["input"], &control["image"]["width"]), (&json!("control_0"), &json!(26)));
    let told = "ControlNet 0: \"Module: none, Model: edges, Weight: 0.8, Resize Mode: Just Resize, Guidance Start: 0, Guidance End: 0.75";
    assert!(String::from_utf8_lossy(&bytes).contains(told), "the PNG carries its parameters");

    let id = job["id"].as_str().unwrap();
    let kept = app.get(&format!("/v1/jobs/{id}/inputs/control_0")).await;
    assert_eq!(kept.bytes().await.unwrap(), given);
    assert_eq!(app.get(&format!("/v1/jobs/{id}/inputs/control_1")).await.status(), 404);
    for again in [
        job["request"].clone(),
        asked(json!(format!("data:image/png;base64,{}", STANDARD.encode(&given)))),
        asked(json!({"job": id, "input": "control_0"})),
    ] {
        assert_eq!(drawn(&app, &again).await.1, bytes, "{again}");
    }
    // A form's file stands where the field would, before or after what it belongs to.
    let fields = body("a house", 5).to_string();
    let controls = br#"[{"model": "edges", "scale": 0.8, "end": 0.75}]"#;
    let mut parts: Vec<(&str, Option<&str>, &[u8])> = vec![
        ("request", None, fields.as_bytes()),
        ("controls[0].image", Some("rgb.png"), &given),
        ("controls", None, controls),
    ];
    for _ in 0..2 {
        let response = post_form(&app, &parts).await;
        assert_eq!(response.status(), 202, "{}", response.text().await.unwrap());
        let form: Value = response.json().await.unwrap();
        let form = app.ended(form["id"].as_str().unwrap()).await;
        assert_eq!(app.get(form["images"][0]["url"].as_str().unwrap()).await.bytes().await.unwrap(), bytes);
        parts.reverse();
    }
    // What a job drew controls another, twice over.
    let drawn_by = json!({"job": id, "image": 0});
    let twice =
        json!({"controls": [{"model": "depth", "image": drawn_by}, {"model": "edges", "image": coded(&given)}]});
    let (job, _) = drawn(&app, &with(body("a house", 5), twice)).await;
    assert_eq!(job["request"]["controls"][1]["image"]["input"], "control_1");

    let models = app.json("/v1/models").await;
    let listed = models["models"][0]["controlnets"].as_array().unwrap();
    let fitting = listed.iter().filter(|net| net["misfit"].is_null()).map(|net| net["name"].as_str().unwrap());
    assert_eq!(fitting.collect::<Vec<_>>(), ["depth", "edges"]);

    assert_eq!(app.request(Method::DELETE, &format!("/v1/jobs/{id}")).send().await.unwrap().status(), 204);
    assert_eq!(app.get(&format!("/v1/jobs/{id}/inputs/control_0")).await.status(), 404);
    app.finish().await;
}

#[tokio::test]
async fn each_fault_of_a_control_is_named() {
    let app = with_controlnets(&["tiny-sd", "tiny-sdxl"]).start().await;
    let image = coded(&file("rgb.png"));
    let whole = json!({"model": "edges", "image": image});
    let one = |changes: Value| json!({"controls": [with(whole.clone(), changes)]});
    let cases = [
        (json!({"controls": 7}), "controls", "must be a list"),
        (json!({"controls": [7]}), "controls[0]", "must be an object"),
        (one(json!({"model": null})), "controls[0].model", "is required"),
        (one(json!({"model": "lines"})), "controls[0].model", "model `tiny-sd` takes `depth`, `edges`"),
        (one(json!({"model": "../edges"})), "controls[0].model", "is no ControlNet"),
        (one(json!({"model": 7})), "controls[0].model", "must be text"),
        (one(json!({"model": "edges-sdxl"})), "controls[0].model", "its cross_attention_dim is 40, the model's 32"),
        (one(json!({"image": null})), "controls[0].image", "is required"),
        (one(json!({"image": "AAAA"})), "controls[0].image", "is no PNG"),
        (one(json!({"image": "http://example.org/a.png"})), "controls[0].image", "is a URL"),
        (one(json!({"scale": 11})), "controls[0].scale", "from 0 to 10"),
        (one(json!({"scale": "x"})), "controls[0].scale", "must be a number"),
        (one(json!({"start": 0.5, "end": 0.5})), "controls[0].end", "must be above `controls[0].start`, which is 0.5"),
        (one(json!({"start": -0.1})), "controls[0].start", "from 0 to 1"),
        (one(json!({"preprocessor": "canny"})), "controls[0].preprocessor", "a control has model, image, scale"),
        (json!({"controls": vec![whole.clone(); 5]}), "controls", "has 5 controls; at most 4"),
        (
            with(json!({"model": "tiny-sdxl", "width": 64, "height": 64}), one(json!({}))),
            "controls[0].model",
            "takes `depth-sdxl`, `edges-sdxl`",
        ),
    ];
    for (change, field, expected) in cases {
        let told = faults(app.post(&with(body("x", 1), change.clone())).await).await;
        assert_eq!(told.len(), 1, "{change}: {told:?}");
        assert!(told[0].0 == field && told[0].1.contains(expected), "{change}: {told:?}");
    }
    // All at once.
    let second = json!({"model": "lines", "image": "AAAA", "scale": -1});
    let told = faults(app.post(&with(body("x", 1), json!({"steps": 0, "controls": [whole, second]}))).await).await;
    let mut fields: Vec<&str> = told.iter().map(|(field, _)| field.as_str()).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["controls[1].image", "controls[1].model", "controls[1].scale", "steps"], "{told:?}");
    // A file for a control that is not there.
    let rgb = file("rgb.png");
    let parts: [(&str, Option<&str>, &[u8]); 2] = [("prompt", None, b"x"), ("controls[0].image", Some("a.png"), &rgb)];
    let told = faults(post_form(&app, &parts).await).await;
    assert!(told.len() == 1 && told[0].0 == "controls[0].image" && told[0].1.contains("`controls` has 0"), "{told:?}");
    app.finish().await;
}

#[tokio::test]
async fn without_controlnets_a_control_is_refused() {
    let app = TestApp::builder().start().await;
    let control = json!({"controls": [{"model": "edges", "image": coded(&file("rgb.png"))}]});
    let told = faults(app.post(&with(body("x", 1), control)).await).await;
    assert!(told.len() == 1 && told[0].1.contains("there is no ControlNet here that fits"), "{told:?}");
    app.finish().await;
}
