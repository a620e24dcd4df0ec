use serde_json::{Value, json};
use sha2::Digest;

use crate::support::app::{TestApp, body, with};
use crate::support::drafts::fixtures;

/// An app with some LoRAs of the fixtures in a folder of its own.
async fn app() -> (TestApp, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    for name in ["sd-kohya", "sd-attention", "sdxl-kohya"] {
        add(&folder, name);
    }
    let loras = folder.path().to_owned();
    let app = TestApp::builder().settings(move |settings| settings.models.loras = loras).start().await;
    (app, folder)
}

fn add(folder: &tempfile::TempDir, name: &str) {
    let file = format!("{name}.safetensors");
    std::fs::copy(fixtures().join("loras").join(&file), folder.path().join(file)).unwrap();
}

/// The job at its end, and its picture's file.
async fn drawn(app: &TestApp, body: &Value) -> (Value, Vec<u8>) {
    let job = app.submit(body).await;
    let job = app.ended(job["id"].as_str().unwrap()).await;
    assert_eq!(job["status"], "succeeded", "{job}");
    let bytes = app.get(job["images"][0]["url"].as_str().unwrap()).await.bytes().await.unwrap();
    (job, bytes.to_vec())
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn pixels(bytes: &[u8]) -> Vec<u8> {
    darkroom::images::decode(bytes, darkroom::domain::ImageFormat::Png).unwrap().pixels().to_vec()
}

#[tokio::test]
async fn a_picture_names_the_textual_inversion_embeddings_of_its_prompts() {
    let words = fixtures().join("embeddings/words");
    let app = TestApp::builder().settings(move |settings| settings.models.embeddings = words).start().await;
    let named =
        json!({"prompt": "a (<CAT-toy>:1.2), <cat-toy>", "negative_prompt": "easyneg", "prompt_syntax": "a1111"});
    let (_, picture) = drawn(&app, &with(body("", 3), named)).await;
    let hash = |file: &str| {
        let file = std::fs::read(fixtures().join("embeddings/words").join(file)).unwrap();
        darkroom::domain::hex(&sha2::Sha256::digest(file)[..6])
    };
    let told = format!(
        "TI hashes: \"<cat-toy>: {}, easyneg: {}\"",
        hash("learned_embeds.safetensors"),
        hash("easyneg.safetensors")
    );
    assert!(has(&picture, &told), "{told}");
    let (_, other) = drawn(&app, &body("a house", 3)).await;
    assert!(!has(&other, "TI hashes"));
    app.finish().await;
}

#[tokio::test]
async fn a_request_names_loras_as_a_field_or_in_its_prompt() {
    let (app, folder) = app().await;
    let listed = app.json("/v1/loras").await;
    let names: Vec<&str> =
        listed["loras"].as_array().unwrap().iter().map(|lora| lora["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["sd-attention", "sd-kohya", "sdxl-kohya"]);
    assert!(listed["loras"][0]["size_bytes"].as_u64().unwrap() > 1000 && listed["loras"][0]["hash"].is_null());

    let (_, plain) = drawn(&app, &body("a house", 3)).await;
    let asked =
        json!({"loras": [{"name": "sd-kohya", "scale": 0.5}, {"name": "sd-attention", "text_encoder_scale": 2}]});
    let (job, fielded) = drawn(&app, &with(body("a house", 3), asked)).await;
    let loras = &job["request"]["loras"];
    assert_eq!((&loras[0]["scale"], &loras[0]["text_encoder_scale"]), (&json!(0.5), &json!(0.5)));
    assert_eq!((&loras[1]["scale"], &loras[1]["text_encoder_scale"]), (&json!(1.0), &json!(2.0)));
    let hash = loras[0]["hash"].as_str().unwrap();
    assert_eq!(hash.len(), 12);
    assert_ne!(pixels(&plain), pixels(&fielded));
    let told = format!("Lora hashes: \"sd-kohya: {hash}, sd-attention: {}\"", loras[1]["hash"].as_str().unwrap());
    assert!(has(&fielded, &told) && has(&fielded, "a house <lora:sd-kohya:0.5> <lora:sd-attention:2:1>"), "in the PNG");
    assert!(!has(&plain, "Lora"));

    // As A1111 writes them, out of the text; and the answer sent again.
    let tags = json!({"prompt": "<lora:sd-kohya:0.5>a house<lora:sd-attention:2:1>", "prompt_syntax": "a1111"});
    let (tagged, picture) = drawn(&app, &with(body("", 3), tags)).await;
    assert_eq!(tagged["request"]["prompt"], "a house");
    assert_eq!(pixels(&picture), pixels(&fielded));
    let (_, again) = drawn(&app, &job["request"]).await;
    assert_eq!(again, fielded);
    // Plain text stays plain.
    let (plain, _) = drawn(&app, &body("<lora:sd-kohya:0.5>", 3)).await;
    assert_eq!(
        (&plain["request"]["prompt"], &plain["request"]["loras"]),
        (&json!("<lora:sd-kohya:0.5>"), &Value::Null)
    );

    // A file that comes is there at once; what was used has its hash.
    add(&folder, "sd-lokr");
    drawn(&app, &with(body("a house", 3), json!({"loras": [{"name": "sd-lokr"}]}))).await;
    let listed = app.json("/v1/loras").await;
    let listed = listed["loras"].as_array().unwrap();
    assert_eq!((listed.len(), &listed[1]["hash"]), (4, &json!(hash)));
    app.finish().await;
}

#[tokio::test]
async fn faults_of_loras_are_told_all_at_once() {
    let (app, _folder) = app().await;
    let asked = json!({"prompt": "x", "steps": 0, "loras": [
        {"name": "absent"}, {"scale": 1}, {"name": "sd-kohya", "scale": 11, "hash": "xyz"}, {"name": "sd-kohya"}, 7,
        {"name": 5, "weight": 1}
    ]});
    let response = app.post(&asked).await;
    assert_eq!(response.status(), 422);
    let problem: Value = response.json().await.unwrap();
    let told: Vec<(&str, &str)> = problem["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|fault| (fault["field"].as_str().unwrap(), fault["message"].as_str().unwrap()))
        .collect();
    for (field, part) in [
        ("steps", "from 1"),
        ("loras[0].name", "there are `sd-attention`, `sd-kohya`, `sdxl-kohya`"),
        ("loras[1].name", "is required"),
        ("loras[2].scale", "from -10 to 10"),
        ("loras[2].hash", "12 lower-case"),
        ("loras[3].name", "is given twice"),
        ("loras[4]", "an object"),
        ("loras[5].name", "must be text"),
        ("loras[5].weight", "has name, scale"),
    ] {
        assert!(told.iter().any(|(at, message)| *at == field && message.contains(part)), "{field} {part}: {told:?}");
    }
    let many: Vec<Value> = (0..9).map(|k| json!({"name": format!("l{k}")})).collect();
    for (changes, part) in [
        (json!({"loras": many}), "at most 8 are allowed"),
        (json!({"loras": {}}), "a list of objects"),
        (json!({"loras": [{"name": "sd-kohya", "hash": "000000000000"}]}), "is not the hash of `sd-kohya`, which is"),
        (json!({"prompt": "a <lora:absent:1>", "prompt_syntax": "a1111"}), "is no LoRA here"),
        (json!({"prompt": "a <lora:sd-kohya:x>", "prompt_syntax": "a1111"}), "has the scale `x`"),
        (json!({"loras": [{"name": "../sd-kohya"}]}), "is no LoRA here"),
    ] {
        let response = app.post(&with(body("a house", 1), changes)).await;
        assert_eq!(response.status(), 422);
        let told = response.text().await.unwrap();
        assert!(told.contains(part), "{part} in {told}");
    }
    app.finish().await;
}

#[tokio::test]
async fn a_lora_that_does_not_fit_fails_its_job_alone() {
    let (app, _folder) = app().await;
    let faulty = app.submit(&with(body("a house", 1), json!({"loras": [{"name": "sdxl-kohya"}]}))).await;
    let good = app.submit(&with(body("a house", 2), json!({"loras": [{"name": "sd-kohya"}]}))).await;
    let ended = app.ended(faulty["id"].as_str().unwrap()).await;
    assert_eq!((&ended["status"], &ended["error"]["code"]), (&json!("failed"), &json!("invalid_request")));
    let message = ended["error"]["message"].as_str().unwrap();
    assert!(message.contains("LoRA `sdxl-kohya`") && message.contains("tensor `lora_"), "{message}");
    assert_eq!(app.ended(good["id"].as_str().unwrap()).await["status"], "succeeded");
    app.finish().await;
}
