//! What a picture's file says of it, read as other programs read it. Both readers are written after those programs' rules:
//! A1111's `parse_generation_parameters` (modules/infotext_utils.py) and Civitai's parser of A1111's text
//! (src/utils/metadata/automatic.metadata.ts).

use std::collections::BTreeMap;

use darkroom::domain::{
    DrawnBy, HiresDraft, ImageInputsDraft, InputImage, InputName, LoraDraft, RefinerDraft, RequestDraft,
};
use darkroom::images::describe;
use proptest::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::app::{TestApp, body};
use crate::support::drafts::{checked_among, fixtures, lora, pipeline};

/// What was read: the prompts under their names, and each pair of the last line.
type Read = BTreeMap<String, String>;

/// A1111's expression for one pair, `\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)`, found again and again.
fn pairs(line: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = line;
    'search: while !rest.is_empty() {
        let starts = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
        for at in starts {
            if let Some((name, value, after)) = pair(&rest[at..]) {
                found.push((name.to_owned(), value.to_owned()));
                rest = after;
                continue 'search;
            }
        }
        break;
    }
    found
}

fn pair(text: &str) -> Option<(&str, &str, &str)> {
    let text = text.trim_start();
    let is_name = |(at, c): (usize, char)| c.is_alphanumeric() || c == '_' || at > 0 && " -/".contains(c);
    let end = text.char_indices().find(|it| !is_name(*it)).map(|(at, _)| at)?;
    let (name, after) = (&text[..end], text[end..].strip_prefix(':')?);
    if name.chars().count() < 2 {
        return None;
    }
    let value = after.trim_start();
    if let Some(quoted) = value.strip_prefix('"') {
        let mut is_escaped = false;
        let end = quoted.char_indices().find(|(_, c)| {
            let ends = *c == '"' && !is_escaped;
            is_escaped = *c == '\\' && !is_escaped;
            ends
        });
        if let Some((end, _)) = end.filter(|(end, _)| *end > 0) {
            let (whole, after) = value.split_at(end + 2);
            if after.is_empty() || after.starts_with(',') {
                return Some((name, whole, after.strip_prefix(',').unwrap_or("")));
            }
        }
    }
    let end = value.find(',').unwrap_or(value.len());
    Some((name, &value[..end], value[end..].strip_prefix(',').unwrap_or("")))
}

fn as_a1111_reads(text: &str) -> Read {
    let mut lines: Vec<&str> = text.trim().split('\n').collect();
    let last = lines.pop().unwrap();
    let found = pairs(last);
    assert!(found.len() >= 3, "the last line is no line of parameters: {last}");
    let (mut prompt, mut negative, mut is_negative) = (Vec::new(), Vec::new(), false);
    for line in lines {
        let mut line = line.trim();
        if let Some(rest) = line.strip_prefix("Negative prompt:") {
            (is_negative, line) = (true, rest.trim());
        }
        if is_negative { &mut negative } else { &mut prompt }.push(line);
    }
    let mut read =
        Read::from([("Prompt".to_owned(), prompt.join("\n")), ("Negative prompt".to_owned(), negative.join("\n"))]);
    for (name, value) in found {
        let unquoted = if value.starts_with('"') { serde_json::from_str(&value).ok() } else { None };
        assert!(read.insert(name.clone(), unquoted.unwrap_or(value)).is_none(), "{name} stands twice: {last}");
    }
    read
}

/// Civitai's: a line that begins with `Steps: `; quotes hold pairs of their own.
fn as_civitai_reads(text: &str) -> BTreeMap<String, Value> {
    details(text.split('\n').find(|line| line.starts_with("Steps: ")).unwrap())
}

fn details(line: &str) -> BTreeMap<String, Value> {
    let (mut read, mut name, mut value, mut is_quoted) = (BTreeMap::new(), String::new(), String::new(), false);
    for c in line.chars() {
        match c {
            '"' => {
                if is_quoted {
                    read.insert(std::mem::take(&mut name), json!(details(value.trim())));
                }
                is_quoted = !is_quoted;
            }
            ':' if !is_quoted => name = std::mem::take(&mut value).trim().to_owned(),
            ',' if !is_quoted => {
                if !name.is_empty() {
                    read.insert(std::mem::take(&mut name), json!(value.trim()));
                }
                value.clear();
            }
            c => value.push(c),
        }
    }
    if !name.is_empty() {
        read.insert(name, json!(value.trim()));
    }
    read
}

