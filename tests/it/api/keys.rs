use std::collections::BTreeSet;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::app::{TestApp, body, key_of, with};
use crate::support::sse;

/// Who may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum For {
    Everybody,
    KeyHolders,
}
use For::{Everybody, KeyHolders};

/// Every documented route, decided.
const ROUTES: &[(&str, &str, For)] = &[
    ("delete", "/v1/jobs/{id}", KeyHolders),
    ("get", "/healthz", Everybody),
    ("get", "/metrics", Everybody),
    ("get", "/readyz", Everybody),
    ("get", "/v1/jobs", KeyHolders),
    ("get", "/v1/jobs/{id}", KeyHolders),
    ("get", "/v1/jobs/{id}/events", KeyHolders),
    ("get", "/v1/jobs/{id}/images/{index}", KeyHolders),
    ("get", "/v1/jobs/{id}/inputs/{input}", KeyHolders),
    ("get", "/v1/loras", KeyHolders),
    ("get", "/v1/models", KeyHolders),
    ("get", "/v1/models/{id}", KeyHolders),
    ("get", "/v1/samplers", KeyHolders),
    ("get", "/v1/stats", KeyHolders),
    ("post", "/v1/jobs", KeyHolders),
];

const METHODS: [&str; 7] = ["get", "post", "put", "patch", "delete", "head", "options"];

/// Every route of the description, and whether it names the scheme.
fn described() -> BTreeSet<(String, String, For)> {
    let yaml = darkroom::http::document().unwrap();
    let paths = yaml.split_once("\npaths:\n").unwrap().1.split("\ncomponents:").next().unwrap();
    let (mut path, mut found) = ("", Vec::new());
    for line in paths.lines() {
        let indent = line.len() - line.trim_start().len();
        let name = line.trim().trim_end_matches(':').trim_matches('\'');
        match indent {
            2 => path = name,
            4 if METHODS.contains(&name) => found.push((name.to_owned(), path.to_owned(), Everybody)),
            6 if name == "security" => found.last_mut().unwrap().2 = KeyHolders,
            _ => {}
        }
    }
    found.into_iter().collect()
}

#[test]
fn no_route_is_added_without_deciding_whom_it_is_for() {
    let decided = ROUTES.iter().map(|(method, path, whom)| ((*method).to_owned(), (*path).to_owned(), *whom)).collect();
    assert_eq!(described(), decided);
}

/// A request to a route, with something in the place of its parameters.
fn ask(app: &TestApp, method: &str, path: &str) -> reqwest::RequestBuilder {
    let path = path.replace("{id}", "01a20dc3-0a9a-74ab-b530-a519827ad0c2").replace("{index}", "0");
    let path = path.replace("{input}", "init_image");
    app.client.request(method.to_uppercase().parse().unwrap(), format!("{}{path}", app.base))
}

#[tokio::test]
async fn every_route_that_is_not_for_everybody_asks_for_a_key() {
    let app = TestApp::builder().key("alice", 1).start().await;
    for (method, path, whom) in ROUTES {
        let refused = ask(&app, method, path).send().await.unwrap();
        assert_eq!(refused.status() == StatusCode::UNAUTHORIZED, *whom == KeyHolders, "{method} {path}");
        if *whom == KeyHolders {
            assert_eq!(refused.headers()["www-authenticate"], "Bearer", "{path}");
            assert_eq!(refused.headers()["content-type"], "application/problem+json", "{path}");
            let problem: Value = refused.json().await.unwrap();
            assert_eq!((&problem["status"], &problem["code"]), (&json!(401), &json!("unauthorized")), "{path}");
        }
        let let_in = ask(&app, method, path).bearer_auth(key_of("alice")).send().await.unwrap();
        assert_ne!(let_in.status(), StatusCode::UNAUTHORIZED, "{method} {path}");
    }
    for path in ["/", "/docs", "/openapi.yaml", "/assets/main.js"] {
        assert_eq!(ask(&app, "get", path).send().await.unwrap().status(), 200, "{path}");
    }
    app.finish().await;
}

#[tokio::test]
async fn what_is_no_key_of_this_server_is_refused_and_not_repeated() {
    let app = TestApp::builder().key("alice", 1).start().await;
    let key = key_of("alice");
    let wrong = [
        "Bearer dk_nobody".to_owned(),
        format!("Bearer {key}x"),
        format!("Bearer {}", &key[1..]),
        format!("Bearer {}", key.to_uppercase()),
        "Bearer ".to_owned(),
        "Bearer".to_owned(),
        format!("Basic {key}"),
        key.clone(),
    ];
    for header in wrong {
        let response = ask(&app, "get", "/v1/jobs").header("authorization", &header).send().await.unwrap();
        assert_eq!(response.status(), 401, "{header}");
        let told = response.text().await.unwrap();
        assert!(!told.contains("dk_"), "{told}");
    }
    let twice = ask(&app, "get", "/v1/jobs").bearer_auth(&key).bearer_auth(&key).send().await.unwrap();
    assert_eq!(twice.status(), 401);
    // A key in the URL is none.
    let in_url = ask(&app, "get", &format!("/v1/jobs?key={key}&access_token={key}")).send().await.unwrap();
    assert_eq!(in_url.status(), 401);
    let lower = ask(&app, "get", "/v1/jobs").header("authorization", format!("bearer {key}")).send().await.unwrap();
    assert_eq!((lower.status().as_u16(), lower.headers()["vary"].to_str().unwrap()), (200, "authorization"));
    app.finish().await;
}

