//! A hub on the loopback that speaks the protocol `darkroom pull` speaks: the list of a repository's files, small files
//! served by itself, large ones by redirect to a store on another port. And what can go wrong with each.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as Route, Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

pub(crate) const REPOSITORY: &str = "org/tiny";
pub(crate) const COMMIT: &str = "1111111111111111111111111111111111111111";

/// What the next request for a file meets.
#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    Status(u16),
    /// The connection ends after so many bytes of the body.
    CutAfter(usize),
    /// One byte is another.
    Corrupt,
    /// Nothing comes.
    Stall,
    /// Ranges are not known: everything is sent.
    NoRange,
    /// More bytes than there are.
    TooLong,
}

/// What a request said.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// `hub` or `store`
    pub(crate) place: &'static str,
    pub(crate) method: Method,
    pub(crate) file: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
}

#[derive(Default)]
pub(crate) struct Contents {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) commit: String,
    /// Only who has it is answered.
    pub(crate) token: Option<String>,
    /// Whether the list tells sizes and checksums.
    pub(crate) tells_sums: bool,
    /// Others are told that there is no such thing.
    pub(crate) revisions: Vec<String>,
    troubles: BTreeMap<String, VecDeque<Trouble>>,
    seen: Vec<Seen>,
    store: String,
}

type Shared = Arc<Mutex<Contents>>;

/// Stops when dropped.
pub(crate) struct Hub {
    pub(crate) url: String,
    shared: Shared,
    _runtime: tokio::runtime::Runtime,
}

impl Hub {
    /// With these files.
    pub(crate) fn start(files: BTreeMap<String, Vec<u8>>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let contents = Contents {
            files,
            commit: COMMIT.to_owned(),
            tells_sums: true,
            revisions: vec!["main".to_owned()],
            ..Contents::default()
        };
        let shared = Arc::new(Mutex::new(contents));
        let hub = Router::new()
            .route("/api/models/{org}/{name}/revision/{revision}", get(list))
            .route("/{org}/{name}/resolve/{revision}/{*file}", get(resolve));
        let store = Router::new().route("/blobs/{*file}", get(store));
        let serve = |router: Router<Shared>| {
            let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let router = router.with_state(shared.clone());
            runtime.spawn(async move { axum::serve(listener, router).await });
            url
        };
        let (url, store) = (serve(hub), serve(store));
        shared.lock().unwrap().store = store;
        Self { url, shared, _runtime: runtime }
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Contents)) {
        change(&mut self.shared.lock().unwrap());
    }

    /// What the next requests for the bytes of this file meet, in order.
    pub(crate) fn trouble(&self, file: &str, troubles: &[Trouble]) {
        self.change(|contents| {
            contents.troubles.insert(file.to_owned(), troubles.iter().cloned().collect());
        });
    }

    /// The requests since the last call.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.shared.lock().unwrap().seen)
    }
}

