//! The page at `/`, in a real Chromium: what people do with it, with the mouse and without.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::support::app::{TestApp, body, with};
use crate::support::browser::Browser;
use crate::support::gate::Gate;

/// Starts a browser, or ends the test where the machine has none.
macro_rules! browser {
    () => {
        browser!(1280, 900)
    };
    ($width:expr, $height:expr) => {
        match Browser::start($width, $height).await {
            Some(browser) => browser,
            None => return,
        }
    };
}

/// Fills the form for small pictures in a few steps.
async fn describe(browser: &Browser, prompt: &str, count: u32) {
    let craft = "document.getElementById('craft').open = true";
    browser.value(craft).await;
    for (name, text) in [("prompt", prompt), ("width", "16"), ("height", "16"), ("steps", "4")] {
        browser.fill(name, text).await;
    }
    browser.fill("num_images", &count.to_string()).await;
}

/// So many pictures are shown, decoded, of that width.
fn shown(count: usize, width: u32) -> String {
    format!(
        "[...document.querySelectorAll('.slot.done img')].filter((img) => img.naturalWidth === {width}).length === {count}"
    )
}

async fn jobs(app: &TestApp) -> Vec<Value> {
    app.json("/v1/jobs").await["jobs"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_picture_is_drawn_by_filling_the_form() {
    let browser = browser!();
    let app = TestApp::builder().start().await;
    browser.open(&app.base).await;
    // Defaults and limits are the model's.
    let model = app.json("/v1/models").await["models"][0].clone();
    assert_eq!(browser.value("Number(document.getElementById('width').value)").await, model["defaults"]["width"]);
    assert_eq!(browser.value("Number(document.getElementById('width').step)").await, model["size_multiple"]);
    assert_eq!(browser.value("Number(document.getElementById('height').max)").await, model["max_side"]);
    assert_eq!(browser.value("document.getElementById('sampler').value").await, model["defaults"]["sampler"]);
    assert_eq!(
        browser.value("[...document.getElementById('sampler').options].map((option) => option.value)").await,
        model["samplers"]
    );

    describe(&browser, "a house <b>& a tree</b>", 1).await;
    browser.press("Generate").await;
    browser.until("the picture is shown", &shown(1, 16)).await;
    let job = jobs(&app).await[0].clone();
    assert_eq!(job["request"]["prompt"], "a house <b>& a tree</b>");
    assert_eq!(browser.find(".card h3").await.text().await.unwrap(), "a house <b>& a tree</b>");
    assert_eq!(browser.find(".slot img").await.attr("alt").await.unwrap().unwrap(), "a house <b>& a tree</b>");
    // Seeds are above what JavaScript's numbers hold exactly.
    let parameters = browser.find(".card .parameters").await.text().await.unwrap();
    let seed = job["request"]["seed"].to_string();
    for part in ["16 × 16", "DPM++ 2M", "PNG", seed.as_str()] {
        assert!(parameters.contains(part), "{part} in {parameters}");
    }
    let download = browser.find(".download").await;
    assert_eq!(download.attr("download").await.unwrap().unwrap(), format!("darkroom-{seed}.png"));
    assert_eq!(download.attr("href").await.unwrap().unwrap(), job["images"][0]["url"]);
    browser
        .until("the end is said", "document.getElementById('live').textContent.startsWith('The picture is ready')")
        .await;

    assert_eq!(browser.console().await, Vec::<String>::new());
    let elsewhere = browser.requests().await.into_iter().filter(|url| !url.starts_with(&format!("{}/", app.base)));
    let elsewhere: Vec<String> = elsewhere.filter(|url| !url.starts_with("data:")).collect();
    assert_eq!(elsewhere, Vec::<String>::new(), "requests that leave the server");
    app.finish().await;
}

#[tokio::test]
async fn faults_stand_at_their_fields_all_at_once() {
    let browser = browser!();
    let app = TestApp::builder().start().await;
    browser.open(&app.base).await;
    describe(&browser, "a house", 99).await;
    for (name, text) in [("prompt", " "), ("width", "7"), ("steps", "0"), ("seed", "9223372036854775808")] {
        browser.fill(name, text).await;
    }
    browser.press("Generate").await;
    browser.until("faults are shown", "document.querySelectorAll('.fault').length > 0").await;
    let told = browser
        .value("[...document.querySelectorAll('[aria-invalid=true]')].map((field) => [field.name, document.getElementById(field.getAttribute('aria-describedby').split(' ').at(-1)).textContent])")
        .await;
    let told: Vec<(String, String)> = serde_json::from_value(told).unwrap();
    let expected = [
        ("prompt", "Is required"),
        ("width", "Must be a multiple of"),
        ("num_images", "Must be an integer from 1 to 16"),
        ("seed", "Must be an integer from 0 to 9223372036854775807"),
        ("steps", "Must be an integer from 1 to"),
    ];
    assert_eq!(told.len(), expected.len(), "{told:?}");
    for ((field, text), (name, begins)) in told.iter().zip(expected) {
        assert!(field == name && text.starts_with(begins), "{field}: {text}");
    }
    assert_eq!(browser.value("document.activeElement.name").await, "prompt", "the focus is on the first fault");
    // Mended, it is taken, and nothing of the faults stays.
    describe(&browser, "a house", 1).await;
    browser.fill("seed", "5").await;
    browser.press("Generate").await;
    browser.until("the picture is shown", &shown(1, 16)).await;
    assert_eq!(browser.value("document.querySelectorAll('.fault, [aria-invalid]').length").await, 0);
    app.finish().await;
}

#[tokio::test]
async fn each_picture_has_its_bar_and_a_reload_finds_the_job() {
    let browser = browser!();
    let gate = Arc::new(Gate::after_steps(2));
    let app = TestApp::builder().fault(gate.hook()).start().await;
    browser.open(&app.base).await;
    describe(&browser, "three of them", 3).await;
    browser.press("Generate").await;
    let bars = "JSON.stringify([...document.querySelectorAll('.slot progress')].map((bar) => [bar.value, bar.max, bar.getAttribute('aria-label')]))";
    let half = r#"[[2,4,"Picture 1 of 3"],[2,4,"Picture 2 of 3"],[2,4,"Picture 3 of 3"]]"#;
    browser.until("half of the steps are told", &format!("{bars} === '{half}'")).await;
    browser.reload().await;
    browser.until("the job is found again", &format!("{bars} === '{half}'")).await;
    assert_eq!(browser.find(".card").await.attr("data-status").await.unwrap().unwrap(), "running");
    assert_eq!(browser.value("document.title").await, "(1) Darkroom");
    gate.open();
    browser.until("all pictures are shown", &shown(3, 16)).await;
    browser.until("the bars are gone", "document.querySelectorAll('.slot progress:not([hidden])').length === 0").await;
    assert_eq!(browser.console().await, Vec::<String>::new());
    app.finish().await;
}

#[tokio::test]
async fn a_preview_shows_what_is_being_drawn() {
    let browser = browser!();
    let gate = Arc::new(Gate::after_steps(2));
    // The built-in model tells how its latents look; the tiny one does not.
    let settings = |settings: &mut darkroom::config::Settings| {
        settings.models.serve = vec!["pinhole".to_owned()];
        settings.workers.preview_every = 1;
    };
    let app = TestApp::builder().settings(settings).fault(gate.hook()).start().await;
    browser.open(&app.base).await;
    describe(&browser, "a red house", 1).await;
    browser.fill("width", "64").await;
    browser.fill("height", "64").await;
    browser.press("Generate").await;
    let preview = "document.querySelector('.slot.developing img')";
    browser
        .until(
            "a preview is shown",
            &format!("{preview}?.naturalWidth > 0 && {preview}.src.startsWith('data:image/jpeg')"),
        )
        .await;
    gate.open();
    browser.until("the picture takes its place", &shown(1, 64)).await;
    assert_eq!(browser.console().await, Vec::<String>::new(), "previews are allowed by the policy");
    app.finish().await;
}

#[tokio::test]
async fn a_job_is_cancelled_where_it_waits_and_where_it_runs() {
    let browser = browser!();
    let gate = Arc::new(Gate::default());
    let app = TestApp::builder().settings(|settings| settings.workers.max_rows = 1).fault(gate.hook()).start().await;
    let runs = app.submit(&body("it runs", 1)).await;
    browser.open(&app.base).await;
    browser.until("it runs", "document.querySelector('.card')?.dataset.status === 'running'").await;
    // Of another size: it cannot join the batch that is held.
    describe(&browser, "it waits", 1).await;
    browser.fill("width", "32").await;
    browser.press("Generate").await;
    browser.until("it waits", "document.querySelector('.card .state')?.textContent.startsWith('Next in line')").await;
    browser.click(".card[data-status='queued'] .actions button").await;
    browser.until("it is cancelled", "document.querySelector('.card').dataset.status === 'cancelled'").await;
    browser.click(".card[data-status='running'] .actions button").await;
    browser
        .until("it is leaving", "document.querySelectorAll('.card')[1].innerText.includes('Leaving at the next step')")
        .await;
    gate.open();
    browser.until("both are cancelled", "document.querySelectorAll('[data-status=cancelled]').length === 2").await;
    assert_eq!(app.ended(runs["id"].as_str().unwrap()).await["status"], "cancelled");
    assert_eq!(browser.value("document.activeElement.matches('.card')").await, true, "the focus stays at the card");
    app.finish().await;
}

#[tokio::test]
async fn use_these_again_fills_the_form_and_draws_the_same_bytes() {
    let browser = browser!();
    let app = TestApp::builder().start().await;
    let output = json!({"format": "jpeg", "quality": 71});
    let wanted = json!({"negative_prompt": "rain", "sampler": "ddim", "eta": 0.5, "sigma_schedule": "default",
        "guidance_scale": 2.5, "num_images": 2, "height": 32, "noise": "torch-cuda", "prompt_syntax": "a1111", "clip_skip": 1, "guidance_rescale": 0.25, "guidance_end": 0.75, "output": output});
    // No double has this value.
    let first = app.submit(&with(body("again", 9_223_372_036_854_775_001), wanted)).await;
    let first = app.ended(first["id"].as_str().unwrap()).await;
    browser.open(&app.base).await;
    browser.until("the pictures are shown", &shown(2, 16)).await;
    browser.press("Use these again").await;
    assert_eq!(browser.value("document.getElementById('seed').value").await, "9223372036854775001");
    browser.press("Generate").await;
    browser.until("the second job is shown", &shown(4, 16)).await;
    let second = jobs(&app).await[0].clone();
    assert_ne!(second["id"], first["id"]);
    assert_eq!(second["request"], first["request"]);
    assert_eq!(second["images"][1]["sha256"], first["images"][1]["sha256"]);
    // One of several, from its large view: that picture's own seed.
    browser.click(".card .slot:nth-child(2) .open").await;
    browser.until("it is large", "document.getElementById('viewer').open").await;
    let again = "[...document.querySelectorAll('#viewer-actions button')].find((button) => button.textContent === 'Use these again').click()";
    browser.value(again).await;
    assert_eq!(browser.value("document.getElementById('seed').value").await, "9223372036854775002");
    assert_eq!(browser.value("document.getElementById('num_images').value").await, "1");
    // The seed is let go and kept again.
    browser.click("#keep-seed").await;
    assert_eq!(browser.value("document.getElementById('seed').value").await, "");
    browser.click("#keep-seed").await;
    assert_eq!(browser.value("document.getElementById('seed').value").await, "9223372036854775001");
    app.finish().await;
}

#[tokio::test]
async fn the_keyboard_alone_draws_looks_and_removes() {
    let browser = browser!();
    let app = TestApp::builder().start().await;
    browser.open(&app.base).await;
    browser.tab_to("[name='prompt']").await;
    browser.keys("by hand").await;
    for (name, text) in [("width", "16"), ("height", "16")] {
        browser.tab_to(&format!("[name='{name}']")).await;
        // Control + a, then what takes its place.
        browser.keys(&format!("\u{e009}a\u{e000}{text}")).await;
    }
    // Control + Enter, from any field.
    browser.keys("\u{e009}\u{e007}").await;
    browser.until("the picture is shown", &shown(1, 16)).await;
    browser.tab_to(".open").await;
    browser.keys("\u{e007}").await;
    browser.until("it is large", "document.getElementById('viewer').open").await;
    assert_eq!(browser.value("document.getElementById('viewer').contains(document.activeElement)").await, true);
    browser.keys("\u{e00c}").await;
    browser.until("it is closed", "!document.getElementById('viewer').open").await;
    assert_eq!(browser.value("document.activeElement.matches('.open')").await, true, "the focus comes back");
    let outline = browser.value("getComputedStyle(document.activeElement).outlineStyle").await;
    assert_eq!(outline, "solid", "the focus is seen");
    browser.tab_to(".card .actions button:last-child").await;
    browser.keys("\u{e007}").await;
    browser.until("it asks first", "document.getElementById('confirm').open").await;
    browser.tab_to("#confirm-yes").await;
    browser.keys("\u{e007}").await;
    browser.until("the card is gone", "document.querySelectorAll('.card').length === 0").await;
    assert!(jobs(&app).await.is_empty());
    assert_eq!(browser.value("document.activeElement.id").await, "pictures", "the focus is not lost");
    app.finish().await;
}

#[tokio::test]
async fn every_control_and_every_picture_has_a_name() {
    let browser = browser!();
    let app = TestApp::builder().start().await;
    let job = app.submit(&with(body("named", 3), json!({"num_images": 2}))).await;
    app.ended(job["id"].as_str().unwrap()).await;
    browser.open(&app.base).await;
    browser.until("the pictures are shown", &shown(2, 16)).await;
    browser.value("document.getElementById('craft').open = true").await;
    // As assistive technology is told it by the browser.
    let tree = browser.command("Accessibility.getFullAXTree", json!({})).await;
    let nodes: Vec<&Value> = tree["nodes"].as_array().unwrap().iter().filter(|node| node["ignored"] == false).collect();
    let role = |node: &Value| node["role"]["value"].as_str().unwrap_or("").to_owned();
    let name = |node: &Value| node["name"]["value"].as_str().unwrap_or("").to_owned();
    let named =
        ["button", "link", "textbox", "spinbutton", "combobox", "radio", "image", "progressbar", "form", "article"];
    let nameless = nodes.iter().filter(|node| named.contains(&role(node).as_str()) && name(node).is_empty());
    assert_eq!(nameless.collect::<Vec<_>>(), Vec::<&&Value>::new());
    let of = |wanted: &str| nodes.iter().filter(|node| role(node) == wanted).map(|node| name(node)).collect::<Vec<_>>();
    assert_eq!(of("form"), ["New pictures"]);
    assert_eq!(of("article"), ["named"]);
    for landmark in ["main", "banner", "navigation"] {
        assert_eq!(of(landmark).len(), 1, "{landmark}");
    }
    assert!(of("button").contains(&"Picture 2 of 2, open large".to_owned()), "{:?}", of("button"));
    app.finish().await;
}

#[tokio::test]
async fn narrow_screens_hold_everything_and_the_theme_is_remembered() {
    let browser = browser!(360, 740);
    let app = TestApp::builder().start().await;
    let long = "anendlesswordwithoutanyspace".repeat(8);
    let job = app.submit(&with(body(&long, 3), json!({"num_images": 4, "negative_prompt": long}))).await;
    app.ended(job["id"].as_str().unwrap()).await;
    browser.open(&app.base).await;
    browser.until("the pictures are shown", &shown(4, 16)).await;
    browser.value("document.getElementById('craft').open = true").await;
    let overhang = "document.documentElement.scrollWidth - document.documentElement.clientWidth";
    assert_eq!(browser.value(overhang).await, 0, "nothing is wider than the screen");
    let beyond = browser.value("[...document.querySelectorAll('main *')].filter((node) => node.checkVisibility() && !node.closest('.unseen') && node.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5).map((node) => node.outerHTML.slice(0, 120))").await;
    assert_eq!(beyond, json!([]));

    for (scheme, theirs) in [("light", "dark"), ("dark", "light")] {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        browser.command("Emulation.setEmulatedMedia", features).await;
        browser.value("localStorage.clear(), delete document.documentElement.dataset.theme").await;
        browser.reload().await;
        let room = "getComputedStyle(document.body).backgroundColor";
        let before = browser.value(room).await;
        browser.click("#theme").await;
        let after = browser.value(room).await;
        assert_ne!(before, after, "the lights change");
        browser.reload().await;
        assert_eq!(browser.value(room).await, after, "and stay so");
        assert_eq!(browser.value("document.documentElement.dataset.theme").await, theirs);
    }
    browser.click(".open").await;
    browser.until("it is large", "document.getElementById('viewer').open").await;
    assert_eq!(browser.value(overhang).await, 0);
    app.finish().await;
}

#[tokio::test]
async fn a_full_queue_is_told_in_words() {
    let browser = browser!();
    let gate = Arc::new(Gate::default());
    let settings = |settings: &mut darkroom::config::Settings| {
        settings.queue.max_queued = 1;
        settings.workers.max_rows = 1;
    };
    let app = TestApp::builder().settings(settings).fault(gate.hook()).start().await;
    let runs = app.submit(&body("it runs", 1)).await;
    // Of another size, so that it does not join the batch that is held.
    app.running(runs["id"].as_str().unwrap()).await;
    let waits = app.submit(&with(body("it waits", 1), json!({"width": 32}))).await;
    browser.open(&app.base).await;
    browser.until("both are shown", "document.querySelectorAll('.card').length === 2").await;
    describe(&browser, "one too many", 1).await;
    browser.press("Generate").await;
    browser.until("it is refused", "!document.getElementById('refusal').hidden").await;
    let told = browser.find("#refusal").await.text().await.unwrap();
    assert!(told.starts_with("The queue is full: 1 jobs wait. Try again in ") && told.ends_with('.'), "{told}");
    assert_eq!(browser.find("#refusal").await.attr("role").await.unwrap().unwrap(), "alert");
    gate.open();
    for job in [runs, waits] {
        app.ended(job["id"].as_str().unwrap()).await;
    }
    // Once there is room, the same press is taken, and the refusal goes.
    browser.press("Generate").await;
    browser.until("the third is drawn", &shown(3, 16).replace("=== 16", "> 0")).await;
    assert_eq!(browser.value("document.getElementById('refusal').hidden").await, true);
    app.finish().await;
}

#[tokio::test]
async fn older_pictures_come_by_the_page() {
    let browser = browser!();
    let app = TestApp::builder().start().await;
    for seed in 0..26 {
        let job = app.submit(&with(body(&format!("number {seed}"), seed), json!({"steps": 1}))).await;
        app.ended(job["id"].as_str().unwrap()).await;
    }
    browser.open(&app.base).await;
    browser.until("a page is shown", &shown(24, 16)).await;
    browser.press("Show older pictures").await;
    browser.until("the rest is shown", &shown(26, 16)).await;
    assert_eq!(browser.value("document.getElementById('more').hidden").await, true);
    let titles = browser.value("[...document.querySelectorAll('.card h3')].map((title) => title.textContent)").await;
    let expected: Vec<String> = (0..26).rev().map(|seed| format!("number {seed}")).collect();
    assert_eq!(titles, json!(expected), "newest first");
    app.finish().await;
}
