use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use darkroom::diffusion::engine::{Fault, FaultHook, FaultPoint};
use darkroom::domain::Cost;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::app::{TestApp, body, with};
use crate::support::gate::Gate;
use crate::support::sse;

#[tokio::test]
async fn a_job_goes_from_accepted_to_succeeded() {
    let app = TestApp::builder().durable().start().await;
    let response = app.post(&with(body("a house", 5), json!({"num_images": 2, "metadata": {"mine": [1, "x"]}}))).await;
    assert_eq!(response.status(), 202);
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    let job: Value = response.json().await.unwrap();
    assert_eq!(location, format!("/v1/jobs/{}", job["id"].as_str().unwrap()));
    assert_eq!(job["links"]["self"], location);
    let ended = app.ended(job["id"].as_str().unwrap()).await;
    assert_eq!(ended["status"], "succeeded", "{ended}");
    assert_eq!(ended["progress"]["step"], 8);
    assert_eq!(ended["request"]["metadata"], json!({"mine": [1, "x"]}));
    let images = ended["images"].as_array().unwrap();
    assert_eq!(images.iter().map(|image| image["seed"].as_u64().unwrap()).collect::<Vec<_>>(), [5, 6]);
    assert!(ended["timings"]["total_ms"].is_u64() && ended["expires_at"].is_string());
    app.finish().await;
}

#[tokio::test]
async fn the_resolved_request_can_be_sent_again_and_gives_the_same_bytes() {
    let app = TestApp::builder().start().await;
    let wait = |body: Value| {
        let request = app.request(Method::POST, "/v1/jobs").header("prefer", "wait=60").json(&body);
        async move { request.send().await.unwrap() }
    };
    let response = wait(json!({"prompt": "a house", "width": 16, "height": 16, "steps": 3})).await;
    assert_eq!(
        (response.status().as_u16(), response.headers()["preference-applied"].to_str().unwrap()),
        (200, "wait=60")
    );
    let first: Value = response.json().await.unwrap();
    let again: Value = wait(first["request"].clone()).await.json().await.unwrap();
    assert_eq!(again["request"], first["request"]);
    assert_eq!(again["images"][0]["sha256"], first["images"][0]["sha256"]);
    app.finish().await;
}

#[tokio::test]
async fn samplers_answer_to_the_names_of_other_programs() {
    let app = TestApp::builder().start().await;
    for (asked, sampler, schedule) in [
        (json!({"sampler": "DPM++ 2M SDE Karras"}), "dpmpp_2m_sde", "karras"),
        (json!({"sampler": "DPM++ 2M SDE Karras", "sigma_schedule": "Karras"}), "dpmpp_2m_sde", "karras"),
        (json!({"sampler": "HeunDiscreteScheduler", "sigma_schedule": "SGM Uniform"}), "heun", "sgm_uniform"),
        (json!({"sampler": "Euler a"}), "euler_a", "default"),
    ] {
        let job = app.submit(&with(body("a house", 1), asked.clone())).await;
        assert_eq!(
            (job["request"]["sampler"].as_str(), job["request"]["sigma_schedule"].as_str()),
            (Some(sampler), Some(schedule)),
            "{asked}"
        );
        assert_eq!(app.ended(job["id"].as_str().unwrap()).await["status"], "succeeded", "{asked}");
    }
    app.finish().await;
}

