//! What an operator says of a checkpoint beyond its files: another autoencoder, a variant, values in place of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::checkpoint::{Checkpoint, TINY_CONFIG};
use super::embeddings::{self, TextEmbedding};
use super::single_file::{TinyFile, VaeFile};
use super::variants::has_variant;
use super::{Error, Result, disk};

/// What to change; nothing by default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// The variant of the weights to read, such as `fp16`.
    pub variant: Option<String>,
    /// A folder or file with the autoencoder to use.
    pub vae: Option<PathBuf>,
    /// A folder or file with a tiny autoencoder for previews.
    pub vae_tiny: Option<PathBuf>,
    /// Textual inversion embeddings: files, and folders of them.
    pub embeddings: Vec<PathBuf>,
    /// JSON files by their path in the checkpoint, and what goes over what stands there.
    pub patches: BTreeMap<String, Value>,
}

/// A checkpoint with changes.
pub struct Changed {
    pub(super) base: Checkpoint,
    pub(super) variant: Option<String>,
    vae: Option<Checkpoint>,
    vae_tiny: Option<Checkpoint>,
    pub(super) embeddings: Vec<TextEmbedding>,
    pub(super) patches: BTreeMap<String, Value>,
}

impl Changed {
    /// The checkpoint that has this file.
    pub(super) fn of(&self, relative: &str) -> &Checkpoint {
        let replaced = match relative.split('/').next() {
            Some("vae") => &self.vae,
            Some("vae_tiny") => &self.vae_tiny,
            _ => &None,
        };
        replaced.as_ref().unwrap_or(&self.base)
    }
}

impl Checkpoint {
    /// This checkpoint with what an operator says of it.
    ///
    /// # Errors
    /// A variant that no component has, or an autoencoder that cannot be read. An embedding that cannot be is logged and left
    /// out.
    pub fn changed(self, changes: Changes) -> Result<Self> {
        if changes == Changes::default() {
            return Ok(self);
        }
        let Changes { variant, vae, vae_tiny, embeddings, patches } = changes;
        if let (Self::Folder(root), Some(variant)) = (&self, &variant) {
            let components = disk::names(root);
            if !components.iter().any(|component| has_variant(&self.names(component), variant)) {
                return Err(self.malformed("", format!("no component has the variant `{variant}`")));
            }
        }
        let vae = vae.map(|path| autoencoder(&path, &self)).transpose()?;
        let vae_tiny = vae_tiny.map(|path| tiny_autoencoder(&path)).transpose()?;
        let embeddings = embeddings::fitting(&embeddings, &self)?;
        Ok(Self::Changed(Arc::new(Changed { base: self, variant, vae, vae_tiny, embeddings, patches })))
    }

    /// The textual inversion embeddings that an operator named and that fit its text encoders.
    pub fn embeddings(&self) -> &[TextEmbedding] {
        match self {
            Self::Changed(changed) => &changed.embeddings,
            _ => &[],
        }
    }
}

/// An autoencoder's own folder, a checkpoint's folder, or a file of either.
fn autoencoder(path: &Path, base: &Checkpoint) -> Result<Checkpoint> {
    if path.is_dir() {
        let folder = Checkpoint::Folder(path.to_owned());
        return match (folder.has("vae/config.json"), folder.has("config.json")) {
            (true, _) => Ok(folder),
            (_, true) => Ok(Checkpoint::Component("vae", path.to_owned())),
            _ => Err(folder.malformed("", "it has neither config.json nor vae/config.json")),
        };
    }
    VaeFile::open(path, base).map(|file| Checkpoint::VaeFile(Arc::new(file)))
}

/// A tiny autoencoder's own folder, or the file of its decoder.
fn tiny_autoencoder(path: &Path) -> Result<Checkpoint> {
    if !path.is_dir() {
        return TinyFile::open(path).map(|file| Checkpoint::TinyFile(Arc::new(file)));
    }
    let folder = Checkpoint::Component("vae_tiny", path.to_owned());
    if folder.has(TINY_CONFIG) { Ok(folder) } else { Err(folder.malformed("", "it has no config.json")) }
}

/// Puts `over` over `json`: objects key by key, everything else whole.
pub(super) fn merge(json: &mut Value, over: &Value) {
    match (json, over) {
        (Value::Object(json), Value::Object(over)) => {
            for (key, value) in over {
                merge(json.entry(key.as_str()).or_insert(Value::Null), value);
            }
        }
        (json, over) => *json = over.clone(),
    }
}

/// Of a file that is no autoencoder.
pub(super) fn no_autoencoder(path: &Path) -> Error {
    let reason = "it has no autoencoder (`decoder.conv_in.weight`, alone or below `first_stage_model`)";
    Error::Malformed { file: path.display().to_string(), reason: reason.to_owned() }
}