#[tokio::test]
async fn a_job_is_there_for_its_own_key_and_for_administrators() {
    let app = TestApp::builder().key("alice", 1).key("bob", 1).start().await;
    let of = |name: &'static str, method: Method, path: String| app.request_as(name, method, &path).send();
    let request = app.request_as("alice", Method::POST, "/v1/jobs").header("prefer", "wait=60");
    let job: Value = request.json(&body("mine", 1)).send().await.unwrap().json().await.unwrap();
    assert_eq!(job["status"], "succeeded", "{job}");
    let id = job["id"].as_str().unwrap();
    let picture = format!("/v1/jobs/{id}/images/0");
    let start = json!({"init_image": {"job": id, "image": 0}});
    let request = app.request_as("alice", Method::POST, "/v1/jobs").header("prefer", "wait=60");
    let with_input: Value =
        request.json(&with(body("on", 2), start.clone())).send().await.unwrap().json().await.unwrap();
    let second = with_input["id"].as_str().unwrap();
    let input = format!("/v1/jobs/{second}/inputs/init_image");

    let paths = [format!("/v1/jobs/{id}"), format!("/v1/jobs/{id}/events"), picture.clone(), input.clone()];
    for path in &paths {
        let theirs = of("bob", Method::GET, path.clone()).await.unwrap();
        let absent = of("bob", Method::GET, path.replace(&id[..8], "01000000").replace(&second[..8], "01000000")).await;
        let (theirs, absent) = (theirs.json::<Value>(), absent.unwrap().json::<Value>());
        let (theirs, absent) = (theirs.await.unwrap(), absent.await.unwrap());
        // Nothing tells it from a job that never was.
        assert_eq!((&theirs["status"], &theirs["code"]), (&json!(404), &absent["code"]), "{path}");
        for name in ["alice", "root"] {
            assert_eq!(of(name, Method::GET, path.clone()).await.unwrap().status(), 200, "{name} {path}");
        }
    }
    assert_eq!(of("bob", Method::DELETE, paths[0].clone()).await.unwrap().status(), 404);
    // Nor is its picture, or one that came with it, one to start from.
    for source in [json!({"job": id, "image": 0}), json!({"job": second, "input": "init_image"})] {
        let stolen = with(body("theirs", 3), json!({"init_image": source}));
        let refused = app.request_as("bob", Method::POST, "/v1/jobs").json(&stolen).send().await.unwrap();
        assert_eq!(refused.status(), 422);
        let told = refused.text().await.unwrap();
        assert!(told.contains("not here"), "{told}");
    }
    let listed = async |name: &'static str, query: &str| {
        let page: Value = of(name, Method::GET, format!("/v1/jobs{query}")).await.unwrap().json().await.unwrap();
        page["jobs"].as_array().unwrap().len()
    };
    for query in ["", "?status=succeeded"] {
        assert_eq!((listed("alice", query).await, listed("bob", query).await, listed("root", query).await), (2, 0, 2));
    }
    let events = sse::read(of("alice", Method::GET, paths[1].clone()).await.unwrap()).await;
    assert_eq!(events.last().unwrap().name, "succeeded");
    assert_eq!(of("alice", Method::DELETE, paths[0].clone()).await.unwrap().status(), 204);
    app.finish().await;
}

#[tokio::test]
async fn an_idempotency_key_is_its_owners_alone() {
    let app = TestApp::builder().key("alice", 1).key("bob", 1).durable().start().await;
    let submit = async |name: &str, seed: u64| {
        let request = app.request_as(name, Method::POST, "/v1/jobs").header("idempotency-key", "order-7");
        let response = request.header("prefer", "wait=60").json(&body("one", seed)).send().await.unwrap();
        (response.status().as_u16(), response.json::<Value>().await.unwrap()["id"].clone())
    };
    let (alice, bob) = (submit("alice", 1).await, submit("bob", 2).await);
    assert_eq!((alice.0, bob.0), (200, 200));
    assert_ne!(alice.1, bob.1);
    assert_eq!((submit("alice", 1).await, submit("bob", 2).await), (alice, bob));
    assert_eq!(submit("bob", 1).await.0, 409);
    app.finish().await;
}
