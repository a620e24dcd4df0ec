//! The policy `continuous`, from the queue to the device: a busy worker takes jobs in.

use std::sync::Arc;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::app::{Builder, TestApp, body, with};
use crate::support::gate::Gate;

fn continuous(gate: &Arc<Gate>) -> Builder {
    TestApp::builder().fault(gate.hook()).settings(|settings| settings.workers.policy = "continuous".to_owned())
}

fn ended_at(job: &Value) -> OffsetDateTime {
    OffsetDateTime::parse(job["ended_at"].as_str().unwrap(), &Rfc3339).unwrap()
}

async fn a_job_joins_the_batch_that_runs(app: TestApp, gate: Arc<Gate>) {
    let long = app.submit(&with(body("a long one", 1), json!({"steps": 12}))).await;
    let long = long["id"].as_str().unwrap();
    app.running(long).await;
    // The first is in its second step, and stays there until the second has been taken from the queue.
    let short = app.submit(&with(body("a short one", 2), json!({"steps": 3, "sampler": "euler_a"}))).await;
    let short = short["id"].as_str().unwrap();
    app.running(short).await;
    app.aboard(2).await;
    gate.open();
    for id in [long, short] {
        assert_eq!(app.ended(id).await["status"], "succeeded");
    }
    // Each of its three steps beside the first, whose others it took alone.
    assert_eq!(app.metric("darkroom_batches_mixed_total").await, 3.0);
    assert_eq!(app.metric("darkroom_batch_samples_count").await, 12.0);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_joins_the_batch_that_runs_from_memory() {
    let gate = Arc::new(Gate::after_steps(1));
    a_job_joins_the_batch_that_runs(continuous(&gate).start().await, gate).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_joins_the_batch_that_runs_from_sqlite() {
    let gate = Arc::new(Gate::after_steps(1));
    a_job_joins_the_batch_that_runs(continuous(&gate).durable().start().await, gate).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_size_has_its_turn_before_what_stands_after_it() {
    let gate = Arc::new(Gate::after_steps(1));
    let app = continuous(&gate).start().await;
    let mut jobs = Vec::new();
    // The second waits for its turn: it is nothing to take in.
    for (seed, width, steps, priority) in [(1, 16, 4, "normal"), (2, 32, 4, "normal"), (3, 16, 40, "bulk")] {
        let changes = json!({"width": width, "steps": steps, "priority": priority});
        let job = app.submit(&with(body("a picture", seed), changes)).await;
        jobs.push(job["id"].as_str().unwrap().to_owned());
        if seed != 2 {
            app.running(&jobs[jobs.len() - 1]).await;
        }
    }
    app.aboard(2).await;
    gate.open();
    let mut ends = Vec::new();
    for id in &jobs {
        let job = app.ended(id).await;
        assert_eq!(job["status"], "succeeded", "{job}");
        ends.push(ended_at(&job));
    }
    // The third joined the first, then gave way.
    assert!(ends[0] < ends[1] && ends[1] < ends[2], "{ends:?}");
    app.finish().await;
}

/// Widths and priorities of jobs: a bulk one runs alone with room for nobody, then an interactive one comes.
async fn an_interactive_job_goes_first(widths: [u32; 2]) {
    let gate = Arc::new(Gate::after_steps(1));
    let app = continuous(&gate).settings(|settings| settings.workers.max_rows = 2).start().await;
    let bulk = with(body("whenever there is room", 1), json!({"width": widths[0], "steps": 30, "priority": "bulk"}));
    let bulk = app.submit(&bulk).await["id"].as_str().unwrap().to_owned();
    app.running(&bulk).await;
    let now = with(body("someone watches", 2), json!({"width": widths[1], "steps": 3, "priority": "interactive"}));
    let now = app.submit(&now).await["id"].as_str().unwrap().to_owned();
    app.running(&now).await;
    app.aboard(2).await;
    gate.open();
    let ended = [app.ended(&now).await, app.ended(&bulk).await];
    for job in &ended {
        assert_eq!(job["status"], "succeeded", "{job}");
    }
    assert!(ended_at(&ended[0]) < ended_at(&ended[1]), "{ended:?}");
    // Nobody beside anybody: there was no room, or another size.
    assert_eq!(app.metric("darkroom_batch_samples_count").await, 33.0);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interactive_job_parks_a_bulk_job_of_its_size() {
    an_interactive_job_goes_first([16, 16]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interactive_job_parks_a_bulk_job_of_another_size() {
    an_interactive_job_goes_first([16, 32]).await;
}
