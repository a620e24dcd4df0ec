//! The page on a server that asks for a key.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::app::{TestApp, body, key_of};
use crate::support::browser::Browser;

/// So many pictures are shown, decoded, from bytes that this page fetched.
fn shown(count: usize) -> String {
    let fetched = "img.naturalWidth === 16 && img.src.startsWith('blob:')";
    format!("[...document.querySelectorAll('.slot.done img')].filter((img) => {fetched}).length === {count}")
}

async fn give(browser: &Browser, key: &str) {
    browser.until("a key is asked for", "document.getElementById('key').open").await;
    browser.find("#key-field").await.send_keys(key).await.unwrap();
    browser.click("#key-form button").await;
}

#[tokio::test]
async fn the_page_asks_for_a_key_and_shows_that_keys_pictures() {
    let Some(browser) = Browser::start(1280, 900).await else { return };
    let app = TestApp::builder().key("alice", 1).key("bob", 1).start().await;
    for (name, seed) in [("alice", 1), ("bob", 2)] {
        let request = app.request_as(name, Method::POST, "/v1/jobs").header("prefer", "wait=60");
        request.json(&body(&format!("by {name}"), seed)).send().await.unwrap();
    }
    browser.requests().await;
    browser.open_without_form(&app.base).await;
    browser.until("it says why", "document.getElementById('key-why').textContent.includes('API key')").await;
    give(&browser, "dk_of-nobody").await;
    browser.until("it is none", "document.getElementById('key-why').textContent.includes('not known')").await;
    give(&browser, &key_of("alice")).await;
    browser.until("her picture is shown", &shown(1)).await;
    let titles = "[...document.querySelectorAll('.card h3')].map((node) => node.textContent)";
    assert_eq!(browser.value(titles).await, json!(["by alice"]));

    // What is drawn now is streamed, shown, opened large, offered to be saved and started from.
    browser.value("document.getElementById('craft').open = true").await;
    for (name, text) in [("prompt", "another"), ("width", "16"), ("height", "16"), ("steps", "4")] {
        browser.fill(name, text).await;
    }
    browser.press("Generate").await;
    browser.until("both pictures are shown", &shown(2)).await;
    let is_fetched = "document.querySelector('.download').href.startsWith('blob:')";
    assert_eq!(browser.value(is_fetched).await, true);
    browser.click(".slot.done .open").await;
    let large = "document.getElementById('viewer-image').src.startsWith('blob:') && document.getElementById('viewer-image').naturalWidth === 16";
    browser.until("it is shown large", large).await;
    browser.until("it can be saved", "document.querySelector('#viewer-actions a').href.startsWith('blob:')").await;
    browser.click("#viewer-close").await;
    browser.press("Start from this").await;
    let started =
        "!document.getElementById('easel').hidden && document.getElementById('init-preview').naturalWidth === 16";
    browser.until("it is in the form", started).await;
    browser.press("Generate").await;
    browser.until("all three are shown", &shown(3)).await;
    let request = app.request_as("alice", Method::GET, "/v1/jobs?limit=1").send().await.unwrap();
    let newest = request.json::<Value>().await.unwrap()["jobs"][0].clone();
    assert_eq!(newest["request"]["init_image"]["width"], 16, "{newest}");

    // Kept for this tab, and never in a URL.
    browser.reload().await;
    browser.until("they are there again", &shown(3)).await;
    let key = key_of("alice");
    let requests = browser.requests().await;
    assert!(requests.iter().any(|url| url.ends_with("/events")), "{requests:?}");
    assert!(requests.iter().all(|url| !url.contains(&key[3..])), "{requests:?}");
    browser.click("#forget-key").await;
    browser.until("a key is asked for again", "document.getElementById('key').open").await;
    assert_eq!(browser.value("Object.values(sessionStorage).some((text) => text.includes('dk_'))").await, false);
    // 401 of the requests without a key is told by the browser; nothing else went wrong.
    let console = browser.console().await;
    assert!(console.iter().all(|line| line.contains("401")), "{console:?}");
    app.finish().await;
}
