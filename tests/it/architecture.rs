//! Who may import whom, and which crates stay in which rooms. `docs/architecture.md` shows the same two tables; the last
//! test holds it to them.
//!
//! A scan of the text, comments and strings left out: paths from `crate::` and `super::`, and the names of crates.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A room, what it is for, and the rooms it may name. `domain` is open to all; a room is open to itself.
struct Room {
    path: &'static str,
    may_import: &'static [&'static str],
    duty: &'static str,
}

const ALL: &[&str] = &["*"];

const ROOMS: &[Room] = &[
    room("domain", &[], "plain data that crosses rooms: requests, jobs, events, model info, error codes"),
    room("config", &["telemetry"], "settings in four layers, every fault at once"),
    room("telemetry", &[], "log lines and the metrics"),
    room("images", &[], "RGB buffers and their encodings"),
    room("diffusion::noise", &[], "the reference's random numbers: PyTorch's generators, CPU and CUDA"),
    room("diffusion::samplers", &[], "a sampling run as a table of f64 coefficients"),
    room("diffusion::batching", &[], "which evaluations share the next forward"),
    room("diffusion::weights", &[], "checkpoint folders and their tensors"),
    room("diffusion::kernels", &[], "fast primitives beside their plain twins, for CPUs and GPUs"),
    room("diffusion::models", &["diffusion::weights", "diffusion::kernels"], "the networks"),
    room(
        "diffusion::pipelines",
        &["diffusion::samplers", "diffusion::models", "diffusion::weights", "diffusion::kernels", "images"],
        "one file per model family",
    ),
    room(
        "diffusion::engine",
        &[
            "diffusion::batching",
            "diffusion::samplers",
            "diffusion::noise",
            "diffusion::kernels",
            "diffusion::pipelines",
            "images",
        ],
        "the step loop on one device, on a thread of its own",
    ),
    room("dispatch::jobs", &[], "the durable queue: claims, leases, states"),
    room("dispatch::events", &[], "who watches a job hears of it"),
    room("dispatch::artifacts", &[], "the pictures' bytes"),
    room("dispatch::hub", &[], "what the workers of this process tell of themselves, and how they are woken"),
    room(
        "dispatch::workers",
        &[
            "diffusion::engine",
            "diffusion::pipelines",
            "dispatch::jobs",
            "dispatch::events",
            "dispatch::artifacts",
            "dispatch::hub",
            "images",
            "telemetry",
        ],
        "claims jobs, feeds engines, renews leases, drains",
    ),
    room(
        "service",
        &["dispatch::jobs", "dispatch::events", "dispatch::artifacts", "dispatch::hub", "images", "telemetry"],
        "the one way in: submit, get, cancel, watch, fetch",
    ),
    room("http", &["http::page", "service", "telemetry"], "talks: the API, its errors and limits"),
    room("http::page", &[], "the web page: embedded files"),
    room("app", ALL, "composition: the only room that picks stores and pipelines"),
    room("cli", ALL, "one file per subcommand"),
];

/// Crates that may be named in some rooms only.
const CRATES: &[(&str, &[&str])] = &[
    (
        "candle_core",
        &["diffusion::weights", "diffusion::kernels", "diffusion::models", "diffusion::pipelines", "diffusion::engine"],
    ),
    ("candle_nn", &["diffusion::kernels", "diffusion::models"]),
    ("pulp", &["diffusion::kernels"]),
    ("rayon", &["diffusion::kernels"]),
    ("safetensors", &["diffusion::weights"]),
    ("memmap2", &["diffusion::weights"]),
    ("tokenizers", &["diffusion::models"]),
    ("sqlx", &["dispatch::jobs"]),
    ("object_store", &["dispatch::artifacts"]),
    ("image", &["images"]),
    ("png", &["images"]),
    ("webp", &["images"]),
    ("axum", &["http", "http::page", "app"]),
    ("tower", &["http"]),
    ("tower_http", &["http"]),
    ("utoipa", &["http"]),
    ("utoipa_axum", &["http"]),
    (
        "tokio",
        &["dispatch::jobs", "dispatch::events", "dispatch::hub", "dispatch::workers", "service", "http", "app", "cli"],
    ),
    ("figment", &["config"]),
    ("toml", &["config"]),
    ("prometheus", &["telemetry"]),
    ("tracing_subscriber", &["telemetry"]),
    ("clap", &["cli"]),
    ("indicatif", &["cli"]),
    ("reqwest", &["cli"]),
    ("hf_hub", &["cli"]),
];

