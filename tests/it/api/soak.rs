//! A soak: clients that submit, watch, leave, cancel, repeat and ask nonsense, and an engine that fails now and then, against
//! one durable app with two workers. Held to: every accepted job ends, a succeeded one has the very bytes that its request
//! always has, and, in long runs, memory that is flat.
//!
//! The suite soaks for some seconds. `SOAK_SECONDS=600 cargo test --locked --test it soak -- --nocapture` says how it went;
//! only runs of at least two minutes tell something of memory. `SOAK_SEED` draws another course.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use darkroom::diffusion::engine::{Fault, FaultPoint};
use darkroom::domain::JobId;
use futures::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::app::{TestApp, body, with};
use crate::support::{count_asked_for, skip, sse};

const CLIENTS: u64 = 12;
/// Requests that clients choose from: few, so that each is drawn often and its bytes are compared.
const REQUESTS: u64 = 24;
/// What is left when the clients have gone must have ended within so long.
const PATIENCE: Duration = Duration::from_secs(120);

/// SplitMix64 (Steele, Lea and Flood 2014, figure 15).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.bits() % end
    }
}

/// One job of twelve fails, somewhere, somehow.
fn injected(job: JobId, point: FaultPoint) -> Fault {
    let number = Random(job.to_string().parse::<uuid::Uuid>().unwrap().as_u128() as u64).bits();
    let fault = [Fault::Error, Fault::OutOfMemory, Fault::Panic, Fault::NotANumber][(number / 12 % 4) as usize];
    let is_here = match point {
        FaultPoint::Encode => (number / 48).is_multiple_of(4),
        FaultPoint::Evaluate { step, .. } => number / 48 % 4 < 3 && u64::from(step) == number / 192 % 4,
        FaultPoint::Decode => number / 48 % 4 == 3,
    };
    if number.is_multiple_of(12) && is_here { fault } else { Fault::None }
}

fn request(number: u64) -> Value {
    let samplers = ["euler", "ddim", "dpmpp_2m", "euler_a", "heun", "unipc", "dpmpp_sde"];
    let sides = [(16, 16), (24, 16), (16, 24)];
    let (width, height) = sides[(number / 2 % 3) as usize];
    let priority = ["interactive", "normal", "normal", "bulk"][(number / 3 % 4) as usize];
    let guidance_scale = if number.is_multiple_of(2) { 1.0 } else { 5.0 };
    let changes = json!({
        "width": width, "height": height, "steps": 2 + number % 5, "sampler": samplers[(number % 7) as usize],
        "guidance_scale": guidance_scale, "priority": priority, "num_images": 1 + u64::from(number.is_multiple_of(5)),
    });
    let asked = with(body(&format!("picture number {number}"), number), changes);
    if number % 12 == 7 { with(asked, json!({"expires_in": 1})) } else { asked }
}

fn drawn(random: &mut Random) -> (u64, Value) {
    let number = random.below(REQUESTS);
    (number, request(number))
}

/// What the clients share.
struct Soak {
    app: TestApp,
    until: Instant,
    /// Accepted, and not yet seen to have ended.
    open: Mutex<Vec<String>>,
    /// By request and picture.
    bytes: Mutex<HashMap<(u64, u64), Vec<u8>>>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

impl Soak {
    fn count(&self, what: &'static str) {
        *self.counts.lock().unwrap().entry(what).or_default() += 1;
    }

    /// The accepted job's id; nothing where the queue was full.
    async fn submitted(&self, asked: &Value) -> Option<String> {
        let response = self.app.post(asked).await;
        if response.status() == 429 {
            assert!(response.headers().contains_key("retry-after"));
            self.count("refused: the queue is full");
            tokio::time::sleep(Duration::from_millis(200)).await;
            return None;
        }
        assert_eq!(response.status(), 202, "{}", response.text().await.unwrap());
        let job: Value = response.json().await.unwrap();
        let id = job["id"].as_str().unwrap().to_owned();
        self.open.lock().unwrap().push(id.clone());
        self.count("accepted");
        Some(id)
    }

    fn has_ended(&self, id: &str) {
        self.open.lock().unwrap().retain(|open| open != id);
    }

