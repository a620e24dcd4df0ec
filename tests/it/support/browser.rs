//! A real Chromium, driven over WebDriver.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fantoccini::elements::Element;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};

/// Far more than anything here takes on a busy machine: a guard against hanging, not a measurement.
const DEADLINE: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(40);

/// A browser of its own, with its driver; both end when dropped.
pub(crate) struct Browser {
    driver: Child,
    client: Client,
    /// The driver's URL of this session: Chromium's own commands have no place in the WebDriver crate.
    session: String,
    http: reqwest::Client,
}

impl Browser {
    /// Starts Chromium with a viewport of that size. `None`, and a line that says so, where the machine has none; with
    /// `DARKROOM_FORBID_SKIPS=1` that is a failure.
    pub(crate) async fn start(width: u32, height: u32) -> Option<Self> {
        let Some((mut driver, url)) = start_driver() else {
            assert!(
                std::env::var_os("DARKROOM_FORBID_SKIPS").is_none_or(|value| value != "1"),
                "there is no chromedriver here, and skips are forbidden; install chromium and chromium-driver"
            );
            eprintln!("SKIPPED: there is no chromedriver here; install chromium and chromium-driver");
            return None;
        };
        // Without a sandbox: tests run as root in containers, where Chromium's does not start. Only our page is opened.
        let arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--lang=en-GB"];
        let capabilities = json!({
            "browserName": "chrome",
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        });
        let mut builder = ClientBuilder::new(HttpConnector::new());
        builder.capabilities(capabilities.as_object().unwrap().clone());
        let client = match builder.connect(&url).await {
            Ok(client) => client,
            Err(error) => {
                // Not a skip: a driver without its browser is a broken machine.
                let _ = driver.kill();
                panic!("chromedriver is here, but starts no Chromium: {error}");
            }
        };
        let id = client.session_id().await.unwrap().unwrap();
        let browser = Self { driver, client, session: format!("{url}/session/{id}"), http: reqwest::Client::new() };
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        browser.command("Emulation.setDeviceMetricsOverride", metrics).await;
        Some(browser)
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let response = self.http.post(format!("{}/{path}", self.session)).json(&body).send().await.unwrap();
        let answer: Value = response.json().await.unwrap();
        assert!(answer["value"]["error"].is_null(), "{path}: {answer}");
        answer["value"].clone()
    }

    /// One of Chromium's own commands.
    pub(crate) async fn command(&self, name: &str, parameters: Value) -> Value {
        self.post("goog/cdp/execute", json!({"cmd": name, "params": parameters})).await
    }

    async fn log(&self, kind: &str) -> Vec<Value> {
        self.post("se/log", json!({"type": kind})).await.as_array().unwrap().clone()
    }

    /// What the console said since it was last asked: errors of scripts, refused requests, broken policies.
    pub(crate) async fn console(&self) -> Vec<String> {
        let lines = self.log("browser").await;
        lines.iter().map(|line| format!("{} {}", line["level"], line["message"])).collect()
    }

    /// The URLs of all requests since it was last asked.
    pub(crate) async fn requests(&self) -> Vec<String> {
        let lines = self.log("performance").await;
        let messages = lines.iter().map(|line| serde_json::from_str(line["message"].as_str().unwrap()).unwrap());
        let sent = messages.filter(|told: &Value| told["message"]["method"] == "Network.requestWillBeSent");
        sent.map(|told| told["message"]["params"]["request"]["url"].as_str().unwrap().to_owned()).collect()
    }

    /// For a page that cannot fill its form yet.
    pub(crate) async fn open_without_form(&self, url: &str) {
        self.client.goto(url).await.unwrap();
    }

    pub(crate) async fn open(&self, url: &str) {
        self.open_without_form(url).await;
        // The page fills its form when it knows the models.
        self.until("the form is filled", "document.getElementById('width').value !== ''").await;
    }

    pub(crate) async fn reload(&self) {
        self.client.refresh().await.unwrap();
        self.until("the form is filled", "document.getElementById('width').value !== ''").await;
    }

    /// An expression's value.
    pub(crate) async fn value(&self, expression: &str) -> Value {
        self.client.execute(&format!("return ({expression})"), Vec::new()).await.unwrap()
    }

    /// Waits until an expression is true.
    pub(crate) async fn until(&self, what: &str, expression: &str) {
        let began = Instant::now();
        while !self.value(&format!("Boolean({expression})")).await.as_bool().unwrap() {
            if began.elapsed() > DEADLINE {
                let page = self.value("document.body.innerText").await;
                panic!("never came true: {what} ({expression}); console {:?}; page {page}", self.console().await);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    pub(crate) async fn find(&self, selector: &str) -> Element {
        self.client.find(Locator::Css(selector)).await.unwrap()
    }

    pub(crate) async fn click(&self, selector: &str) {
        self.find(selector).await.click().await.unwrap();
    }

    /// The button or link with these words.
    pub(crate) async fn press(&self, words: &str) {
        let found = format!("//main//button[normalize-space()='{words}']");
        self.client.find(Locator::XPath(&found)).await.unwrap().click().await.unwrap();
    }

    /// Types into a field of the form, by its name, in place of what stood there.
    pub(crate) async fn fill(&self, name: &str, text: &str) {
        let field = self.find(&format!("[name='{name}']")).await;
        if field.tag_name().await.unwrap() == "select" {
            return field.select_by_value(text).await.unwrap();
        }
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    /// Presses keys, wherever the focus is.
    pub(crate) async fn keys(&self, keys: &str) {
        self.client.active_element().await.unwrap().send_keys(keys).await.unwrap();
    }

    /// Presses Tab until the focus is on something the selector names; fails when it comes round without.
    pub(crate) async fn tab_to(&self, selector: &str) {
        for _ in 0..80 {
            if self.value(&format!("document.activeElement.matches(\"{selector}\")")).await == true {
                return;
            }
            self.keys("\u{e004}").await;
        }
        panic!("Tab does not lead to {selector}");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // A driver that is killed leaves its browser behind, so the session is ended first.
        let authority = self.session.trim_start_matches("http://").split('/').next().unwrap_or_default();
        if let Ok(mut driver) = TcpStream::connect(authority) {
            let path = self.session.trim_start_matches("http://").trim_start_matches(authority);
            let request = format!("DELETE {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
            // It answers when the browser has ended.
            let _ = driver.set_read_timeout(Some(Duration::from_secs(20)));
            let _ = driver.write_all(request.as_bytes()).and_then(|()| driver.read(&mut [0; 1024]));
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// chromedriver on a port of its own choice, and its URL.
fn start_driver() -> Option<(Child, String)> {
    let mut driver = Command::new("chromedriver").arg("--port=0").stdout(Stdio::piped()).spawn().ok()?;
    let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
    let port = lines.by_ref().map_while(Result::ok).find_map(|line| {
        let (_, port) = line.split_once("started successfully on port ")?;
        Some(port.trim_end_matches('.').to_owned())
    });
    // Read on, so that it never waits for room in the pipe.
    std::thread::spawn(move || lines.for_each(drop));
    Some((driver, format!("http://127.0.0.1:{}", port.expect("chromedriver says its port"))))
}
