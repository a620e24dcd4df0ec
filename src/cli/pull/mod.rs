//! `darkroom pull`: a model from a hub that speaks Hugging Face's protocol, checked, to where `darkroom serve` finds it.
//!
//! Everything is fetched beside its place first; only when all of it is there and checked does any of it take its name. So a server never
//! finds half a model, and a pull that was cut off goes on where it ended. Pickle files are never fetched.

mod checksum;
mod fetch;
mod plan;
mod record;
mod remote;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use self::fetch::{Fetched, Fetcher};
use self::plan::{Component, Kind};
use self::record::{PulledFile, Record};
use self::remote::{Remote, RemoteFile, patiently};
use super::{ServeArgs, say};
use crate::app::offers;
use crate::config::{HubSettings, Settings};
use crate::diffusion::pipelines::{self, ModelPlace};
use crate::diffusion::weights::Checkpoint;
use crate::diffusion::weights::variants::WeightFile;

/// Flags of `pull`. HF_TOKEN, HF_ENDPOINT, HF_HOME and HF_HUB_CACHE mean what they mean to Hugging Face's own tools.
#[derive(Debug, Args)]
pub(super) struct PullArgs {
    /// ORG/NAME, or ORG/NAME@REV for a branch, tag or commit; without one, `main`.
    repository: String,
    /// One safetensors file instead of the whole model, such as a checkpoint in one file.
    #[arg(long)]
    file: Option<String>,
    /// Weights of this variant, such as fp16, where there are any. Without it: the plain ones, else fp16.
    #[arg(long, conflicts_with = "file")]
    variant: Option<String>,
    /// The folder that models are in; when absent, that of the settings (models.dir).
    #[arg(long)]
    to: Option<PathBuf>,
    /// The model's folder within it, whose name becomes the model's id; ORG/NAME when absent.
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
    /// A TOML file of settings; config/default.toml lists them all.
    #[arg(long, env = "DARKROOM_CONFIG")]
    config: Option<PathBuf>,
    /// Longest silence of the hub, in seconds.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// Attempts in a row that may bring nothing.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    attempts: u32,
}

/// `ORG/NAME[@REV]`
#[derive(Debug, PartialEq, Eq)]
struct Repository {
    id: String,
    revision: String,
}

impl Repository {
    fn parse(text: &str) -> Result<Self, String> {
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        let part = |part: &str| {
            (1..=96).contains(&part.len())
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
                && !part.starts_with(['.', '-'])
        };
        if !id.split_once('/').is_some_and(|(org, name)| part(org) && part(name)) {
            return Err(format!("`{id}` is no repository; write ORG/NAME, or ORG/NAME@REV"));
        }
        let plain = revision.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte));
        if !plain
            || revision.is_empty()
            || revision.len() > 255
            || revision.split('/').any(|part| part.is_empty() || part.starts_with('.'))
        {
            return Err(format!("`{revision}` is no revision: a branch, a tag or a commit"));
        }
        Ok(Self { id: id.to_owned(), revision: revision.to_owned() })
    }
}