    async fn watches_to_the_end(&self, random: &mut Random) {
        let (number, asked) = drawn(random);
        let Some(id) = self.submitted(&asked).await else { return };
        let events = sse::read(self.app.get(&format!("/v1/jobs/{id}/events")).await).await;
        let is_last = |name: &str| matches!(name, "succeeded" | "failed" | "cancelled");
        assert_eq!(events.iter().filter(|event| is_last(&event.name)).count(), 1, "{events:?}");
        assert!(is_last(&events.last().unwrap().name), "{events:?}");
        let job = self.app.json(&format!("/v1/jobs/{id}")).await;
        self.has_ended(&id);
        match job["status"].as_str().unwrap() {
            "succeeded" => self.looks_at(&job, number).await,
            "failed" => self.count("failed as injected, or expired"),
            other => panic!("nobody cancelled it: {other}"),
        }
        if random.below(3) == 0 {
            let deleted = self.app.request(Method::DELETE, &format!("/v1/jobs/{id}")).send().await.unwrap();
            assert_eq!(deleted.status(), 204);
            assert_eq!(self.app.get(&format!("/v1/jobs/{id}")).await.status(), 404);
            self.count("deleted");
        }
    }

    async fn looks_at(&self, job: &Value, number: u64) {
        self.count("succeeded and compared");
        let images = job["images"].as_array().unwrap();
        assert_eq!(images.len() as u64, request(number)["num_images"].as_u64().unwrap());
        for (index, image) in images.iter().enumerate() {
            let bytes = self.app.get(image["url"].as_str().unwrap()).await.bytes().await.unwrap().to_vec();
            let mut known = self.bytes.lock().unwrap();
            let first = known.entry((number, index as u64)).or_insert_with(|| bytes.clone());
            assert!(*first == bytes, "request {number}: another picture than before");
        }
    }

    async fn watches_and_leaves(&self, random: &mut Random) {
        let Some(id) = self.submitted(&drawn(random).1).await else { return };
        let mut stream = self.app.get(&format!("/v1/jobs/{id}/events")).await.bytes_stream();
        for _ in 0..random.below(4) {
            let _ = stream.next().await;
        }
        self.count("left while watching");
    }

    async fn cancels(&self, random: &mut Random) {
        let Some(id) = self.submitted(&drawn(random).1).await else { return };
        tokio::time::sleep(Duration::from_millis(random.below(60))).await;
        let answer = self.app.request(Method::DELETE, &format!("/v1/jobs/{id}")).send().await.unwrap();
        match answer.status().as_u16() {
            204 => self.has_ended(&id),
            status => assert!(status == 200 || status == 202, "{status}"),
        }
        self.count("cancelled");
    }

    async fn waits_for_the_picture(&self, random: &mut Random) {
        let (_, asked) = drawn(random);
        let request = self.app.request(Method::POST, "/v1/jobs").header("accept", "image/png").json(&asked);
        let patience = Duration::from_millis([5, 40, 60_000][random.below(3) as usize]);
        match tokio::time::timeout(patience, request.send()).await {
            Err(_) => self.count("hung up while waiting"),
            Ok(response) => {
                let status = response.unwrap().status().as_u16();
                assert!(matches!(status, 200 | 410 | 422 | 429 | 500 | 503 | 504), "{status}");
                self.count("waited for the picture");
            }
        }
    }

    async fn repeats(&self, random: &mut Random) {
        let (_, asked) = drawn(random);
        let key = format!("key-{}", random.bits());
        let send = || self.app.request(Method::POST, "/v1/jobs").header("idempotency-key", &key).json(&asked).send();
        let (first, second) = tokio::join!(send(), send());
        let (first, second) = (first.unwrap(), second.unwrap());
        if first.status() == 429 || second.status() == 429 {
            return;
        }
        let (first, second): (Value, Value) = (first.json().await.unwrap(), second.json().await.unwrap());
        assert_eq!(first["id"], second["id"]);
        self.open.lock().unwrap().push(first["id"].as_str().unwrap().to_owned());
        self.count("sent twice under one key");
    }

    async fn asks_nonsense(&self, random: &mut Random) {
        let changes = [json!({"steps": 0}), json!({"width": 17}), json!({"sampler": "none"}), json!({"what": 1})];
        let asked = with(request(0), changes[random.below(4) as usize].clone());
        let status = self.app.post(&asked).await.status().as_u16();
        assert!((400..500).contains(&status), "{status}");
        assert_eq!(self.app.get(&format!("/v1/jobs/{}", uuid::Uuid::now_v7())).await.status(), 404);
        for path in ["/v1/jobs?limit=5", "/v1/stats", "/metrics", "/readyz", "/v1/models"] {
            assert_eq!(self.app.get(path).await.status(), 200, "{path}");
        }
        self.count("asked nonsense");
    }