#[tokio::test]
async fn the_same_seed_gives_the_same_bytes_alone_and_among_fifteen_others() {
    let gate = Arc::new(Gate::default());
    let roomy = Cost { fixed: 1.0, per_row: 0.01 };
    let app = TestApp::builder().fault(gate.hook()).cost(roomy).start().await;
    // The first is held in the engine, so that the sixteen stand in the queue together.
    let first = app.submit(&body("first", 1)).await;
    let wanted = with(body("a house", 77), json!({"guidance_scale": 4.0, "sampler": "euler_a"}));
    let mut ids = Vec::new();
    for k in 0..16u64 {
        let mut request = body(&format!("neighbour {k}"), k);
        if k == 9 {
            request = wanted.clone();
        }
        ids.push(app.submit(&request).await["id"].as_str().unwrap().to_owned());
    }
    gate.open();
    app.ended(first["id"].as_str().unwrap()).await;
    let mut among = Value::Null;
    for (k, id) in ids.iter().enumerate() {
        let ended = app.ended(id).await;
        assert_eq!(ended["status"], "succeeded");
        if k == 9 {
            among = ended;
        }
    }
    let alone = app.submit(&wanted).await;
    let alone = app.ended(alone["id"].as_str().unwrap()).await;
    assert_eq!(alone["images"][0]["sha256"], among["images"][0]["sha256"]);
    // They did travel together: sixteen guided and unguided samples in one forward.
    assert!(app.metric("darkroom_batch_jobs_bucket{le=\"8\"}").await < app.metric("darkroom_batch_jobs_count").await);
    app.finish().await;
}

#[tokio::test]
async fn sixty_four_mixed_jobs_succeed_in_groups_on_two_workers() {
    let app = TestApp::builder()
        .settings(|settings| settings.workers.devices = vec!["cpu".to_owned(), "cpu".to_owned()])
        .settings(|settings| settings.workers.policy = "grouped".to_owned())
        .start()
        .await;
    let mut ids = Vec::new();
    for k in 0..64u64 {
        let (width, steps) = ([16, 32][(k % 2) as usize], [2, 3, 5][(k % 3) as usize]);
        let change = json!({"width": width, "steps": steps, "guidance_scale": (k % 5) as f64});
        ids.push(app.submit(&with(body("mixed", k), change)).await["id"].as_str().unwrap().to_owned());
    }
    for id in &ids {
        assert_eq!(app.ended(id).await["status"], "succeeded");
    }
    assert_eq!(app.metric("darkroom_jobs_total{status=\"succeeded\"}").await, 64.0);
    assert_eq!(app.metric("darkroom_batches_mixed_total").await, 0.0);
    let text = app.get("/metrics").await.text().await.unwrap();
    let groups: HashSet<&str> = text.lines().filter(|line| line.starts_with("darkroom_batches_total{")).collect();
    assert_eq!(groups.len(), 6, "two sizes, three step counts: {groups:?}");
    // Fewer forwards than evaluations: they were shared.
    let evaluations: u64 = (0..64).map(|k| [2, 3, 5][k % 3]).sum();
    assert!(app.metric("darkroom_batch_rows_count").await < evaluations as f64);
    app.finish().await;
}

#[tokio::test]
async fn a_waiting_job_is_cancelled_at_once_a_running_one_at_its_next_step() {
    let gate = Arc::new(Gate::default());
    let app = TestApp::builder().fault(gate.hook()).start().await;
    let running = app.submit(&with(body("runs", 1), json!({"steps": 100}))).await["id"].as_str().unwrap().to_owned();
    let started = app.get(&format!("/v1/jobs/{running}/events")).await;
    sse::read_until(started, |event| event.name == "started").await;
    let waiting = app.submit(&body("waits", 2)).await;
    assert_eq!(waiting["queue_position"], 0);
    let waiting = waiting["id"].as_str().unwrap().to_owned();

    let cancelled = app.request(Method::DELETE, &format!("/v1/jobs/{waiting}")).send().await.unwrap();
    assert_eq!(cancelled.status(), 200);
    assert_eq!(cancelled.json::<Value>().await.unwrap()["status"], "cancelled");
    let asked = app.request(Method::DELETE, &format!("/v1/jobs/{running}")).send().await.unwrap();
    assert_eq!(asked.status(), 202);
    gate.open();
    let ended = app.ended(&running).await;
    assert_eq!(ended["status"], "cancelled");
    assert_eq!(ended["images"], json!([]));

    // An ended job is removed.
    let removed = app.request(Method::DELETE, &format!("/v1/jobs/{running}")).send().await.unwrap();
    assert_eq!(removed.status(), 204);
    assert_eq!(app.get(&format!("/v1/jobs/{running}")).await.status(), 404);
    app.finish().await;
}

