//! Where a checkpoint's files are, and reading them.

use std::borrow::Cow;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use candle_core::Device;
use serde::de::DeserializeOwned;

use super::tensors::{Bytes, Shard, Weights};
use super::{Error, Result};

/// Finds an embedded file by its path inside the checkpoint.
pub type EmbeddedFiles = fn(&str) -> Option<Cow<'static, [u8]>>;

/// A checkpoint in the diffusers folder layout: `model_index.json`, `unet/`, `vae/`, `text_encoder/`, ...
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
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checkpoint({})", self.describe(""))
    }
}

impl Checkpoint {
    /// How messages name a file of it.
    pub fn describe(&self, relative: &str) -> String {
        match self {
            Self::Folder(root) => root.join(relative).display().to_string(),
            Self::Embedded { name, .. } => format!("{name}/{relative}"),
        }
    }

    /// Whether it has this file.
    pub fn has(&self, relative: &str) -> bool {
        match self {
            Self::Folder(root) => is_inside(relative) && root.join(relative).is_file(),
            Self::Embedded { files, .. } => files(relative).is_some(),
        }
    }

    /// A whole small file, as text.
    pub fn text(&self, relative: &str) -> Result<String> {
        let bytes = match self {
            Self::Folder(root) => {
                std::fs::read(self.checked(root, relative)?).map_err(|e| self.unreadable(relative, &e))?
            }
            Self::Embedded { files, .. } => {
                files(relative).ok_or_else(|| self.unreadable(relative, &"not embedded"))?.into_owned()
            }
        };
        String::from_utf8(bytes).map_err(|_| self.malformed(relative, "it is not UTF-8 text"))
    }

    /// A JSON file.
    pub fn json<T: DeserializeOwned>(&self, relative: &str) -> Result<T> {
        serde_json::from_str(&self.text(relative)?).map_err(|error| self.malformed(relative, error.to_string()))
    }

    /// The weights of one component, such as `unet`: `<component>/<stem>.safetensors`, or its shards by the index file,
    /// or the `fp16` variant where only that is there.
    pub fn weights(&self, component: &str, device: &Device) -> Result<Weights> {
        let stems = ["diffusion_pytorch_model", "model"];
        for stem in stems {
            for variant in ["", ".fp16"] {
                let whole = format!("{component}/{stem}{variant}.safetensors");
                if self.has(&whole) {
                    return Weights::open(vec![self.shard(&whole)?], device);
                }
                let index = format!("{component}/{stem}.safetensors.index{variant}.json");
                if self.has(&index) {
                    let shards = self.shard_names(component, &index)?;
                    return Weights::open(shards.iter().map(|name| self.shard(name)).collect::<Result<_>>()?, device);
                }
            }
        }
        Err(self.unreadable(
            &format!("{component}/{}.safetensors", stems[0]),
            &"there is no such file, nor model.safetensors",
        ))
    }

    fn shard_names(&self, component: &str, index: &str) -> Result<Vec<String>> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: std::collections::BTreeMap<String, String>,
        }
        let map = self.json::<Index>(index)?.weight_map;
        let names: std::collections::BTreeSet<String> = map.into_values().collect();
        Ok(names.into_iter().map(|name| format!("{component}/{name}")).collect())
    }

    fn shard(&self, relative: &str) -> Result<Shard> {
        let bytes = match self {
            Self::Folder(root) => {
                let path = self.checked(root, relative)?;
                let file = std::fs::File::open(&path).map_err(|error| self.unreadable(relative, &error))?;
                Bytes::map(&file).map_err(|error| self.unreadable(relative, &error))?
            }
            Self::Embedded { files, .. } => {
                Bytes::Held(files(relative).ok_or_else(|| self.unreadable(relative, &"not embedded"))?)
            }
        };
        Shard::parse(self.describe(relative), bytes)
    }

    fn checked(&self, root: &Path, relative: &str) -> Result<PathBuf> {
        // An index file names other files: they must not lead out of the checkpoint.
        if is_inside(relative) {
            Ok(root.join(relative))
        } else {
            Err(self.unreadable(relative, &"it lies outside the checkpoint"))
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

fn is_inside(relative: &str) -> bool {
    Path::new(relative).components().all(|part| matches!(part, Component::Normal(_)))
}
