//! The policy `continuous`, from the queue to the device: a busy worker takes jobs in.

use std::sync::Arc;

use serde_json::json;

use crate::support::app::{Builder, TestApp, body, with};
use crate::support::gate::Gate;

fn continuous(gate: &Arc<Gate>) -> Builder {
    TestApp::builder().fault(gate.hook()).settings(|settings| settings.workers.policy = "continuous".to_owned())
}

async fn a_job_joins_the_batch_that_runs(app: TestApp, gate: Arc<Gate>) {
    let long = app.submit(&with(body("a long one", 1), json!({"steps": 12}))).await;
    let long = long["id"].as_str().unwrap();
    app.running(long).await;
    // The first is in its second step, and stays there until the second has been taken from the queue.
    let short = app.submit(&with(body("a short one", 2), json!({"steps": 3, "sampler": "euler_a"}))).await;
    let short = short["id"].as_str().unwrap();
    app.running(short).await;
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
async fn another_size_has_its_turn_before_what_came_after_it() {
    let gate = Arc::new(Gate::after_steps(1));
    let app = continuous(&gate).start().await;
    let mut jobs = Vec::new();
    // The second waits for its turn: it is nothing to take in.
    for (seed, width, steps) in [(1, 16, 4), (2, 32, 4), (3, 16, 40)] {
        let job = app.submit(&with(body("a picture", seed), json!({"width": width, "steps": steps}))).await;
        jobs.push(job["id"].as_str().unwrap().to_owned());
        if seed != 2 {
            app.running(&jobs[jobs.len() - 1]).await;
        }
    }
    gate.open();
    let mut ends = Vec::new();
    for id in &jobs {
        let job = app.ended(id).await;
        assert_eq!(job["status"], "succeeded", "{job}");
        ends.push(job["ended_at"].as_str().unwrap().to_owned());
    }
    // The third joined the first's turn of four steps, then gave way.
    assert!(ends[0] < ends[1] && ends[1] < ends[2], "{ends:?}");
    app.finish().await;
}