#[tokio::test]
async fn a_panic_in_one_job_fails_that_job_alone() {
    let done = Arc::new(AtomicBool::new(false));
    let hook: FaultHook = Arc::new(move |_, point| match point {
        FaultPoint::Decode if !done.swap(true, Ordering::SeqCst) => Fault::Panic,
        _ => Fault::None,
    });
    let app = TestApp::builder().fault(hook).start().await;
    let first = app.submit(&body("guilty", 1)).await;
    let ended = app.ended(first["id"].as_str().unwrap()).await;
    assert_eq!((&ended["status"], &ended["error"]["code"]), (&json!("failed"), &json!("internal")));
    let next = app.submit(&body("innocent", 2)).await;
    assert_eq!(app.ended(next["id"].as_str().unwrap()).await["status"], "succeeded");
    app.finish().await;
}

#[tokio::test]
async fn a_full_queue_answers_429_with_retry_after() {
    let gate = Arc::new(Gate::default());
    let app = TestApp::builder().fault(gate.hook()).settings(|settings| settings.queue.max_queued = 2).start().await;
    let running = app.submit(&body("runs", 0)).await["id"].as_str().unwrap().to_owned();
    let started = app.get(&format!("/v1/jobs/{running}/events")).await;
    sse::read_until(started, |event| event.name == "started").await;
    let mut ids = vec![running];
    for k in 1..3 {
        ids.push(app.submit(&body("waits", k)).await["id"].as_str().unwrap().to_owned());
    }
    let refused = app.post(&body("too many", 3)).await;
    assert_eq!(refused.status(), 429);
    let seconds: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=120).contains(&seconds), "{seconds}");
    assert_eq!(refused.json::<Value>().await.unwrap()["code"], "queue_full");
    gate.open();
    for id in ids {
        app.ended(&id).await;
    }
    app.finish().await;
}

#[tokio::test]
async fn an_idempotency_key_makes_a_retry_safe() {
    let app = TestApp::builder().start().await;
    let send = |key: &'static str, body: Value| {
        app.request(Method::POST, "/v1/jobs").header("idempotency-key", key).json(&body).send()
    };
    // No seed: a second job would draw another.
    let request = json!({"prompt": "once", "width": 16, "height": 16, "steps": 2});
    let first = send("a", request.clone()).await.unwrap();
    assert_eq!(first.status(), 202);
    let first: Value = first.json().await.unwrap();
    let again = send("a", request.clone()).await.unwrap();
    assert_eq!(again.status(), 200);
    assert_eq!(again.json::<Value>().await.unwrap()["id"], first["id"]);
    let reused = send("a", with(request.clone(), json!({"prompt": "twice"}))).await.unwrap();
    assert_eq!(reused.status(), 409);
    assert_eq!(reused.json::<Value>().await.unwrap()["code"], "idempotency_mismatch");
    let other: Value = send("b", request).await.unwrap().json().await.unwrap();
    assert_ne!(other["id"], first["id"]);
    for job in [first, other] {
        app.ended(job["id"].as_str().unwrap()).await;
    }
    app.finish().await;
}

#[tokio::test]
async fn lists_page_by_cursor_newest_first() {
    let app = TestApp::builder().start().await;
    let mut ids = Vec::new();
    for k in 0..5 {
        ids.push(app.submit(&body("listed", k)).await["id"].as_str().unwrap().to_owned());
    }
    for id in &ids {
        app.ended(id).await;
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = app.json(&format!("/v1/jobs?limit=2&status=succeeded{cursor}")).await;
        seen.extend(page["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    ids.reverse();
    assert_eq!(seen, ids);
    assert_eq!(app.json("/v1/jobs?status=failed").await["jobs"], json!([]));
    app.finish().await;
}
