//! The folder of LoRA files: which there are, by name, and their hashes.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use super::LoraFile;
use crate::diffusion::weights::{Error, Hashes, Result, disk};
use crate::domain::LoraInfo;

const DEEPEST: usize = 3;

/// LoRAs by the names of their files. The folder is looked at each time: a file that is put there can be used at once.
/// Cloning is cheap.
#[derive(Clone, Default)]
pub struct LoraLibrary(Arc<Inner>);

#[derive(Default)]
struct Inner {
    folder: Option<PathBuf>,
    /// Named one by one.
    files: Vec<PathBuf>,
    /// Of files that have not changed since: reading all of a file takes its time.
    hashes: Mutex<HashMap<PathBuf, (Stamp, String)>>,
}

/// By which a changed file is told.
type Stamp = (u64, Option<SystemTime>);

impl std::fmt::Debug for LoraLibrary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoraLibrary").field("folder", &self.0.folder).field("files", &self.0.files).finish()
    }
}

impl PartialEq for LoraLibrary {
    fn eq(&self, other: &Self) -> bool {
        (&self.0.folder, &self.0.files) == (&other.0.folder, &other.0.files)
    }
}

impl LoraLibrary {
    /// The safetensors files of a folder, three folders deep, and others.
    pub fn new(folder: Option<PathBuf>, files: Vec<PathBuf>) -> Self {
        Self(Arc::new(Inner { folder, files, hashes: Mutex::default() }))
    }

    /// What there is, by name; of two files of one name the first, files named one by one before those of the folder. A hash
    /// is there once the file was used.
    pub fn list(&self) -> Vec<LoraInfo> {
        let told = |(name, path): (String, PathBuf)| {
            let stamp = stamp(&path);
            let hash = stamp.as_ref().and_then(|stamp| self.known(&path, stamp));
            LoraInfo { name, size_bytes: stamp.map_or(0, |(size, _)| size), hash }
        };
        self.paths().into_iter().map(told).collect()
    }

    /// The first 12 digits of the SHA-256 of a LoRA's tensors' data ("AutoV3"): by this it is known elsewhere. Reads the whole
    /// file where it has changed since the last time.
    ///
    /// # Errors
    /// No LoRA of this name, or a file that cannot be read.
    pub fn hash(&self, name: &str) -> Result<String> {
        let path = self.path(name)?;
        let stamp = stamp(&path);
        if let Some(known) = stamp.as_ref().and_then(|stamp| self.known(&path, stamp)) {
            return Ok(known);
        }
        let hash = Hashes::of(&path).map_err(|error| called(&path, error))?.auto_v3;
        if let Some(stamp) = stamp {
            self.hashes().insert(path, (stamp, hash.clone()));
        }
        Ok(hash)
    }

    /// Opens a LoRA.
    ///
    /// # Errors
    /// No LoRA of this name, another file than the one of this hash, or what [`LoraFile::open`] says.
    pub fn open(&self, name: &str, hash: &str) -> Result<LoraFile> {
        let path = self.path(name)?;
        let found = self.hash(name)?;
        if found != hash {
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let reason = format!("it has the hash {found}, the request asks for {hash}: the file was replaced");
            return Err(Error::Malformed { file, reason });
        }
        LoraFile::open(&path)
    }

    fn path(&self, name: &str) -> Result<PathBuf> {
        let missing = || Error::Read { file: format!("LoRA `{name}`"), reason: "there is no such file".to_owned() };
        self.paths().remove(name).ok_or_else(missing)
    }

    fn paths(&self) -> BTreeMap<String, PathBuf> {
        let mut files = self.0.files.clone();
        if let Some(folder) = &self.0.folder {
            disk::search(folder, DEEPEST, &|name| name.to_ascii_lowercase().ends_with(".safetensors"), &mut files);
        }
        let mut paths = BTreeMap::new();
        for path in files {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            paths.entry(name).or_insert(path);
        }
        paths
    }

    fn known(&self, path: &Path, stamp: &Stamp) -> Option<String> {
        self.hashes().get(path).filter(|(known, _)| known == stamp).map(|(_, hash)| hash.clone())
    }

    fn hashes(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, (Stamp, String)>> {
        self.0.hashes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = path.metadata().ok()?;
    Some((metadata.len(), metadata.modified().ok()))
}

/// The error by the file's name alone: clients see it.
fn called(path: &Path, error: Error) -> Error {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match error {
        Error::Read { reason, .. } => Error::Read { file: name, reason },
        Error::Malformed { reason, .. } => Error::Malformed { file: name, reason },
        other => other,
    }
}
