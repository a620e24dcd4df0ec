//! What a drain cannot finish is parked: the next server goes on where it stood, to the same bytes.

use std::path::{Path, PathBuf};

use super::server::{Server, generated, request};

const LONG: u32 = 150;
/// Steps of the first server.
const SOME: u64 = 20;

fn state(data: &Path, job: &str) -> PathBuf {
    data.join(format!("artifacts/jobs/{job}/parked"))
}

/// Evaluations that a server has made.
async fn evaluations(server: &Server) -> u64 {
    let stats = server.get("/v1/stats").await;
    stats["workers"].as_object().unwrap().values().map(|worker| worker["batches"].as_u64().unwrap()).sum()
}

/// Jobs that it went on with where they had been parked.
async fn resumed(server: &Server) -> u64 {
    let metrics = reqwest::get(format!("{}/metrics", server.url())).await.unwrap().text().await.unwrap();
    let told = metrics.lines().find_map(|line| line.strip_prefix("darkroom_resumed_jobs_total "));
    told.expect("the metric").parse().unwrap()
}

async fn steps_taken(server: &Server, job: &str) -> u64 {
    server.get(&format!("/v1/jobs/{job}")).await["progress"]["step"].as_u64().unwrap()
}

async fn drained(server: Server) {
    server.send_sigterm();
    assert!(server.ended().await.success(), "a drained server ends well");
}

const NOW: [(&str, &str); 2] = [("DARKROOM_SERVER__DRAIN_S", "0"), ("DARKROOM_WORKERS__MAX_ROWS", "2")];

#[tokio::test]
async fn a_bulk_job_that_a_drain_parked_goes_on_to_the_same_bytes() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &NOW);
    let mut body = request(1, LONG);
    body["priority"] = "bulk".into();
    body["sampler"] = "euler_a".into();
    let job = server.submit(&body).await;
    while steps_taken(&server, &job).await < SOME {
        tokio::task::yield_now().await;
    }
    drained(server).await;
    assert!(state(data.path(), &job).exists(), "nothing was parked");

    let server = Server::start(data.path(), &NOW);
    let ended = server.finished(&job).await;
    assert_eq!((&ended["status"], &ended["attempts"]), (&"succeeded".into(), &1.into()), "{ended}");
    let made = evaluations(&server).await;
    assert!(made <= u64::from(LONG) - SOME, "{made} evaluations after the first {SOME}");
    assert_eq!(resumed(&server).await, 1);
    // It goes right after the end is told.
    let gone = async {
        while state(data.path(), &job).exists() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), gone).await.expect("a state outlived its job");
    let picture = server.picture(&job).await;
    drained(server).await;

    let elsewhere = tempfile::tempdir().unwrap();
    let server = Server::start(elsewhere.path(), &[]);
    let undisturbed = server.submit(&body).await;
    server.finished(&undisturbed).await;
    assert_eq!(server.picture(&undisturbed).await, picture);
}

#[tokio::test]
async fn pictures_that_were_stored_before_a_drain_are_kept_and_not_drawn_again() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &NOW);
    let mut body = request(5, LONG);
    body["num_images"] = 2.into();
    let job = server.submit(&body).await;
    // There is room for one at a time.
    let names = server.events_until(&job, "image").await;
    assert_eq!(names.last().map(String::as_str), Some("image"), "stopped too late to prove anything");
    drained(server).await;

    let server = Server::start(data.path(), &NOW);
    let names = server.events_until(&job, "the stream's end").await;
    assert!(names.contains(&"succeeded".to_owned()), "{names:?}");
    let made = evaluations(&server).await;
    assert!(made <= u64::from(LONG), "{made} evaluations for what was left of one picture");
    for index in 0..2 {
        let picture = server.image(&job, index).await;
        assert_eq!(picture, generated(5 + u64::from(index), LONG), "picture {index}");
    }
}

#[tokio::test]
async fn a_state_that_was_damaged_is_not_used() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &NOW);
    let job = server.submit(&request(9, LONG)).await;
    server.events_until(&job, "progress").await;
    drained(server).await;
    let path = state(data.path(), &job);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();

    let server = Server::start(data.path(), &[]);
    assert_eq!(server.finished(&job).await["status"], "succeeded");
    assert_eq!(resumed(&server).await, 0, "it was used");
    assert_eq!(server.picture(&job).await, generated(9, LONG), "it starts anew");
}