/// Modules that only hold rooms together.
const HALLS: [&str; 4] = ["", "main", "dispatch", "diffusion"];
const MAY_BE_UNSAFE: [&str; 2] = ["diffusion::weights", "diffusion::kernels"];
const MOST_LINES: usize = 500;

const fn room(path: &'static str, may_import: &'static [&'static str], duty: &'static str) -> Room {
    Room { path, may_import, duty }
}

fn room_of(module: &str) -> Option<&'static Room> {
    let within =
        |room: &&Room| module.strip_prefix(room.path).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    ROOMS.iter().filter(within).max_by_key(|room| room.path.len())
}

/// One file of `src/`.
struct Source {
    file: PathBuf,
    /// `diffusion::engine::thread`; empty for `lib.rs`.
    module: String,
    text: String,
    lines: usize,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut found) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let file = path.strip_prefix(&root).unwrap().to_path_buf();
                let text = fs::read_to_string(&path).unwrap();
                let lines = text.lines().count();
                found.push(Source { module: module_of(&file), file, text: without_comments_and_strings(&text), lines });
            }
        }
    }
    assert!(found.len() > 50, "src/ was not found: {} files", found.len());
    found
}

fn module_of(file: &Path) -> String {
    let parts: Vec<&str> = file.iter().map(|part| part.to_str().unwrap().trim_end_matches(".rs")).collect();
    let module = parts.join("::");
    let module = module.strip_suffix("mod").map_or(module.as_str(), |folder| folder.trim_end_matches(':'));
    if module == "lib" { String::new() } else { module.to_owned() }
}

/// What the compiler sees, strings emptied.
fn without_comments_and_strings(text: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(first) = rest.chars().next() {
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(raw) = rest.strip_prefix("r#\"") {
            raw.find("\"#").map_or(rest.len(), |end| end + 5)
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\\"'") {
            rest[1..].find("'").map_or(rest.len(), |end| end + 2)
        } else if first == '"' {
            string_len(rest)
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        out.push(' ');
        rest = &rest[skip..];
    }
    out
}

/// Bytes of the string literal that `text` begins with, quotes included.
fn string_len(text: &str) -> usize {
    let mut escaped = false;
    for (at, letter) in text.char_indices().skip(1) {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// Every word with what stands before and after it.
fn words(text: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + text[at..].find(is_word)?;
        let end = text[start..].find(|letter| !is_word(letter)).map_or(text.len(), |len| start + len);
        at = end;
        Some((&text[..start], &text[start..end], &text[end..]))
    })
}

/// The modules that `use` trees and paths of one file name, from the crate's root.
fn named_modules(source_module: &str, text: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for (before, word, after) in words(text) {
        let is_root = (word == "crate" || word == "super") && after.starts_with("::") && !before.ends_with("::");
        if !is_root {
            continue;
        }
        let mut base: Vec<&str> = if word == "crate" { Vec::new() } else { source_module.split("::").collect() };
        let mut after = after;
        if word == "super" {
            base.pop();
            while let Some(rest) = after.strip_prefix("::super::") {
                base.pop();
                after = &after[after.len() - rest.len() - 2..];
            }
        }
        let mut ends = Vec::new();
        tree(&after[2..], &base.join("::"), &mut ends);
        named.extend(ends);
    }
    named
}

/// Follows `a::b::{c, d::e}`; returns what is left of the text.
fn tree<'a>(text: &'a str, base: &str, ends: &mut Vec<String>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = tree(rest, base, ends).trim_start();
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => return rest.strip_prefix('}').unwrap_or(rest),
            }
        }
    }
    let end = text.find(|letter| !is_word(letter)).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    let path = if base.is_empty() { word.to_owned() } else { format!("{base}::{word}") };
    match rest.strip_prefix("::") {
        Some(deeper) if !word.is_empty() => tree(deeper, &path, ends),
        _ => {
            ends.push(path);
            // `name as other`, `*`
            rest.find([',', '}', ';', ')', '\n']).map_or("", |end| &rest[end..])
        }
    }
}

fn forbidden_imports(module: &str, text: &str) -> Vec<String> {
    let Some(own) = room_of(module) else { return Vec::new() };
    let open = |target: &Room| {
        target.path == own.path
            || target.path == "domain"
            || own.may_import == ALL
            || own.may_import.contains(&target.path)
    };
    let named = named_modules(module, text);
    let outside = named.iter().filter(|path| room_of(path).is_some_and(|target| !open(target)));
    outside.map(|path| format!("`{}` may not import `{path}`", own.path)).collect()
}