pub(super) async fn pull(args: PullArgs) -> Result<(), String> {
    let settings = ServeArgs { config: args.config.clone(), ..ServeArgs::default() }.settings()?;
    let hub = HubSettings::from_environment().map_err(|faults| {
        let each: Vec<String> = faults.iter().map(|fault| format!("  {fault}")).collect();
        format!("the environment is not valid:\n{}", each.join("\n"))
    })?;
    let repository = Repository::parse(&args.repository)?;
    let name = args.name.as_deref().unwrap_or(&repository.id);
    plan::checked(name).map_err(|error| format!("--as: {error}"))?;
    let root = args.to.clone().unwrap_or_else(|| settings.models_dir());
    let folder = root.join(name);
    if args.file.is_none() {
        unique(&root, &folder)?;
    }

    let blobs = hub
        .cache
        .as_ref()
        .map(|cache| cache.join(format!("models--{}", repository.id.replace('/', "--"))).join("blobs"));
    let patience = Duration::from_secs(args.timeout);
    let mut remote = Remote::new(hub, &repository.id, &repository.revision, patience)?;
    let listed = patiently(args.attempts, async || remote.list().await).await;
    let of_it = |error: String| format!("{}: {error}", remote.page());
    let (commit, listed) = listed.map_err(of_it)?;
    let names: Vec<String> = listed.iter().map(|file| file.name.clone()).collect();
    // What is wrong with the names is told before anything is made.
    let single = args.file.as_deref().map(|file| plan::single(file, &names)).transpose().map_err(of_it)?;
    let kind = if single.is_none() { Some(plan::kind(&names).map_err(of_it)?) } else { None };

    std::fs::create_dir_all(&folder).map_err(|error| fetch::told(&folder, &error))?;
    let mut record = Record::open(&folder)?;
    let bar = progress_bar();
    let fetcher = Fetcher { remote: &remote, folder: &folder, blobs, attempts: args.attempts, bar: &bar };
    let job = Pull { fetcher, listed, names, variant: args.variant.as_deref() };
    let done = match (single, kind) {
        (Some(file), _) => job.all(vec![file], Vec::new()).await,
        (None, Some(Kind::Pipeline)) => job.pipeline().await,
        (None, _) => job.part().await,
    };
    bar.finish_and_clear();
    let mut files = done.map_err(of_it)?;

    let fresh = files.iter().filter(|file| !file.was_there()).count();
    let pulled = (repository, commit.clone(), remote.endpoint().to_owned());
    let whole = args.file.is_none();
    put(&folder, &mut files, &mut record, pulled, whole)?;
    let bytes: u64 = files.iter().map(|file| file.size).sum();
    say(format!(
        "{} at {commit}: {}, {}, {fresh} of them fetched, in {}",
        args.repository,
        counted(files.len()),
        indicatif::BinaryBytes(bytes),
        folder.display()
    ))?;
    let place = match &args.file {
        Some(_) => files[0].path.clone(),
        None => folder,
    };
    say(next_step(&settings, &place, args.config.as_deref()))
}

/// One pull: what the repository lists, and what fetches it.
struct Pull<'a> {
    fetcher: Fetcher<'a>,
    listed: Vec<RemoteFile>,
    names: Vec<String>,
    variant: Option<&'a str>,
}

impl Pull<'_> {
    async fn pipeline(&self) -> Result<Vec<Fetched>, String> {
        let index = self.fetch(plan::MODEL_INDEX).await?;
        let json = serde_json::from_str(&index.text()?).map_err(|error| format!("{}: {error}", plan::MODEL_INDEX))?;
        let components = plan::components(&json, &self.names, self.variant)?;
        self.components(components, vec![index]).await
    }

    async fn part(&self) -> Result<Vec<Fetched>, String> {
        let part = plan::part(&self.names, self.variant)?;
        self.components(vec![part], Vec::new()).await
    }

    /// Everything of these components. Indexes come first: they tell how much there is.
    async fn components(&self, components: Vec<Component>, mut done: Vec<Fetched>) -> Result<Vec<Fetched>, String> {
        let mut wanted = Vec::new();
        for component in components {
            wanted.extend(component.texts.into_iter().filter(|name| name != plan::MODEL_INDEX));
            match component.weights {
                Some(WeightFile::Whole(name)) => wanted.push(plan::join(&component.folder, &name)),
                Some(WeightFile::Index(name)) => {
                    let name = plan::join(&component.folder, &name);
                    let index = self.fetch(&name).await?;
                    let shards = plan::shards(&component.folder, &index.text()?);
                    wanted.extend(shards.map_err(|error| format!("`{name}`: {error}"))?);
                    done.push(index);
                }
                None => {}
            }
        }
        self.all(wanted, done).await
    }

    async fn all(&self, wanted: Vec<String>, mut done: Vec<Fetched>) -> Result<Vec<Fetched>, String> {
        let mut files = Vec::new();
        for name in wanted {
            files.push(self.described(&name).await?);
        }
        let known: u64 = files.iter().filter_map(|file| file.size).chain(done.iter().map(|file| file.size)).sum();
        self.fetcher.bar.set_length(known);
        for file in files {
            done.push(self.fetcher.fetch(&file).await?);
        }
        Ok(done)
    }

    async fn fetch(&self, name: &str) -> Result<Fetched, String> {
        self.fetcher.fetch(&self.described(name).await?).await
    }

    /// With size and checksum: from the list, or else from the file's own headers.
    async fn described(&self, name: &str) -> Result<RemoteFile, String> {
        let listed = self.listed.iter().find(|file| file.name == name);
        let listed = listed.ok_or_else(|| format!("it has no `{name}`"))?;
        if listed.size.is_some() && listed.sum.is_some() {
            return Ok(listed.clone());
        }
        patiently(self.fetcher.attempts, async || self.fetcher.remote.describe(name).await).await
    }
}

