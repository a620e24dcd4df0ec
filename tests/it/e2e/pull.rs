//! `darkroom pull` against a hub on the loopback, and what is done with what was pulled.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use axum::http::Method;
use darkroom::domain::ImageFormat;
use darkroom::images::decode;
use serde_json::{Value, json};

use super::server::{darkroom, generated, tiny_sd};
use crate::support::drafts::fixtures;
use crate::support::hub::{COMMIT, Hub, REPOSITORY, Trouble, files_of, sha256};
use crate::support::single_files::{read_folder, table, write};

const TOKEN: &str = "hf_thisIsASecret";
const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

/// tiny-sd as repositories are: with much that is not wanted.
fn repository() -> BTreeMap<String, Vec<u8>> {
    let mut files = files_of(&tiny_sd());
    for name in [".gitattributes", "README.md", "sd.ckpt", "unet/diffusion_pytorch_model.bin", "vae/openvino.xml"] {
        files.insert(name.to_owned(), b"not wanted".to_vec());
    }
    for name in ["safety_checker/config.json", "safety_checker/model.safetensors"] {
        files.insert(name.to_owned(), b"not read".to_vec());
    }
    let mut index: Value = serde_json::from_slice(&files["model_index.json"]).unwrap();
    index["safety_checker"] = json!(["stable_diffusion", "StableDiffusionSafetyChecker"]);
    files.insert("model_index.json".to_owned(), serde_json::to_vec(&index).unwrap());
    files
}

/// A hub, and a machine with nothing on it.
struct Bed {
    hub: Hub,
    scratch: tempfile::TempDir,
}

impl Bed {
    fn new(files: BTreeMap<String, Vec<u8>>) -> Self {
        Self { hub: Hub::start(files), scratch: tempfile::tempdir().unwrap() }
    }