fn forbidden_crates(module: &str, text: &str) -> Vec<String> {
    let own = room_of(module).map_or("", |room| room.path);
    let mut found = BTreeSet::new();
    for (before, word, after) in words(text) {
        if before.ends_with("::") || !(after.starts_with("::") || before.ends_with("use ")) {
            continue;
        }
        if let Some((name, rooms)) = CRATES.iter().find(|(name, _)| *name == word)
            && !rooms.contains(&own)
        {
            found.insert(format!("`{module}` names the crate `{name}`, which belongs to {rooms:?}"));
        }
    }
    found.into_iter().collect()
}

/// All faults at once, each with its file.
fn none(faults: Vec<String>) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

fn in_each(faults: impl Fn(&Source) -> Vec<String>) -> Vec<String> {
    let told = |source: &Source| {
        let file = source.file.display().to_string();
        faults(source).into_iter().map(move |fault| format!("src/{file}: {fault}")).collect::<Vec<_>>()
    };
    sources().iter().flat_map(told).collect()
}

#[test]
fn every_file_stands_in_a_room() {
    let homeless = |source: &Source| room_of(&source.module).is_none() && !HALLS.contains(&source.module.as_str());
    none(in_each(|source| if homeless(source) { vec!["stands in no room of the table".to_owned()] } else { vec![] }));
}

#[test]
fn rooms_import_only_what_the_table_says() {
    none(in_each(|source| forbidden_imports(&source.module, &source.text)));
}

#[test]
fn crates_stay_in_their_rooms() {
    none(in_each(|source| forbidden_crates(&source.module, &source.text)));
}

#[test]
fn nothing_is_unsafe_outside_weights_and_kernels() {
    let allowed = |source: &Source| room_of(&source.module).is_some_and(|room| MAY_BE_UNSAFE.contains(&room.path));
    let is_unsafe = |source: &Source| words(&source.text).any(|(_, word, _)| word == "unsafe") && !allowed(source);
    none(in_each(|source| if is_unsafe(source) { vec!["is unsafe".to_owned()] } else { vec![] }));
}

#[test]
fn files_can_be_read_in_one_go() {
    let faults = |source: &Source| match source.lines {
        lines if lines > MOST_LINES => vec![format!("has {lines} lines, more than {MOST_LINES}")],
        _ => vec![],
    };
    none(in_each(faults));
}

#[test]
fn the_scan_sees_what_it_must() {
    let text = "use crate::{domain::Job, dispatch::{jobs::JobStore, events}};\nuse super::super::service::Error as E;";
    let found = named_modules("http::v1::jobs", text);
    let expected = ["dispatch::events", "dispatch::jobs::JobStore", "domain::Job", "http::service::Error"];
    assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    assert_eq!(forbidden_imports("http::v1::jobs", text).len(), 2);
    assert_eq!(forbidden_imports("app", text).len(), 0);
    assert_eq!(forbidden_imports("diffusion::models::unets", "let x = super::super::engine::start();").len(), 1);
    assert_eq!(forbidden_imports("http::page", "use crate::service::Error;").len(), 1);
    assert_eq!(forbidden_imports("http::page", "use super::Door;").len(), 1);

    assert_eq!(forbidden_crates("service::submit", "use candle_core::Tensor; sqlx::query(q);").len(), 2);
    assert_eq!(forbidden_crates("images::encode", "image::load(); std::candle_core::x").len(), 0);

    let bare = without_comments_and_strings("a // crate::x\n\"crate::y \\\" \" r#\"unsafe\"# '\"' b /* c */ d");
    assert_eq!(bare.split_whitespace().collect::<Vec<_>>(), ["a", "b", "d"]);
}

#[test]
fn the_document_shows_the_same_tables() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
    let text = fs::read_to_string(&path).unwrap();
    let code = |names: &[&str]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let imports = |room: &Room| match room.may_import {
        [] => "-".to_owned(),
        ["*"] => "everything".to_owned(),
        some => code(some),
    };
    let rooms = ROOMS.iter().map(|room| format!("| `{}` | {} | {} |", room.path, room.duty, imports(room)));
    let crates = CRATES.iter().map(|(name, rooms)| format!("| `{name}` | {} |", code(rooms)));
    let lines: BTreeSet<&str> = text.lines().collect();
    let missing: Vec<String> = rooms.chain(crates).filter(|row| !lines.contains(row.as_str())).collect();
    assert!(missing.is_empty(), "docs/architecture.md lacks these rows:\n{}", missing.join("\n"));
}