/// Everything to its place, `model_index.json` last: it is what makes the folder a model. Then what an earlier revision had
/// in the folders of parts, and this one has not, is removed: it would be read as well.
fn put(
    folder: &Path,
    files: &mut [Fetched],
    record: &mut Record,
    (repository, commit, endpoint): (Repository, String, String),
    whole: bool,
) -> Result<(), String> {
    files.sort_by_key(|file| file.name == plan::MODEL_INDEX);
    let pulled = &mut record.pulled;
    if pulled.repository != repository.id {
        pulled.files.clear();
    }
    let is_stale = |name: &str, file: &PulledFile| {
        whole && name.contains('/') && file.commit != commit && !files.iter().any(|new| new.name == name)
    };
    let stale: Vec<String> =
        pulled.files.iter().filter(|(name, file)| is_stale(name, file)).map(|(name, _)| name.clone()).collect();
    for name in stale {
        pulled.files.remove(&name);
        if let Ok(path) = plan::checked(&name).and_then(|name| fetch::place(folder, name)) {
            // Gone already is as good.
            let _ = std::fs::remove_file(path);
        }
    }
    for file in files.iter_mut() {
        file.keep()?;
        let entry = PulledFile { commit: commit.clone(), size: file.size, checksum: file.sum.to_string() };
        pulled.files.insert(file.name.clone(), entry);
    }
    pulled.repository = repository.id;
    pulled.revision = repository.revision;
    (pulled.commit, pulled.endpoint) = (commit, endpoint);
    record.save(folder)
}

/// Two folders of one name would be two models of one id, and a server would not start.
fn unique(root: &Path, folder: &Path) -> Result<(), String> {
    let found = pipelines::scan(root).unwrap_or_default();
    let twin = found
        .models
        .iter()
        .find(|path| path.as_path() != folder && path.is_dir() && path.file_name() == folder.file_name());
    match twin {
        Some(twin) => Err(format!(
            "{} has that name already, and it would be the id of both; give this one another by --as NAME",
            twin.display()
        )),
        None => Ok(()),
    }
}

/// The line to go on with.
fn next_step(settings: &Settings, place: &Path, config: Option<&Path>) -> String {
    let is_model =
        if place.is_dir() { place.join(plan::MODEL_INDEX).is_file() } else { Checkpoint::file(place, None).is_ok() };
    if !is_model {
        return "It is no whole model; other models use it by its path.".to_owned();
    }
    let config = config.map(|path| format!(" --config {}", path.display())).unwrap_or_default();
    let here = |path: &Path| path.canonicalize().ok() == place.canonicalize().ok();
    match offers(settings) {
        Ok(offers) => {
            match offers
                .iter()
                .map(|offer| &offer.source)
                .find(|source| matches!(&source.place, ModelPlace::Path(path) if here(path)))
            {
                Some(source) => format!(
                    "`darkroom serve{config}` serves it as \"{}\"; `darkroom generate{config} --model {} --prompt ...` draws at once.",
                    source.id, source.id
                ),
                None => format!("`darkroom serve{config} --model {}` serves it.", place.display()),
            }
        }
        Err(error) => format!("It is complete, but `darkroom serve{config}` will not start as it is: {error}"),
    }
}

fn counted(files: usize) -> String {
    if files == 1 { "1 file".to_owned() } else { format!("{files} files") }
}

fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    let template = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left  {msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_named_by_org_name_and_revision() {
        let parsed = Repository::parse("stabilityai/sd-turbo@refs/pr/1").expect("valid");
        assert_eq!((parsed.id.as_str(), parsed.revision.as_str()), ("stabilityai/sd-turbo", "refs/pr/1"));
        assert_eq!(Repository::parse("a/b").expect("valid").revision, "main");
        for wrong in [
            "",
            "gpt2",
            "a/b/c",
            "/b",
            "a/",
            "../b",
            "a/..",
            "a/.b",
            "a b/c",
            "a/b@",
            "a/b@../c",
            "a/b@x y",
            "a/b@a//b",
            "https://x/y",
        ] {
            assert!(Repository::parse(wrong).is_err(), "{wrong}");
        }
    }
}