    fn command(&self) -> Command {
        let mut command = darkroom();
        for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"] {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", &self.hub.url).env("HF_HOME", self.scratch.path().join("hf"));
        command.env("DARKROOM_DATA_DIR", self.scratch.path().join("data")).env("NO_PROXY", "127.0.0.1");
        command
    }

    fn pull(&self, arguments: &[&str]) -> Command {
        let mut command = self.command();
        command.arg("pull").args(arguments);
        command
    }

    fn folder(&self) -> PathBuf {
        self.scratch.path().join("data/models").join(REPOSITORY)
    }

    /// The ids that `serve` would serve.
    fn served(&self) -> Vec<String> {
        let text = told(self.command().args(["models", "--json"]));
        let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
        text.lines().map(id).filter(|id| id != "pinhole").collect()
    }

    fn fetched(&self) -> Vec<String> {
        let bytes = self.hub.seen().into_iter().filter(|seen| seen.method == Method::GET && !seen.file.is_empty());
        let mut files: Vec<String> = bytes.map(|seen| seen.file).collect();
        files.dedup();
        files
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

fn told(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(!text(&output).contains(TOKEN) && !text(&output).contains("do-not-show"), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// What a failed command says; never a token, nor an address that a store signed.
fn refused(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let told = text(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(!told.contains(TOKEN) && !told.contains("do-not-show") && !told.contains("panicked"), "{told}");
    told
}

/// Names of the files that have theirs; hidden ones are parts and the record.
fn kept(folder: &Path) -> Vec<String> {
    let hidden = |name: &String| name.split('/').any(|part| part.starts_with('.'));
    if !folder.exists() {
        return Vec::new();
    }
    files_of(folder).into_keys().filter(|name| !hidden(name)).collect()
}

fn pixels(bytes: &[u8]) -> Vec<u8> {
    decode(bytes, ImageFormat::Png).unwrap().pixels().to_vec()
}

#[test]
fn what_was_pulled_is_served_and_draws_the_fixtures_picture() {
    let bed = Bed::new(repository());
    bed.hub.change(|contents| contents.token = Some(TOKEN.to_owned()));
    let said = told(bed.pull(&[REPOSITORY]).env("HF_TOKEN", TOKEN));
    assert!(said.contains("darkroom serve") && said.contains("\"tiny\"") && said.contains(COMMIT), "{said}");

    let expected = files_of(&tiny_sd());
    assert_eq!(kept(&bed.folder()), expected.keys().cloned().collect::<Vec<_>>(), "nothing but what is read");
    for (name, bytes) in expected.iter().filter(|(name, _)| *name != "model_index.json") {
        assert_eq!(&std::fs::read(bed.folder().join(name)).unwrap(), bytes, "{name}");
    }
    let record: Value =
        serde_json::from_slice(&std::fs::read(bed.folder().join(".darkroom-pull.json")).unwrap()).unwrap();
    assert_eq!(
        (&record["repository"], &record["revision"], &record["commit"]),
        (&REPOSITORY.into(), &"main".into(), &COMMIT.into())
    );
    assert_eq!(record["files"][UNET]["checksum"], format!("SHA-256 {}", sha256(&expected[UNET])));

    let seen = bed.hub.seen();
    assert!(seen.iter().any(|seen| seen.place == "store"));
    for seen in seen {
        let authorization = (seen.place == "hub").then(|| format!("Bearer {TOKEN}"));
        assert_eq!(seen.authorization, authorization, "{seen:?}");
    }

    assert_eq!(bed.served(), ["tiny"]);
    let out = bed.scratch.path().join("out.png");
    let mut generate = bed.command();
    generate.args(["generate", "--prompt", "a cat", "--width", "32", "--height", "32", "--sampler", "ddim"]);
    told(generate.args(["--model", "tiny", "--seed", "11", "--steps", "5", "-o"]).arg(&out));
    assert_eq!(pixels(&std::fs::read(out).unwrap()), pixels(&generated(11, 5)));

    let again = told(bed.pull(&[REPOSITORY]).env("HF_TOKEN", TOKEN));
    assert!(again.contains("0 of them fetched"), "{again}");
    assert_eq!(bed.fetched(), [""; 0], "what is there is not fetched again");
}

#[test]
fn an_interrupted_pull_leaves_no_model_and_goes_on_where_it_ended() {
    let bed = Bed::new(repository());
    bed.hub.trouble(UNET, &[Trouble::CutAfter(1_000_000)]);
    let said = refused(&mut bed.pull(&[REPOSITORY, "--attempts", "1"]));
    assert!(said.contains(UNET) && said.contains("goes on from there"), "{said}");
    assert_eq!(kept(&bed.folder()), [""; 0]);
    assert_eq!(bed.served(), [""; 0]);
    let is_part = |name: &&String| name.starts_with("unet/.diffusion") && name.ends_with(".part");
    let files = files_of(&bed.folder());
    // As much as had arrived when the connection broke.
    let part = files.keys().find(is_part).map(|name| files[name].len()).unwrap();
    assert!((1..=1_000_000).contains(&part), "{part}");
    bed.hub.seen();

    told(&mut bed.pull(&[REPOSITORY]));
    let ranges: Vec<_> =
        bed.hub.seen().into_iter().filter(|seen| seen.place == "store").map(|seen| (seen.file, seen.range)).collect();
    assert!(ranges.contains(&(UNET.to_owned(), Some(format!("bytes={part}-")))), "{ranges:?}");
    assert_eq!(std::fs::read(bed.folder().join(UNET)).unwrap(), std::fs::read(tiny_sd().join(UNET)).unwrap());
    assert_eq!(bed.served(), ["tiny"]);
    let hidden = files_of(&bed.folder()).into_keys().filter(|name| name.ends_with(".part")).count();
    assert_eq!(hidden, 0);
}

#[test]
fn passing_trouble_is_waited_out() {
    let bed = Bed::new(repository());
    bed.hub.trouble("", &[Trouble::Status(503)]);
    bed.hub.trouble("unet/config.json", &[Trouble::Status(500)]);
    // The second answer begins anew, the third is cut again, and the fourth goes on.
    bed.hub.trouble(UNET, &[Trouble::CutAfter(5000), Trouble::NoRange]);
    bed.hub.trouble("vae/diffusion_pytorch_model.safetensors", &[Trouble::CutAfter(10), Trouble::CutAfter(10)]);
    told(&mut bed.pull(&[REPOSITORY]));
    for name in [UNET, "vae/diffusion_pytorch_model.safetensors", "unet/config.json"] {
        assert_eq!(
            std::fs::read(bed.folder().join(name)).unwrap(),
            std::fs::read(tiny_sd().join(name)).unwrap(),
            "{name}"
        );
    }
}

#[test]
fn what_is_not_as_the_hub_says_is_removed() {
    let bed = Bed::new(repository());
    for (file, trouble, part) in [
        ("unet/config.json", Trouble::Corrupt, "git blob"),
        (UNET, Trouble::Corrupt, "SHA-256"),
        (UNET, Trouble::TooLong, "more than its"),
    ] {
        bed.hub.trouble(file, &[trouble]);
        let said = refused(&mut bed.pull(&[REPOSITORY]));
        assert!(said.contains(file) && said.contains(part), "{part} in {said}");
        assert_eq!(kept(&bed.folder()), [""; 0]);
        let name = format!(".{}", file.rsplit('/').next().unwrap());
        let left = std::fs::read_dir(bed.folder().join("unet")).unwrap();
        assert!(left.flatten().all(|entry| !entry.file_name().to_string_lossy().starts_with(&name)), "{file}");
    }
}

#[test]
fn a_silent_hub_is_given_up() {
    let bed = Bed::new(repository());
    bed.hub.trouble(UNET, &[Trouble::Stall]);
    let said = refused(&mut bed.pull(&[REPOSITORY, "--timeout", "1", "--attempts", "1"]));
    assert!(said.contains("nothing came for 1 s"), "{said}");
    let said = refused(bed.pull(&[REPOSITORY, "--attempts", "1"]).env("HF_ENDPOINT", "http://127.0.0.1:1"));
    assert!(said.contains("127.0.0.1:1"), "{said}");
}

#[test]
fn who_may_not_is_told_what_to_do() {
    let bed = Bed::new(repository());
    bed.hub.change(|contents| contents.token = Some("hf_another".to_owned()));
    let page = format!("{}/{REPOSITORY}", bed.hub.url);
    let said = refused(&mut bed.pull(&[REPOSITORY]));
    for part in ["gated (401)", "licence", &page, "HF_TOKEN"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let said = refused(bed.pull(&[REPOSITORY]).env("HF_TOKEN", TOKEN));
    assert!(said.contains("gated (403)") && said.contains("was refused"), "{said}");
    bed.hub.change(|contents| contents.token = None);
    let said = refused(&mut bed.pull(&["org/other"]));
    assert!(said.contains("no org/other") && said.contains("404"), "{said}");
    let said = refused(&mut bed.pull(&[&format!("{REPOSITORY}@v9")]));
    assert!(said.contains("no revision `v9`"), "{said}");
    for wrong in ["tiny", "../tiny", "org/tiny@../x"] {
        refused(&mut bed.pull(&[wrong]));
    }
    let said = refused(bed.pull(&[REPOSITORY]).env("HF_ENDPOINT", "hub").env("HF_TOKEN", "hf_a b"));
    assert!(said.contains("HF_ENDPOINT") && said.contains("HF_TOKEN") && !said.contains("hf_a b"), "{said}");
    assert!(!bed.scratch.path().join("data/models").exists(), "nothing is made for a pull that cannot be");
}

#[test]
fn a_hostile_repository_writes_nothing_outside() {
    let mut files = repository();
    files.insert(
        "unet/diffusion_pytorch_model.safetensors.index.json".to_owned(),
        br#"{"weight_map": {"w": "../../x.safetensors"}}"#.to_vec(),
    );
    files.remove(UNET);
    files.insert("../../x.safetensors".to_owned(), b"outside".to_vec());
    let bed = Bed::new(files);
    let said = refused(&mut bed.pull(&[REPOSITORY]));
    assert!(said.contains("../../x.safetensors"), "{said}");
    let said = refused(&mut bed.pull(&[REPOSITORY, "--file", "../../x.safetensors"]));
    assert!(said.contains("no name that a file can be stored by"), "{said}");
    for name in ["../x", "/tmp/x", ".hidden"] {
        assert!(refused(&mut bed.pull(&[REPOSITORY, "--as", name])).contains("--as"), "{name}");
    }
    let outside = files_of(bed.scratch.path()).into_keys().filter(|name| !name.contains(REPOSITORY)).count();
    assert_eq!(outside, 0);
    assert_eq!(kept(&bed.folder()), [""; 0]);
}

#[test]
fn one_file_is_pulled_by_its_name() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("photo.safetensors");
    write(&path, &table("tiny-sd2").apply(&read_folder(&fixtures().join("tiny-sd2"))));
    let checkpoint = std::fs::read(&path).unwrap();
    let bed = Bed::new(BTreeMap::from([
        ("photo.safetensors".to_owned(), checkpoint.clone()),
        ("photo.ckpt".to_owned(), b"\x80\x02".to_vec()),
    ]));
    let said = refused(&mut bed.pull(&[REPOSITORY]));
    assert!(said.contains("--file") && said.contains("photo.safetensors"), "{said}");
    assert!(refused(&mut bed.pull(&[REPOSITORY, "--file", "photo.ckpt"])).contains("pickle"));

    let said = told(&mut bed.pull(&[REPOSITORY, "--file", "photo.safetensors"]));
    assert!(said.contains("\"photo\"") && said.contains("1 file,"), "{said}");
    assert_eq!(std::fs::read(bed.folder().join("photo.safetensors")).unwrap(), checkpoint);

    let elsewhere = scratch.path().join("models");
    let said = told(bed.pull(&[REPOSITORY, "--file", "photo.safetensors", "--as", "mine", "--to"]).arg(&elsewhere));
    let place = elsewhere.join("mine/photo.safetensors");
    assert_eq!(std::fs::read(&place).unwrap(), checkpoint);
    assert!(said.contains(&format!("darkroom serve --model {}", place.display())), "{said}");
}

#[test]
fn a_hub_whose_list_has_no_checksums_is_asked_for_each() {
    let bed = Bed::new(repository());
    bed.hub.change(|contents| contents.tells_sums = false);
    told(&mut bed.pull(&[REPOSITORY]));
    assert!(bed.hub.seen().iter().any(|seen| seen.method == Method::HEAD && seen.file == UNET));
    assert_eq!(bed.served(), ["tiny"]);
    std::fs::remove_file(bed.folder().join(UNET)).unwrap();
    // The store's own name for its contents is no checksum.
    bed.hub.trouble(UNET, &[Trouble::NoRange]);
    assert!(refused(&mut bed.pull(&[REPOSITORY])).contains("could not be checked"));
}

#[test]
fn a_new_revision_brings_what_changed_and_takes_what_is_gone() {
    let mut files = repository();
    files.insert("unet/extra.json".to_owned(), b"{}".to_vec());
    let bed = Bed::new(files);
    told(&mut bed.pull(&[REPOSITORY]));
    assert!(bed.folder().join("unet/extra.json").exists());
    bed.hub.seen();
    bed.hub.change(|contents| {
        contents.commit = "3".repeat(40);
        contents.files.remove("unet/extra.json");
        contents.files.insert("tokenizer/added_tokens.json".to_owned(), b"{}".to_vec());
    });
    std::fs::write(bed.folder().join("unet/mine.txt"), "not pulled").unwrap();
    told(&mut bed.pull(&[&format!("{REPOSITORY}@{}", "3".repeat(40))]));
    assert_eq!(bed.fetched(), ["tokenizer/added_tokens.json"]);
    assert!(!bed.folder().join("unet/extra.json").exists() && bed.folder().join("unet/mine.txt").exists());
}

#[test]
fn what_other_tools_have_fetched_is_taken_from_their_cache() {
    let bed = Bed::new(repository());
    let blobs = bed.scratch.path().join("hf/hub/models--org--tiny/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let unet = std::fs::read(tiny_sd().join(UNET)).unwrap();
    std::fs::write(blobs.join(sha256(&unet)), &unet).unwrap();
    let vae = std::fs::read(tiny_sd().join("vae/diffusion_pytorch_model.safetensors")).unwrap();
    // A damaged one is not.
    std::fs::write(blobs.join(sha256(&vae)), vec![0; vae.len()]).unwrap();
    told(&mut bed.pull(&[REPOSITORY]));
    let fetched = bed.fetched();
    assert!(!fetched.contains(&UNET.to_owned()), "{fetched:?}");
    assert_eq!(std::fs::read(bed.folder().join(UNET)).unwrap(), unet);
    assert_eq!(std::fs::read(bed.folder().join("vae/diffusion_pytorch_model.safetensors")).unwrap(), vae);
}

#[test]
fn a_second_model_of_one_name_is_given_another() {
    let bed = Bed::new(repository());
    told(&mut bed.pull(&[REPOSITORY, "--as", "other/tiny"]));
    let said = refused(&mut bed.pull(&[REPOSITORY]));
    assert!(said.contains("--as NAME") && said.contains("other/tiny"), "{said}");
    told(&mut bed.pull(&[REPOSITORY, "--as", "small"]));
    assert_eq!(bed.served(), ["tiny", "small"]);
}
