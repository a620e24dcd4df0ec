//! An accepted job is never lost and never ends twice, whatever happens to the process.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::server::{Server, generated, generated_with, request};

/// Long enough that a server can be stopped in the middle of it.
const LONG: u32 = 150;

#[tokio::test]
async fn twenty_jobs_outlive_kill_9() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let mut jobs = Vec::new();
    for seed in 0..20 {
        // Three groups: some are aboard when the end comes, others wait.
        jobs.push(server.submit(&request(seed, [4, LONG, LONG - 1][seed as usize % 3])).await);
    }
    // The first group has ended, the second is under way.
    server.finished(&jobs[0]).await;
    server.events_until(&jobs[1], "progress").await;
    let before = server.get(&format!("/v1/jobs/{}", jobs[1])).await;
    assert_eq!(before["status"], "running", "killed too late to prove anything");
    server.kill();

    let server = Server::start(data.path(), &[]);
    for (seed, job) in jobs.iter().enumerate() {
        let ended = server.finished(job).await;
        assert_eq!(ended["status"], "succeeded", "{ended}");
        assert_eq!(ended["images"].as_array().unwrap().len(), 1);
        let attempts = ended["attempts"].as_u64().unwrap();
        assert!((1..=2).contains(&attempts), "job {seed}: {attempts} attempts");
        assert!(server.picture(job).await.starts_with(b"\x89PNG"), "job {seed}");
    }
    let twice = server.get(&format!("/v1/jobs/{}", jobs[1])).await;
    assert_eq!(twice["attempts"], 2, "it was aboard when the server was killed");
    assert_eq!(server.picture(&jobs[1]).await, generated(1, LONG), "an interrupted job draws the same picture");
    let all = server.get("/v1/jobs?limit=200").await;
    assert_eq!(all["jobs"].as_array().unwrap().len(), jobs.len(), "no job appears twice");
}

#[tokio::test]
async fn sigterm_lets_a_job_aboard_finish_and_answers_who_waits_for_it() {
    let data = tempfile::tempdir().unwrap();
    // No hurry: what is tested is that a drain waits, not how fast this machine draws.
    let server = Server::start(data.path(), &[("DARKROOM_SERVER__DRAIN_S", "200")]);
    let waiting = tokio::spawn(server.post(&request(7, LONG)).header("accept", "image/png").send());
    // The only job there is.
    let job = loop {
        let list = server.get("/v1/jobs").await;
        if let Some(id) = list["jobs"][0]["id"].as_str() {
            break id.to_owned();
        }
        tokio::task::yield_now().await;
    };
    server.events_until(&job, "progress").await;
    server.send_sigterm();
    let response = waiting.await.unwrap().unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.bytes().await.unwrap(), generated(7, LONG));
    assert!(server.ended().await.success(), "a drained server ends well");

    let server = Server::start(data.path(), &[]);
    let kept = server.get(&format!("/v1/jobs/{job}")).await;
    assert_eq!((&kept["status"], &kept["attempts"]), (&"succeeded".into(), &1.into()), "{kept}");
}

#[tokio::test]
async fn what_a_drain_cannot_finish_goes_back_uncounted() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[("DARKROOM_SERVER__DRAIN_S", "0")]);
    let jobs = [server.submit(&request(1, LONG)).await, server.submit(&request(2, LONG - 1)).await];
    server.events_until(&jobs[0], "progress").await;
    server.send_sigterm();
    assert!(server.ended().await.success(), "a drained server ends well");

    let server = Server::start(data.path(), &[]);
    for job in &jobs {
        let ended = server.finished(job).await;
        assert_eq!((&ended["status"], &ended["attempts"]), (&"succeeded".into(), &1.into()), "{ended}");
    }
}

#[tokio::test]
async fn the_picture_a_job_starts_from_outlives_kill_9() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images/files/420.jpg");
    let coded = STANDARD.encode(std::fs::read(&path).unwrap());
    let mut body = request(3, LONG);
    body["init_image"] = coded.into();
    body["strength"] = 0.9.into();
    let job = server.submit(&body).await;
    server.events_until(&job, "progress").await;
    assert_eq!(server.get(&format!("/v1/jobs/{job}")).await["status"], "running", "killed too late to prove anything");
    server.kill();

    let server = Server::start(data.path(), &[]);
    let ended = server.finished(&job).await;
    assert_eq!((&ended["status"], &ended["attempts"]), (&"succeeded".into(), &2.into()), "{ended}");
    let path = path.display().to_string();
    let flags = ["--init-image", &path, "--strength", "0.9"];
    assert_eq!(server.picture(&job).await, generated_with(3, LONG, &flags), "the same picture, from the same picture");
}
