//! Which files a model is loaded from, without reading them.

use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

use sha2::{Digest, Sha256};

use super::ModelSource;
use super::registry::ModelPlace;
use crate::domain::{ComputeDtype, hex};

/// Files of one model that are looked at; a folder that has more is not a model's alone.
const MOST_FILES: usize = 10_000;
/// Folders deep.
const MOST_DEPTH: usize = 8;

impl ModelSource {
    /// Tells all files that it would be loaded from now, and what its operator says of it, its dtype among that, from others:
    /// lower-case hex SHA-256, of their names, sizes and times of change. `None` where that cannot be told.
    pub fn files(&self) -> Option<String> {
        let mut told =
            Told { text: format!("{} {:?} {:?} {:?}", self.id, self.place, self.config, self.changes), files: 0 };
        // As if nothing was said: what was stored before there was another stays what it is.
        if self.dtype != ComputeDtype::F32.into() {
            told.text += &format!(" {}", self.dtype);
        }
        let place = match &self.place {
            ModelPlace::Path(path) => Some(path),
            ModelPlace::Embedded(_) => None,
        };
        let changes = &self.changes;
        let named = place.into_iter().chain(&self.config).chain(&changes.vae).chain(&changes.vae_tiny);
        for path in named.chain(&changes.embeddings) {
            told.add(path, 0)?;
        }
        Some(hex(Sha256::digest(told.text)))
    }
}

struct Told {
    text: String,
    files: usize,
}

impl Told {
    /// A file, or all within a folder, in the order of their names; links are followed.
    fn add(&mut self, path: &Path, depth: usize) -> Option<()> {
        self.files += 1;
        if self.files > MOST_FILES || depth > MOST_DEPTH {
            return None;
        }
        let about = fs::metadata(path).ok()?;
        if about.is_dir() {
            let mut within = fs::read_dir(path).ok()?.collect::<Result<Vec<_>, _>>().ok()?;
            within.sort_by_key(fs::DirEntry::file_name);
            return within.iter().try_for_each(|entry| self.add(&entry.path(), depth + 1));
        }
        let changed = about.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos();
        self.text += &format!("\n{path:?} {} {changed}", about.len());
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_added_changed_or_gone_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("written");
        fs::create_dir(folder.path().join("unet")).expect("a folder");
        write("unet/config.json", "{}");
        let source = ModelSource::at("mine", folder.path());
        let files = || source.files().expect("told");
        let first = files();
        assert_eq!(files(), first);
        write("vae.json", "{}");
        let more = files();
        write("vae.json", "{ }");
        let changed = files();
        fs::remove_file(folder.path().join("vae.json")).expect("removed");
        assert_eq!(files(), first);
        assert!(first != more && more != changed && changed != first);
        assert_ne!(ModelSource::at("yours", folder.path()).files(), Some(first));
    }

    #[test]
    fn what_is_not_there_is_not_told() {
        assert_eq!(ModelSource::at("mine", "nowhere/at/all").files(), None);
    }
}
