//! Where a checkpoint's files are, and reading them.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::changes::Changed;
use super::disk;
use super::header::PICKLED;
use super::single_file::{ControlNetFile, Layout, TinyFile, VaeFile};
use super::tensors::{Bytes, Shard, Weights};
use super::variants::{self, WeightFile, choose};
use super::{Error, Result};

/// Finds an embedded file by its path inside the checkpoint.
pub type EmbeddedFiles = fn(&str) -> Option<Cow<'static, [u8]>>;

/// A checkpoint, seen in the diffusers folder layout: `model_index.json`, `unet/`, `vae/`, `text_encoder/`, ...
#[derive(Clone)]
pub enum Checkpoint {
    /// A folder on disk.
    Folder(PathBuf),
    /// Files inside the binary.
    Embedded {
        /// How messages call it.
        name: String,
        /// Finds them.
        files: EmbeddedFiles,
    },
    /// One file in the names of the original code, by [`Checkpoint::file`].
    File(Arc<SingleFile>),
    /// The folder of one component alone, such as `vae`.
    Component(&'static str, PathBuf),
    /// The file of an autoencoder alone.
    VaeFile(Arc<VaeFile>),
    /// The file of a ControlNet alone, by [`Checkpoint::controlnet_file`].
    ControlNetFile(Arc<ControlNetFile>),
    /// The file of a tiny autoencoder's decoder alone.
    TinyFile(Arc<TinyFile>),
    /// Another with what an operator says of it, by [`Checkpoint::changed`].
    Changed(Arc<Changed>),
}

/// A checkpoint in one file.
pub struct SingleFile {
    path: PathBuf,
    pub(super) shard: Arc<Shard>,
    layout: Layout,
    /// A folder whose configurations and tokenizers go before what the file tells.
    configs: Option<PathBuf>,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checkpoint({})", self.describe(""))
    }
}

impl Checkpoint {
    /// Opens a checkpoint in one file. Configurations and tokenizers come from the folder `configs` where it has them.
    ///
    /// # Errors
    /// A file that is no safetensors file, or no checkpoint of a known family.
    pub fn file(path: &Path, configs: Option<PathBuf>) -> Result<Self> {
        let file = path.display().to_string();
        if variants::is_pickle(&file) {
            return Err(Error::Malformed { file, reason: PICKLED.to_owned() });
        }
        let shard = disk::shard(path)?;
        let layout = Layout::read(shard.header()).map_err(|reason| Error::Malformed { file, reason })?;
        Ok(Self::File(Arc::new(SingleFile { path: path.to_owned(), shard, layout, configs })))
    }

    /// What a single file was found to be.
    pub fn layout(&self) -> Option<&Layout> {
        match self {
            Self::File(file) => Some(&file.layout),
            Self::Changed(changed) => changed.base.layout(),
            _ => None,
        }
    }

    /// How messages name a file of it.
    pub fn describe(&self, relative: &str) -> String {
        let within = |path: &Path| match relative {
            "" => path.display().to_string(),
            _ => format!("{} ({relative})", path.display()),
        };
        match self {
            Self::Folder(root) if relative.is_empty() => root.display().to_string(),
            Self::Folder(root) => root.join(relative).display().to_string(),
            Self::Embedded { name, .. } => format!("{name}/{relative}"),
            Self::Component(name, root) => root.join(below(name, relative)).display().to_string(),
            Self::File(file) => within(&file.path),
            Self::VaeFile(file) => within(&file.path),
            Self::ControlNetFile(file) => within(&file.path),
            Self::TinyFile(file) => within(&file.path),
            Self::Changed(changed) => changed.of(relative).describe(relative),
        }
    }

    /// Whether it has this file.
    pub fn has(&self, relative: &str) -> bool {
        match self {
            Self::Folder(root) => disk::has(root, relative),
            Self::Embedded { files, .. } => files(relative).is_some(),
            Self::Component(name, root) => disk::has(root, below(name, relative)),
            Self::File(file) => {
                file.configs.as_ref().is_some_and(|configs| disk::has(configs, relative))
                    || file.layout.text(relative).is_some()
            }
            Self::VaeFile(_) => relative == VAE_CONFIG,
            Self::ControlNetFile(_) => relative == CONTROLNET_CONFIG,
            Self::TinyFile(_) => relative == TINY_CONFIG,
            Self::Changed(changed) => changed.patches.contains_key(relative) || changed.of(relative).has(relative),
        }
    }

    /// A whole small file, as text.
    pub fn text(&self, relative: &str) -> Result<String> {
        match self {
            Self::Folder(root) => disk::text(root, relative),
            Self::Embedded { files, .. } => {
                let bytes = files(relative).ok_or_else(|| self.unreadable(relative, &"not embedded"))?.into_owned();
                String::from_utf8(bytes).map_err(|_| self.malformed(relative, "it is not UTF-8 text"))
            }
            Self::Component(name, root) => disk::text(root, below(name, relative)),
            Self::File(file) => match &file.configs {
                Some(configs) if disk::has(configs, relative) => disk::text(configs, relative),
                _ => match file.layout.text(relative) {
                    Some(Ok(text)) => Ok(text),
                    Some(Err(reason)) => Err(self.malformed(relative, format!("{reason}; {NAME_CONFIGS}"))),
                    None => Err(self.unreadable(relative, &format!("the file does not tell it; {NAME_CONFIGS}"))),
                },
            },
            Self::VaeFile(file) if relative == VAE_CONFIG => Ok(file.config.to_string()),
            Self::ControlNetFile(file) if relative == CONTROLNET_CONFIG => Ok(file.config.to_string()),
            Self::ControlNetFile(_) => Err(self.unreadable(relative, &"it is a ControlNet alone")),
            Self::TinyFile(file) if relative == TINY_CONFIG => Ok(file.config.to_string()),
            Self::VaeFile(_) | Self::TinyFile(_) => Err(self.unreadable(relative, &"it is an autoencoder alone")),
            Self::Changed(changed) => match changed.patches.get(relative) {
                Some(_) => Ok(self.json::<Value>(relative)?.to_string()),
                None => changed.of(relative).text(relative),
            },
        }
    }

