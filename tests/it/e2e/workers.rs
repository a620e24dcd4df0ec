//! Several workers in one process.

use super::server::{Server, request};

#[tokio::test]
async fn two_cpu_workers_share_the_queue() {
    let data = tempfile::tempdir().unwrap();
    // In groups the number of forwards follows from the jobs; under `continuous` also from when they came.
    let settings = [("DARKROOM_WORKERS__DEVICES", r#"["cpu","cpu"]"#), ("DARKROOM_WORKERS__POLICY", "grouped")];
    let server = Server::start(data.path(), &settings);
    let mut jobs = Vec::new();
    for seed in 0..8 {
        // A group each: neither worker can take them all at once.
        jobs.push(server.submit(&request(seed, 20 + seed as u32)).await);
    }
    for job in &jobs {
        assert_eq!(server.finished(job).await["status"], "succeeded");
    }
    let stats = server.get("/v1/stats").await;
    let workers: Vec<u64> =
        stats["workers"].as_object().unwrap().values().map(|worker| worker["batches"].as_u64().unwrap()).collect();
    assert_eq!(workers.len(), 2, "{stats}");
    assert!(workers.iter().all(|batches| *batches > 0), "both have drawn: {stats}");
    // A job drawn twice would show more.
    assert_eq!(workers.iter().sum::<u64>(), (20..28).sum::<u64>(), "{stats}");
}
