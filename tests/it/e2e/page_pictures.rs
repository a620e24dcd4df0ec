//! The page's field for a picture to start from, the mask painted on it, and the second pass, in a real Chromium.

use std::io::Write;

use darkroom::domain::{ImageFormat, OutputOptions};
use darkroom::images::{RgbImage, decode, encode};
use serde_json::{Value, json};

use crate::support::app::{TestApp, body, with};
use crate::support::browser::Browser;

/// Starts a browser, or ends the test where the machine has none.
macro_rules! browser {
    ($width:expr, $height:expr) => {
        match Browser::start($width, $height).await {
            Some(browser) => browser,
            None => return,
        }
    };
}

fn png(width: u32, height: u32, color: impl Fn(u32, u32) -> [u8; 3]) -> Vec<u8> {
    let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    let picture = RgbImage::from_pixels(width, height, places.flat_map(|(x, y)| color(x, y)).collect()).unwrap();
    encode(&picture, OutputOptions { format: ImageFormat::Png, quality: 90 }, None).unwrap()
}

fn landscape() -> Vec<u8> {
    png(48, 32, |x, y| [5 * x as u8, 7 * y as u8, 128])
}

/// A file with these bytes, for a file field.
fn file(bytes: &[u8], ending: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(ending).tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

async fn choose(browser: &Browser, field: &str, file: &tempfile::NamedTempFile) {
    browser.find(field).await.send_keys(file.path().to_str().unwrap()).await.unwrap();
}

async fn opened(browser: &Browser, app: &TestApp) {
    browser.open(&app.base).await;
    let open = "[...document.querySelectorAll('details')].map((details) => { details.open = true; })";
    browser.value(open).await;
    for (name, text) in [("prompt", "a house"), ("steps", "4"), ("seed", "5")] {
        browser.fill(name, text).await;
    }
}

async fn chosen(browser: &Browser, file: &tempfile::NamedTempFile) {
    choose(browser, "#init_image", file).await;
    browser.until("the picture is shown", "document.getElementById('init-preview').naturalWidth > 0").await;
    // Small, whatever the picture is.
    browser.fill("width", "24").await;
    browser.fill("height", "16").await;
}

/// Clicks where the form's foot does not cover it.
async fn click(browser: &Browser, selector: &str) {
    browser.value(&format!("document.querySelector(\"{selector}\").scrollIntoView({{block: 'center'}})")).await;
    browser.click(selector).await;
}

/// Presses Tab until the focus is on something the selector names. Not by typing into the element that has it: what is typed into
/// a field for files is taken for the name of one.
async fn tab_to(browser: &Browser, selector: &str) {
    for _ in 0..20 {
        if browser.value(&format!("document.activeElement.matches(\"{selector}\")")).await == true {
            return;
        }
        for kind in ["keyDown", "keyUp"] {
            let key = json!({"type": kind, "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9});
            browser.command("Input.dispatchKeyEvent", key).await;
        }
    }
    panic!("Tab does not lead to {selector}");
}

/// Presses "Generate" and waits for the job's end.
async fn drawn(browser: &Browser, app: &TestApp, before: usize) -> Value {
    browser.press("Generate").await;
    let ended = format!("document.querySelectorAll('.card[data-status=succeeded]').length === {}", before + 1);
    browser.until("the picture is drawn", &ended).await;
    app.json("/v1/jobs").await["jobs"][0].clone()
}

/// One stroke with the mouse over the canvas, in shares of its sides.
async fn stroke(browser: &Browser, from: (f64, f64), to: (f64, f64)) {
    browser.value("document.getElementById('easel-stage').scrollIntoView({block: 'center'})").await;
    let place = "(() => { const box = document.getElementById('mask').getBoundingClientRect(); return [box.x, box.y, box.width, box.height]; })()";
    let [x, y, width, height]: [f64; 4] = serde_json::from_value(browser.value(place).await).unwrap();
    let at = |(across, down): (f64, f64)| (x + across * width, y + down * height);
    for (kind, place) in [("mousePressed", from), ("mouseMoved", to), ("mouseReleased", to)] {
        let (x, y) = at(place);
        let event = json!({"type": kind, "x": x, "y": y, "button": "left", "buttons": 1, "clickCount": 1});
        browser.command("Input.dispatchMouseEvent", event).await;
    }
}

/// What the server got.
async fn input(app: &TestApp, job: &Value, name: &str) -> RgbImage {
    let bytes =
        app.get(&format!("/v1/jobs/{}/inputs/{name}", job["id"].as_str().unwrap())).await.bytes().await.unwrap();
    decode(&bytes, ImageFormat::Png).unwrap()
}

#[tokio::test]
async fn a_picture_is_chosen_and_a_mask_is_painted_on_it() {
    let browser = browser!(1280, 900);
    let app = TestApp::builder().start().await;
    opened(&browser, &app).await;
    chosen(&browser, &file(&landscape(), ".png")).await;
    assert_eq!(
        browser.value("document.getElementById('init-state').textContent").await.as_str().unwrap().split(',').nth(1),
        Some(" 48 by 32 pixels")
    );
    assert_eq!(browser.value("document.getElementById('strength').value").await, "0.8");
    let job = drawn(&browser, &app, 0).await;
    assert_eq!((&job["request"]["strength"], &job["request"]["mask_image"]), (&json!(0.8), &Value::Null));
    assert_eq!(
        input(&app, &job, "init_image").await.pixels(),
        decode(&landscape(), ImageFormat::Png).unwrap().pixels()
    );

    // A stroke through the middle from left to right, then a part of it is erased.
    let state = "document.getElementById('mask-state').textContent";
    stroke(&browser, (0.25, 0.5), (0.75, 0.5)).await;
    browser.until("the mask is told", &format!("{state}.includes('is masked')")).await;
    assert_eq!(browser.value("document.getElementById('strength').value").await, "1", "as inpainting has it");
    click(&browser, "#tool-eraser").await;
    stroke(&browser, (0.75, 0.5), (0.85, 0.5)).await;
    browser.fill("preserve_unmasked", "true").await;
    browser.fill("mask_blur", "1.5").await;
    let job = drawn(&browser, &app, 1).await;
    let request = &job["request"];
    let told =
        json!([request["strength"], request["preserve_unmasked"], request["mask_blur"], request["inpaint_area"]]);
    assert_eq!(told, json!([1.0, true, 1.5, "whole"]));
    let mask = input(&app, &job, "mask_image").await;
    assert_eq!((mask.width(), mask.height()), (48, 32));
    let at = |x: u32, y: u32| mask.pixels()[3 * (y * 48 + x) as usize];
    assert_eq!([at(24, 16), at(14, 16), at(36, 16), at(24, 4), at(0, 0)], [255, 255, 0, 0, 0]);
    let parameters = browser.find(".card .parameters").await.text().await.unwrap();
    assert!(parameters.contains("strength 1, masked"), "{parameters}");

    // The same again: picture and mask are those of that job, and so is what is drawn.
    click(&browser, "#init-remove").await;
    assert_eq!(browser.value("document.getElementById('easel').hidden").await, true);
    browser.press("Use these again").await;
    browser.until("picture and mask are back", &format!("{state}.includes('is masked')")).await;
    let again = drawn(&browser, &app, 2).await;
    assert_eq!(again["images"][0]["sha256"], job["images"][0]["sha256"]);
    assert_eq!(again["request"]["mask_image"]["sha256"], job["request"]["mask_image"]["sha256"]);
    assert_eq!(browser.console().await, Vec::<String>::new());
    app.finish().await;
}

#[tokio::test]
async fn a_result_is_started_from_and_drawn_again_larger() {
    let browser = browser!(1280, 900);
    let app = TestApp::builder().start().await;
    let first = app.submit(&body("a tree", 3)).await;
    let first = app.ended(first["id"].as_str().unwrap()).await;
    opened(&browser, &app).await;
    browser.until("it is shown", "document.querySelector('.slot.done img')?.naturalWidth === 16").await;
    browser.fill("prompt", " ").await;
    browser.press("Start from this").await;
    browser.until("it is in the form", "document.getElementById('init-preview').naturalWidth === 16").await;
    assert_eq!(browser.value("document.getElementById('prompt').value").await, "a tree", "where none was there");
    assert_eq!(
        browser.value("[...'wh'].map((side) => document.querySelector(`[name^=${side}]`).value)").await,
        json!(["16", "16"])
    );
    browser.value("(() => { const range = document.getElementById('strength'); range.value = 0.5; range.dispatchEvent(new InputEvent('input', {bubbles: true})); })()").await;
    click(&browser, "#hires-on").await;
    browser.fill("hires.upscaler", "lanczos").await;
    browser.fill("hires.strength", "0.5").await;
    let job = drawn(&browser, &app, 1).await;
    let request = &job["request"];
    assert_eq!(request["strength"], 0.5);
    assert_eq!(request["init_image"]["sha256"], first["images"][0]["sha256"]);
    assert_eq!(request["hires"], json!({"scale": 2.0, "upscaler": "lanczos", "strength": 0.5, "steps": 4}));
    assert_eq!((&job["images"][0]["width"], &job["progress"]["steps"]), (&json!(32), &json!(4)));
    // Two steps of each pass: that is what the bar counts.
    assert_eq!(browser.value("document.querySelector('.card .slot progress').max").await, 4);
    // Once started from, it can be masked, which rules the second pass out.
    click(&browser, "#mask-fill").await;
    assert_eq!(browser.value("document.getElementById('hires-on').disabled").await, true);
    assert_eq!(browser.value("document.getElementById('hires-fields').hidden").await, true);
    let masked = drawn(&browser, &app, 2).await;
    assert_eq!(masked["request"]["hires"], Value::Null);
    assert!(input(&app, &masked, "mask_image").await.pixels().iter().all(|byte| *byte == 255));
    app.finish().await;
}

#[tokio::test]
async fn by_keyboard_alone_a_mask_comes_from_a_file() {
    let browser = browser!(360, 740);
    let app = TestApp::builder().start().await;
    opened(&browser, &app).await;
    chosen(&browser, &file(&landscape(), ".png")).await;
    let white_left = png(48, 32, |x, _| if x < 24 { [255; 3] } else { [0; 3] });
    // Kept until it is read: a file that is dropped is gone.
    let mask_file = file(&white_left, ".png");
    choose(&browser, "#mask_image", &mask_file).await;
    let state = "document.getElementById('mask-state').textContent";
    browser.until("the mask is told", &format!("{state}.startsWith('50 % is masked')")).await;
    // Tab leads to every tool, and each can be used.
    browser.value("document.getElementById('init_image').focus()").await;
    for tool in ["#tool-brush", "#brush-size", "#mask-fill", "#mask-clear", "#mask_image", "#strength", "#inpaint_area"]
    {
        tab_to(&browser, tool).await;
    }
    let named = "[...document.querySelectorAll('#easel :is(input, select, button, canvas)')].filter((node) => !(node.labels?.length || node.ariaLabel || node.textContent.trim())).map((node) => node.id)";
    assert_eq!(browser.value(named).await, json!([]));
    let overhang = "document.documentElement.scrollWidth - document.documentElement.clientWidth";
    assert_eq!(browser.value(overhang).await, 0, "nothing is wider than the screen");
    // Only what surrounds the mask is drawn: the picture keeps its own size.
    browser.fill("inpaint_area", "only_masked").await;
    browser.fill("only_masked_padding", "2").await;
    let job = drawn(&browser, &app, 0).await;
    assert_eq!(job["request"]["only_masked_padding"], 2);
    assert_eq!((&job["images"][0]["width"], &job["images"][0]["height"]), (&json!(48), &json!(32)));
    assert_eq!(
        input(&app, &job, "mask_image").await.pixels(),
        decode(&white_left, ImageFormat::Png).unwrap().pixels(),
        "to the byte"
    );
    click(&browser, "#mask-clear").await;
    browser.until("nothing is masked", &format!("{state}.startsWith('Nothing is masked')")).await;
    click(&browser, "#init-remove").await;
    let job = drawn(&browser, &app, 1).await;
    assert_eq!((&job["request"]["init_image"], &job["request"]["strength"]), (&Value::Null, &Value::Null));
    app.finish().await;
}

#[tokio::test]
async fn what_is_dropped_is_taken_and_what_is_no_picture_is_told() {
    let browser = browser!(1280, 900);
    let app = TestApp::builder().start().await;
    let first = app.submit(&with(body("to drag", 3), json!({"width": 32}))).await;
    let first = app.ended(first["id"].as_str().unwrap()).await;
    opened(&browser, &app).await;
    let dropped = |fill: &str| {
        format!(
            "(() => {{ const data = new DataTransfer(); {fill}; document.body.dispatchEvent(new DragEvent('drop', {{dataTransfer: data, bubbles: true, cancelable: true}})); }})()"
        )
    };
    let bytes = landscape();
    browser
        .value(&dropped(&format!(
            "data.items.add(new File([new Uint8Array({bytes:?})], 'land.png', {{type: 'image/png'}}))"
        )))
        .await;
    browser.until("the file is taken", "document.getElementById('init-preview').naturalWidth === 48").await;
    // A picture of the gallery, as the browser drags it.
    let url = format!("{}{}", app.base, first["images"][0]["url"].as_str().unwrap());
    browser.value(&dropped(&format!("data.setData('text/uri-list', '{url}')"))).await;
    browser.until("the picture is taken", "document.getElementById('init-preview').naturalWidth === 32").await;
    // A picture of somebody else is not fetched.
    browser.value(&dropped("data.setData('text/uri-list', 'http://example.org/v1/jobs/x/images/0')")).await;
    let no_picture = file(b"no picture", ".png");
    choose(&browser, "#init_image", &no_picture).await;
    browser.until("it is told", "document.getElementById('init-state').textContent.includes('no picture')").await;
    assert_eq!(browser.value("document.getElementById('init-preview').naturalWidth").await, 32, "what was there stays");
    // What the browser shows and the server does not take is told at the field.
    let header = [0x42, 0x4d, 58, 0, 0, 0, 0, 0, 0, 0, 54, 0, 0, 0, 40, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 24, 0];
    let bitmap: Vec<u8> = header.into_iter().chain([0; 24]).chain([0, 0, 255, 0]).collect();
    let bitmap = file(&bitmap, ".bmp");
    choose(&browser, "#init_image", &bitmap).await;
    browser.until("it is shown", "document.getElementById('init-preview').naturalWidth === 1").await;
    browser.press("Generate").await;
    browser.until("it is refused", "document.getElementById('fault-init_image')").await;
    assert_eq!(browser.value("document.activeElement.id").await, "init_image");
    app.finish().await;
}