    /// A JSON file.
    pub fn json<T: DeserializeOwned>(&self, relative: &str) -> Result<T> {
        let malformed = |error: serde_json::Error| self.malformed(relative, error.to_string());
        if let Self::Changed(changed) = self
            && let Some(patch) = changed.patches.get(relative)
        {
            let (base, absent) = (changed.of(relative), Value::Object(serde_json::Map::new()));
            let mut json = if base.has(relative) { base.json::<Value>(relative)? } else { absent };
            super::changes::merge(&mut json, patch);
            return serde_json::from_value(json).map_err(malformed);
        }
        serde_json::from_str(&self.text(relative)?).map_err(malformed)
    }

    /// The weights of one component, such as `unet`: one safetensors file, or the shards that an index file names, in the
    /// plain variant or, where only another is there, in that.
    pub fn weights(&self, component: &str, device: &Device) -> Result<Weights> {
        self.variant_of(component, None, device)
    }

    pub(super) fn variant_of(&self, component: &str, variant: Option<&str>, device: &Device) -> Result<Weights> {
        match self {
            Self::Folder(_) | Self::Embedded { .. } | Self::Component(..) => {
                Weights::open(self.shards(component, variant)?, None, device)
            }
            Self::File(file) => match file.layout.component(component) {
                Some(found) => Weights::open(vec![file.shard.clone()], Some(found.names.clone()), device),
                None if component == "vae" => Err(self.malformed(
                    "",
                    "it has no autoencoder (`first_stage_model`); name a file or folder that has one by `vae`",
                )),
                None => Err(self.malformed("", format!("it has no tensors of `{component}`"))),
            },
            Self::VaeFile(file) => Weights::open(vec![file.shard.clone()], Some(file.names.clone()), device),
            Self::ControlNetFile(file) => Weights::open(vec![file.shard.clone()], Some(file.names.clone()), device),
            Self::TinyFile(file) => Weights::open(vec![file.shard.clone()], Some(file.names.clone()), device),
            Self::Changed(changed) => {
                changed.of(&format!("{component}/")).variant_of(component, changed.variant.as_deref(), device)
            }
        }
    }

    pub(super) fn shards(&self, component: &str, variant: Option<&str>) -> Result<Vec<Arc<Shard>>> {
        let within = |name: &str| format!("{component}/{name}");
        let chosen = choose(&self.names(component), variant)
            .map_err(|reason| self.unreadable(&within(&variants::usual_name()), &reason))?;
        let index = match chosen {
            WeightFile::Whole(name) => return Ok(vec![self.shard(&within(&name))?]),
            WeightFile::Index(name) => within(&name),
        };
        let tensors =
            variants::shards(&self.json::<Value>(&index)?).map_err(|reason| self.malformed(&index, reason))?;
        let read = |(file, tensors): (String, Vec<String>)| {
            let shard = self.shard(&within(&file))?;
            match shard.lacking(tensors) {
                None => Ok(shard),
                Some(tensor) => Err(Error::Missing { file: self.describe(&within(&file)), tensor }),
            }
        };
        tensors.into_iter().map(read).collect()
    }

    /// What lies in the folder of a component.
    pub(super) fn names(&self, component: &str) -> Vec<String> {
        match self {
            Self::Folder(root) => disk::names(&root.join(component)),
            Self::Component(_, root) => disk::names(root),
            _ => variants::usual_names().filter(|name| self.has(&format!("{component}/{name}"))).collect(),
        }
    }

    fn shard(&self, relative: &str) -> Result<Arc<Shard>> {
        match self {
            Self::Folder(root) => disk::shard(&disk::inside(root, relative)?),
            Self::Component(name, root) => disk::shard(&disk::inside(root, below(name, relative))?),
            Self::Embedded { files, .. } => {
                let bytes = files(relative).ok_or_else(|| self.unreadable(relative, &"not embedded"))?;
                Shard::parse(self.describe(relative), Bytes::Held(bytes))
            }
            _ => Err(self.unreadable(relative, &"it is no folder")),
        }
    }

    /// An error about one file's contents.
    pub fn malformed(&self, relative: &str, reason: impl Into<String>) -> Error {
        Error::Malformed { file: self.describe(relative), reason: reason.into() }
    }

    fn unreadable(&self, relative: &str, reason: &dyn fmt::Display) -> Error {
        Error::Read { file: self.describe(relative), reason: reason.to_string() }
    }
}

const NAME_CONFIGS: &str = "name a folder with the checkpoint's configurations and tokenizer by `config`";
const VAE_CONFIG: &str = "vae/config.json";
const CONTROLNET_CONFIG: &str = "config.json";

/// Where a tiny autoencoder for previews says what it is.
pub(super) const TINY_CONFIG: &str = "vae_tiny/config.json";

/// The folder of a component alone stands for the component's in a checkpoint.
fn below<'a>(component: &str, relative: &'a str) -> &'a str {
    match relative.strip_prefix(component) {
        Some("") => "",
        Some(rest) => rest.strip_prefix('/').unwrap_or(relative),
        None => relative,
    }
}