    /// Until the time is over, and on a slow machine until there is something to tell.
    fn goes_on(&self) -> bool {
        let now = Instant::now();
        now < self.until || (self.compared() < REQUESTS && now < self.until + PATIENCE)
    }

    fn compared(&self) -> u64 {
        self.counts.lock().unwrap().get("succeeded and compared").copied().unwrap_or_default()
    }

    async fn client(self: Arc<Self>, seed: u64) {
        let mut random = Random(seed);
        while self.goes_on() {
            match random.below(20) {
                0..=7 => self.watches_to_the_end(&mut random).await,
                8..=10 => self.watches_and_leaves(&mut random).await,
                11..=13 => self.cancels(&mut random).await,
                14..=16 => self.waits_for_the_picture(&mut random).await,
                17..=18 => self.repeats(&mut random).await,
                _ => self.asks_nonsense(&mut random).await,
            }
        }
    }

    /// Every job that was accepted has ended, whoever looked.
    async fn all_ended(&self) {
        let began = Instant::now();
        loop {
            let stats = self.app.json("/v1/stats").await;
            if (&stats["queued"], &stats["running"]) == (&json!(0), &json!(0)) {
                break;
            }
            assert!(began.elapsed() < PATIENCE, "jobs without an end: {stats}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let open = std::mem::take(&mut *self.open.lock().unwrap());
        for id in open {
            let response = self.app.get(&format!("/v1/jobs/{id}")).await;
            // Those that ended long ago are removed.
            if response.status() != 404 {
                let job: Value = response.json().await.unwrap();
                let status = job["status"].as_str().unwrap();
                assert!(matches!(status, "succeeded" | "failed" | "cancelled"), "{id}: {status}");
            }
        }
    }
}

/// Of this process, in MiB; `None` where the system does not tell.
fn resident_mib() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(kib.trim().trim_end_matches(" kB").parse::<f64>().ok()? / 1024.0)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Of the second and the last quarter of a run; the first is for getting warm.
fn flat(samples: &[f64]) -> (f64, f64) {
    let quarter = samples.len() / 4;
    (median(samples[quarter..2 * quarter].to_vec()), median(samples[3 * quarter..].to_vec()))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_job_of_a_soak_ends_as_it_should() {
    let seconds = count_asked_for("SOAK_SECONDS", 15);
    let seed = count_asked_for("SOAK_SEED", 1);
    let app = TestApp::builder().durable().fault(Arc::new(injected)).settings(|settings| {
        settings.workers.devices = vec!["cpu".to_owned(), "cpu".to_owned()];
        // What has ended is removed within the run, so that whatever grows is a leak.
        settings.queue.retention_s = 30;
    });
    let mut app = app.start().await;
    // On a busy machine a bulk job waits for up to five minutes.
    app.client = reqwest::Client::builder().timeout(Duration::from_secs(900)).build().unwrap();
    let soak = Arc::new(Soak {
        app,
        until: Instant::now() + Duration::from_secs(seconds),
        open: Mutex::default(),
        bytes: Mutex::default(),
        counts: Mutex::default(),
    });
    let clients: Vec<_> = (0..CLIENTS).map(|k| tokio::spawn(soak.clone().client(seed * 1000 + k))).collect();
    let mut memory = Vec::new();
    while Instant::now() < soak.until {
        memory.extend(resident_mib());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    for client in clients {
        client.await.unwrap();
    }
    soak.all_ended().await;
    let counts = soak.counts.lock().unwrap().clone();
    assert!(soak.compared() >= REQUESTS, "too little was drawn to tell anything: {counts:?}");
    println!("soaked for {seconds} s with seed {seed}: {counts:#?}");
    if memory.is_empty() {
        skip("the memory of the soak", "/proc tells none");
    } else if seconds >= 120 {
        let (early, late) = flat(&memory);
        println!("resident: {early:.0} MiB in the second quarter, {late:.0} MiB in the last (medians)");
        assert!(late < 1.05 * early + 8.0, "memory grew from {early:.0} to {late:.0} MiB");
    }
    let Ok(soak) = Arc::try_unwrap(soak) else { panic!("a client still holds the app") };
    soak.app.finish().await;
}
