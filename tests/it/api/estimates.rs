//! When jobs will end, as told before, and what the server tells of its own estimates.

use serde_json::{Value, json};

use crate::support::app::{TestApp, body, with};

#[tokio::test(flavor = "multi_thread")]
async fn after_a_warm_up_the_first_job_is_told_when_it_will_end() {
    let app = TestApp::builder().settings(|settings| settings.workers.warm_up = true).start().await;
    // The engine has told what it learnt; the worker hears it before the first claim.
    let job = app.submit(&body("a house", 1)).await;
    app.ended(job["id"].as_str().unwrap()).await;
    let job = app.submit(&with(body("a house", 2), json!({"steps": 20}))).await;
    assert!(job["eta_ms"].as_u64().is_some_and(|eta| eta > 0), "{job}");
    app.ended(job["id"].as_str().unwrap()).await;
    let stats = app.json("/v1/stats").await;
    let forwards = stats["forwards"].as_array().unwrap();
    // The model's default size was measured by the warm-up alone.
    let default = forwards.iter().find(|of| of["width"] == 32).unwrap_or_else(|| panic!("{stats}"));
    assert_eq!(default["model"], "tiny-sd");
    // Fewer where the machine is so slow that the time for it is over.
    assert!((1..=6).contains(&default["observed"].as_u64().unwrap()), "{default}");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beliefs_and_promises_are_told_beside_what_came_of_them() {
    let app = TestApp::builder().start().await;
    let first = app.submit(&body("a house", 1)).await;
    assert_eq!(first["eta_ms"], Value::Null, "nothing was measured");
    app.ended(first["id"].as_str().unwrap()).await;
    let nobody = json!({"jobs": 0, "median_ratio": null, "p90_ratio": null});
    assert_eq!(app.json("/v1/stats").await["eta"], nobody, "nothing was promised");
    for seed in 2..6 {
        let job = app.submit(&body("a house", seed)).await;
        assert!(job["eta_ms"].is_u64(), "{job}");
        let ended = app.ended(job["id"].as_str().unwrap()).await;
        assert_eq!(ended["eta_ms"], Value::Null);
    }
    let stats = app.json("/v1/stats").await;
    assert_eq!(stats["eta"]["jobs"], 4);
    let (median, p90) = (stats["eta"]["median_ratio"].as_f64().unwrap(), stats["eta"]["p90_ratio"].as_f64().unwrap());
    assert!(median > 0.0 && p90 >= median, "{stats}");
    let [forwards] = &stats["forwards"].as_array().unwrap()[..] else { panic!("{stats}") };
    assert_eq!((&forwards["width"], &forwards["height"]), (&json!(16), &json!(16)));
    // Four steps of each of five jobs; reports may be lost on the way, and those of the last job are still coming.
    assert!((12..=20).contains(&forwards["observed"].as_u64().unwrap()), "{stats}");
    assert!(forwards["per_row_ms"].as_f64().unwrap() > 0.0 && forwards["mean_relative_error"].is_f64(), "{stats}");
    assert!(forwards["fixed_bytes"].as_u64().unwrap() + forwards["per_row_bytes"].as_u64().unwrap() > 0, "{stats}");
    assert!(app.metric("darkroom_eta_ratio_count").await >= 4.0);
    assert!(app.metric("darkroom_forward_error_ratio_count").await > 0.0);
    app.finish().await;
}