fn expected(pairs: &[(&str, &str)]) -> Read {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn picture(input: InputName) -> InputImage {
    InputImage { job: None, input, sha256: "ab".repeat(32), width: 64, height: 72 }
}

fn hashed(name: &str, scale: f64, hash: &str) -> LoraDraft {
    LoraDraft { hash: Some(hash.to_owned()), ..lora(name, scale) }
}

fn draft() -> RequestDraft {
    RequestDraft {
        prompt: Some("a house, red:\n(snow), <end>".to_owned()),
        negative_prompt: Some("fog, \"rain\"".to_owned()),
        width: Some(64),
        height: Some(72),
        steps: Some(20),
        guidance_scale: Some(5.5),
        sampler: Some("dpmpp_2m".to_owned()),
        sigma_schedule: Some("karras".to_owned()),
        clip_skip: Some(1),
        seed: Some(7),
        noise: Some("torch-cuda".to_owned()),
        num_images: Some(2),
        loras: vec![hashed("snow: deep", 1.0, "0123456789ab"), hashed("ink", 0.5, "cdcdcdcdcdcd")],
        ..RequestDraft::default()
    }
}

/// Every pair that there is, by three requests, as both programs read it.
#[test]
fn every_parameter_is_read_back() {
    let models = ["tiny-sdxl", "tiny-sdxl-refiner"].map(pipeline);
    let infos = models.each_ref().map(|model| model.info());
    let hashes = infos.map(|info| info.sha256.clone().unwrap()[..10].to_owned());
    let drawn_by =
        DrawnBy { embeddings: vec![("easyneg".to_owned(), "c74b4e810b03".to_owned())], ..DrawnBy::models(infos) };
    let common: [(&str, &str); 16] = [
        ("Prompt", "a house, red:\n(snow), <end> <lora:snow: deep:1> <lora:ink:0.5>"),
        ("Negative prompt", "fog, \"rain\""),
        ("Steps", "20"),
        ("Sampler", "DPM++ 2M"),
        ("Schedule type", "Karras"),
        ("CFG scale", "5.5"),
        ("Seed", "8"),
        ("Size", "64x72"),
        ("Model hash", hashes[0].as_str()),
        ("Model", "tiny-sdxl"),
        ("Clip skip", "2"),
        ("RNG", "NV"),
        ("Emphasis", "None"),
        ("Lora hashes", "snow: deep: 0123456789ab, ink: cdcdcdcdcdcd"),
        ("TI hashes", "easyneg: c74b4e810b03"),
        ("Version", concat!("Darkroom ", env!("CARGO_PKG_VERSION"))),
    ];
    let refiner = format!("tiny-sdxl-refiner [{}]", hashes[1]);
    let refined = RefinerDraft { model: Some("tiny-sdxl-refiner".to_owned()), ..RefinerDraft::default() };
    let hires = HiresDraft { scale: Some(1.5), upscaler: Some("lanczos".to_owned()), ..HiresDraft::default() };
    let masked = ImageInputsDraft {
        init_image: Some(picture(InputName::InitImage)),
        mask_image: Some(picture(InputName::MaskImage)),
        strength: Some(0.75),
        mask_blur: Some(4.0),
        invert_mask: Some(true),
        inpaint_area: Some("only_masked".to_owned()),
        only_masked_padding: Some(16),
        ..ImageInputsDraft::default()
    };
    let cases: [(RequestDraft, &[(&str, &str)]); 3] = [
        (
            RequestDraft { refiner: Some(refined), ..draft() },
            &[("Refiner", refiner.as_str()), ("Refiner switch at", "0.8")],
        ),
        (
            RequestDraft { hires: Some(hires), ..draft() },
            &[
                ("Denoising strength", "0.7"),
                ("Hires upscale", "1.5"),
                ("Hires steps", "20"),
                ("Hires upscaler", "Lanczos"),
            ],
        ),
        (
            RequestDraft { image_inputs: masked, ..draft() },
            &[
                ("Denoising strength", "0.75"),
                ("Mask blur", "4"),
                ("Mask mode", "Inpaint not masked"),
                ("Inpaint area", "Only masked"),
                ("Masked area padding", "16"),
            ],
        ),
    ];
    for (draft, more) in cases {
        let text = describe(&checked_among(draft, &models), 1, &drawn_by).parameters;
        let read = as_a1111_reads(&text);
        assert_eq!(read, expected(&[&common[..], more].concat()), "{text}");
        let civitai = as_civitai_reads(&text);
        for (name, value) in read.iter().filter(|(name, _)| !name.ends_with("rompt") && !name.ends_with("hashes")) {
            assert_eq!(civitai[name], json!(value), "{name}: {text}");
        }
        assert_eq!(civitai["Lora hashes"]["ink"], "cdcdcdcdcdcd");
        assert_eq!(civitai["TI hashes"]["easyneg"], "c74b4e810b03");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Prompts and names are whatever people write.
    #[test]
    fn no_prompt_or_name_hides_a_parameter(prompt in "[ -~é\n]{0,40}", negative in "[ -~\n]{0,20}", name in "[ -~]{1,12}") {
        let tiny = pipeline("tiny-sd");
        let given = RequestDraft {
            prompt: Some(prompt.clone()),
            negative_prompt: Some(negative),
            seed: Some(3),
            loras: vec![hashed(&name, 1.0, "abababababab")],
            ..RequestDraft::default()
        };
        let drawn_by = DrawnBy::models([tiny.info()]);
        let read = as_a1111_reads(&describe(&checked_among(given, &[tiny]), 0, &drawn_by).parameters);
        prop_assert_eq!((&read["Steps"][..], &read["Seed"][..]), ("30", "3"));
        prop_assert_eq!(&read["Lora hashes"], &format!("{name}: abababababab"));
        let told = format!("{prompt} <lora:{name}:1>");
        let trimmed: Vec<&str> = told.trim_start().split('\n').map(str::trim).collect();
        prop_assert!(prompt.contains("Negative prompt:") || read["Prompt"] == trimmed.join("\n"));
    }
}

/// The text chunks of a PNG, by keyword; Latin-1 and uncompressed, as they are written for such words.
fn chunks(png: &[u8]) -> BTreeMap<String, String> {
    let (mut found, mut at) = (BTreeMap::new(), 8);
    while at < png.len() {
        let length = u32::from_be_bytes(png[at..at + 4].try_into().unwrap()) as usize;
        let data = &png[at + 8..at + 8 + length];
        if &png[at + 4..at + 8] == b"tEXt" {
            let end = data.iter().position(|byte| *byte == 0).unwrap();
            let text = |bytes: &[u8]| bytes.iter().map(|byte| char::from(*byte)).collect::<String>();
            found.insert(text(&data[..end]), text(&data[end + 1..]));
        }
        at += length + 12;
    }
    found
}

#[tokio::test]
async fn a_picture_names_the_file_that_drew_it() {
    let app = TestApp::builder().start().await;
    let weights = std::fs::read(fixtures().join("tiny-sd/unet/diffusion_pytorch_model.safetensors")).unwrap();
    let sha256: String = Sha256::digest(weights).iter().map(|byte| format!("{byte:02x}")).collect();
    let model = app.json("/v1/models/tiny-sd").await;
    assert_eq!((&model["sha256"], &model["hash"]), (&json!(sha256), &json!(sha256[..10])));
    let job = app.submit(&body("a house", 9)).await;
    let job = app.ended(job["id"].as_str().unwrap()).await;
    let png = app.get(job["images"][0]["url"].as_str().unwrap()).await.bytes().await.unwrap();
    let chunks = chunks(&png);
    let read = as_a1111_reads(&chunks["parameters"]);
    assert_eq!((&read["Model hash"][..], &read["Model"][..]), (&sha256[..10], "tiny-sd"));
    let files: Value = serde_json::from_str(&chunks["darkroom-files"]).unwrap();
    assert_eq!(files, json!({"models": [{"id": "tiny-sd", "sha256": sha256}], "loras": [], "embeddings": []}));
    let request: Value = serde_json::from_str(&chunks["darkroom"]).unwrap();
    let again = app.submit(&request).await;
    let again = app.ended(again["id"].as_str().unwrap()).await;
    assert_eq!(again["images"][0]["sha256"], job["images"][0]["sha256"]);
    app.finish().await;
}
