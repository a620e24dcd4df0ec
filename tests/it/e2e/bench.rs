//! `darkroom bench`: counts and shape of its report. Times are looked at for order and sign alone.

use std::process::{Command, Output};

use serde_json::{Value, json};

use super::server::{Server, darkroom, tiny_sd};

/// `bench` against a server, in a process of its own.
async fn bench(server: &Server, args: &[&str]) -> Output {
    let mut command = darkroom();
    command.args(["bench", "--url", server.url(), "--json"]).args(args);
    output(command).await
}

async fn output(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn report(output: &Output) -> Value {
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn assert_ordered(spread: &Value, count: u64) {
    assert_eq!(spread["count"], count, "{spread}");
    let values = ["p50", "p90", "p95", "p99", "max"].map(|name| spread[name].as_f64().unwrap());
    assert!(values.is_sorted() && values[0] >= 0.0, "{spread}");
}

#[tokio::test]
async fn a_closed_loop_draws_every_job_and_counts_the_servers_batches() {
    let data = tempfile::tempdir().unwrap();
    // So that no forward is mixed, however the clients' jobs meet.
    let server = Server::start(data.path(), &[("DARKROOM_WORKERS__POLICY", "grouped")]);
    let args = ["--concurrency", "3", "--jobs", "7", "--watch-every", "3", "--warmup", "2", "--num-images", "2"];
    let mix = ["--steps", "4", "--steps", "5", "--size", "32x32", "--guidance-scale", "1", "--sampler", "ddim"];
    let report = report(&bench(&server, &[&args[..], &mix].concat()).await);

    assert_eq!(report["load"], json!({"shape": "closed", "concurrency": 3, "jobs": 7}));
    assert_eq!(report["jobs"], json!({"succeeded": 7, "errors": {}, "refused": {}}), "{report}");
    assert_eq!(report["pictures"], 14);
    let (seconds, speed) = (report["seconds"].as_f64().unwrap(), report["pictures_per_second"].as_f64().unwrap());
    assert!((speed * seconds - 14.0).abs() < 1e-6, "{report}");
    assert_ordered(&report["latency_ms"], 7);
    assert_ordered(&report["queued_ms"], 7);
    // Jobs 0, 3 and 6. A step may go untold to a watcher that comes late, never an end.
    let watched = report["first_progress_ms"]["count"].as_u64().unwrap_or(0);
    assert!(watched <= 3, "{report}");

    // What the server counted for these jobs alone: two unguided pictures a job, 4 and 5 steps in turn.
    let batches = &report["batches"];
    let (count, pictures) = (batches["count"].as_u64().unwrap(), batches["mean_pictures"].as_f64().unwrap());
    assert_eq!((count as f64 * pictures).round(), f64::from(2 * (4 * 4 + 3 * 5)), "{batches}");
    assert_eq!(batches["mean_rows"], batches["mean_pictures"], "{batches}");
    assert_eq!(batches["mixed"], 0);
    let classes = batches["pictures"].as_array().unwrap();
    let in_classes: u64 = classes.iter().map(|class| class["forwards"].as_u64().unwrap()).sum();
    assert_eq!(in_classes, count, "{batches}");
    assert!(classes.iter().all(|class| class["from"].as_u64().unwrap() <= 6), "three clients, two pictures: {batches}");

    let jobs = server.get("/v1/jobs?limit=200").await;
    assert_eq!(jobs["jobs"].as_array().unwrap().len(), 7 + 2, "the load and its warm-up, nothing else");
}

#[tokio::test]
async fn an_open_loop_sends_as_many_jobs_as_its_seed_says() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let bodies = data.path().join("bodies.json");
    let body = json!({"prompt": "a cat", "width": 32, "height": 32, "steps": 2, "sampler": "ddim"});
    std::fs::write(&bodies, json!([body, {"prompt": "a dog", "steps": 3, "seed": 5}]).to_string()).unwrap();
    let args = ["--rate", "20", "--duration", "1", "--seed", "9", "--watch-every", "0", "--bodies"];
    let args = [&args[..], &[bodies.to_str().unwrap()]].concat();
    let (first, second) = (report(&bench(&server, &args).await), report(&bench(&server, &args).await));
    let sent = first["jobs"]["succeeded"].as_u64().unwrap();
    assert!(sent > 0, "{first}");
    assert_eq!(second["jobs"], json!({"succeeded": sent, "errors": {}, "refused": {}}), "the same seed, the same load");
    assert_eq!(first["load"], json!({"shape": "open", "per_second": 20.0, "seconds": 1.0, "seed": 9}));
    assert_ordered(&first["latency_ms"], sent);
    assert_eq!(first["first_progress_ms"], Value::Null, "nobody watched");
}

#[tokio::test]
async fn refusals_are_counted_by_kind_and_sent_again() {
    let data = tempfile::tempdir().unwrap();
    // Room for one job beside the one that runs: of eight clients, some must be refused.
    let server = Server::start(data.path(), &[("DARKROOM_QUEUE__MAX_QUEUED", "1")]);
    let args = ["--concurrency", "8", "--jobs", "8", "--steps", "20", "--size", "32x32", "--watch-every", "0"];
    let report = report(&bench(&server, &args).await);
    assert_eq!(report["jobs"]["succeeded"], 8, "{report}");
    assert!(report["jobs"]["refused"]["429 queue_full"].as_u64().unwrap() > 0, "{report}");
}

#[tokio::test]
async fn a_body_that_the_server_refuses_and_a_server_that_is_not_there_are_told() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let refused = bench(&server, &["--size", "7x32"]).await;
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{told}");
    assert!(told.contains("422 invalid_request") && told.contains("width"), "{told}");

    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = darkroom();
    command.args(["bench", "--url", &format!("http://127.0.0.1:{port}")]);
    let nobody = output(command).await;
    assert_eq!(nobody.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains(&port.to_string()));
}

#[test]
fn the_engine_alone_reports_every_stage() {
    let mut command = darkroom();
    command.args(["bench", "engine", "--json", "--width", "32", "--height", "32", "--steps", "2", "--repeats", "2"]);
    command.args(["--rows", "1,3", "--pictures", "1,2", "--dtype", "bf16", "--model"]);
    let output = command.arg(tiny_sd()).output().unwrap();
    let report = report(&output);
    assert_eq!((&report["model"], &report["steps"]), (&"tiny-sd".into(), &2.into()));
    assert_eq!(report["dtype"], "bf16");
    let stages = report["stages"].as_array().unwrap();
    let size = |stage: &Value| stage["rows"].as_u64().or(stage["pictures"].as_u64());
    let names: Vec<_> = stages.iter().map(|stage| (stage["stage"].as_str().unwrap(), size(stage))).collect();
    let unet_rows = [("unet", Some(1)), ("unet", Some(3))];
    let vae_pictures = [("vae", Some(1)), ("vae", Some(2))];
    let whole_pictures = [("picture", Some(1)), ("picture", Some(2))];
    assert_eq!(names, [&[("text", None)][..], &unet_rows, &vae_pictures, &whole_pictures].concat());
    for stage in stages {
        let ms = stage["ms"].as_array().unwrap();
        assert!(ms.len() == 2 && ms.iter().all(|ms| ms.as_f64().unwrap() > 0.0), "{stage}");
    }
}