/// Every file below a folder, by its path within.
pub(crate) fn files_of(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut folders, mut files) = (vec![folder.to_owned()], BTreeMap::new());
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                files.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn git_blob(bytes: &[u8]) -> String {
    hex(&Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_large(name: &str) -> bool {
    [".safetensors", ".bin", ".ckpt"].iter().any(|ending| name.ends_with(ending))
}

fn note(contents: &mut Contents, place: &'static str, file: &str, method: &Method, headers: &HeaderMap) {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let (range, authorization) = (text("range"), text("authorization"));
    contents.seen.push(Seen { place, method: method.clone(), file: file.to_owned(), range, authorization });
}

/// The answer to who may not be answered.
fn refusal(contents: &Contents, headers: &HeaderMap) -> Option<Response> {
    let token = contents.token.as_ref()?;
    let told = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    let status = match told {
        Some(told) if told == format!("Bearer {token}") => return None,
        Some(_) => StatusCode::FORBIDDEN,
        None => StatusCode::UNAUTHORIZED,
    };
    Some((status, [("x-error-code", "GatedRepo")], "Access to it is restricted.").into_response())
}

async fn list(
    State(shared): State<Shared>,
    Route((org, name, revision)): Route<(String, String, String)>,
    request: Request,
) -> Response {
    let mut contents = shared.lock().unwrap();
    note(&mut contents, "hub", "", request.method(), request.headers());
    if let Some(trouble) = contents.troubles.get_mut("").and_then(VecDeque::pop_front) {
        let Trouble::Status(status) = trouble else { panic!("a list has no other trouble: {trouble:?}") };
        return StatusCode::from_u16(status).unwrap().into_response();
    }
    if let Some(refusal) = refusal(&contents, request.headers()) {
        return refusal;
    }
    if format!("{org}/{name}") != REPOSITORY {
        return (StatusCode::NOT_FOUND, [("x-error-code", "RepoNotFound")]).into_response();
    }
    if !contents.revisions.contains(&revision) && revision != contents.commit {
        return (StatusCode::NOT_FOUND, [("x-error-code", "RevisionNotFound")]).into_response();
    }
    let wants_sums = request.uri().query().is_some_and(|query| query.contains("blobs=true"));
    let sibling = |(name, bytes): (&String, &Vec<u8>)| -> Value {
        if !(wants_sums && contents.tells_sums) {
            return json!({"rfilename": name});
        }
        let lfs = is_large(name).then(|| json!({"sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 134}));
        match lfs {
            // The blob of a large file is the pointer to it.
            Some(lfs) => json!({"rfilename": name, "size": bytes.len(), "blobId": "2".repeat(40), "lfs": lfs}),
            None => json!({"rfilename": name, "size": bytes.len(), "blobId": git_blob(bytes)}),
        }
    };
    let siblings: Vec<Value> = contents.files.iter().map(sibling).collect();
    axum::Json(json!({"id": REPOSITORY, "sha": contents.commit, "siblings": siblings})).into_response()
}

async fn resolve(
    State(shared): State<Shared>,
    Route((_, _, revision, file)): Route<(String, String, String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let (bytes, trouble) = {
        let mut contents = shared.lock().unwrap();
        note(&mut contents, "hub", &file, &method, &headers);
        if let Some(refusal) = refusal(&contents, &headers) {
            return refusal;
        }
        let Some(bytes) = contents.files.get(&file).filter(|_| revision == contents.commit).cloned() else {
            return (StatusCode::NOT_FOUND, [("x-error-code", "EntryNotFound")]).into_response();
        };
        if is_large(&file) {
            let to = format!("{}/blobs/{file}?signature=do-not-show", contents.store);
            let (sum, size) = (format!("\"{}\"", sha256(&bytes)), bytes.len().to_string());
            let headers =
                [("location", to), ("x-linked-etag", sum), ("x-linked-size", size), ("x-repo-commit", revision)];
            return (StatusCode::FOUND, headers).into_response();
        }
        (bytes, contents.troubles.get_mut(&file).and_then(VecDeque::pop_front))
    };
    let etag = format!("\"{}\"", git_blob(&bytes));
    bytes_of(&headers, bytes, &etag, trouble).await
}

async fn store(
    State(shared): State<Shared>,
    Route(file): Route<String>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let (bytes, trouble) = {
        let mut contents = shared.lock().unwrap();
        note(&mut contents, "store", &file, &method, &headers);
        let trouble = contents.troubles.get_mut(&file).and_then(VecDeque::pop_front);
        (contents.files[&file].clone(), trouble)
    };
    let etag = match trouble {
        // A store that goes by the same name tells it; others have names of their own.
        Some(Trouble::NoRange) => "\"d41d8cd98f00b204e9800998ecf8427e-5\"".to_owned(),
        _ => format!("\"{}\"", sha256(&bytes)),
    };
    bytes_of(&headers, bytes, &etag, trouble).await
}

/// A file or its end, with its trouble.
async fn bytes_of(headers: &HeaderMap, mut bytes: Vec<u8>, etag: &str, trouble: Option<Trouble>) -> Response {
    let whole = bytes.len();
    let range = headers
        .get("range")
        .and_then(|range| range.to_str().unwrap().strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let mut start = range.unwrap_or(0);
    let mut cut = None;
    match trouble {
        Some(Trouble::Status(status)) => return StatusCode::from_u16(status).unwrap().into_response(),
        Some(Trouble::Stall) => std::future::pending::<()>().await,
        Some(Trouble::Corrupt) => bytes[whole - 1] ^= 1,
        Some(Trouble::NoRange) => start = 0,
        Some(Trouble::TooLong) => bytes.extend_from_slice(b"more"),
        Some(Trouble::CutAfter(len)) => cut = Some(len),
        None => {}
    }
    let rest = bytes.split_off(start);
    let length = rest.len().to_string();
    let status = if start > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let mut told = vec![("etag", etag.to_owned()), ("content-length", length)];
    if start > 0 {
        told.push(("content-range", format!("bytes {start}-{}/{whole}", whole - 1)));
    }
    let body = match cut {
        Some(len) => {
            let sent = Ok(Bytes::from(rest[..len].to_vec()));
            let end = Err(std::io::Error::other("cut"));
            Body::from_stream(futures::stream::iter([sent, end]))
        }
        None => Body::from(rest),
    };
    let mut response = Response::builder().status(status);
    for (name, value) in told {
        response = response.header(name, value);
    }
    response.body(body).unwrap()
}
