//! What was pulled into a folder: which repository, at which commit, and each file's checksum. Kept as JSON in the folder
//! itself, where it also keeps two pulls from working in it at once.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::fetch::told;

/// Hidden, so that no search for models looks at it.
pub(super) const NAME: &str = ".darkroom-pull.json";
const LARGEST: u64 = 4 << 20;

/// The contents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pulled {
    /// `ORG/NAME`
    pub(super) repository: String,
    pub(super) endpoint: String,
    /// As it was asked for.
    pub(super) revision: String,
    /// What that was then.
    pub(super) commit: String,
    /// By name.
    pub(super) files: BTreeMap<String, PulledFile>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PulledFile {
    pub(super) commit: String,
    pub(super) size: u64,
    /// `SHA-256 ...` or `git blob ...`
    pub(super) checksum: String,
}

/// The open file, locked as long as this lives.
pub(super) struct Record {
    file: File,
    pub(super) pulled: Pulled,
}

impl Record {
    /// Opens the folder's record, an empty one where there is none.
    ///
    /// # Errors
    /// Another pull works in the folder.
    pub(super) fn open(folder: &Path) -> Result<Self, String> {
        let path = folder.join(NAME);
        let at = |error: std::io::Error| told(&path, &error);
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(false).open(&path).map_err(at)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(format!("another pull works in {}", folder.display())),
            // A file system without locks: as careful as it lets us be.
            Err(TryLockError::Error(_)) => {}
        }
        let mut text = String::new();
        let read = (&mut file).take(LARGEST).read_to_string(&mut text);
        // One that was cut off says nothing; the files themselves are looked at anyway.
        let pulled = read.ok().and_then(|_| serde_json::from_str(&text).ok()).unwrap_or_default();
        Ok(Self { file, pulled })
    }

    pub(super) fn save(&mut self, folder: &Path) -> Result<(), String> {
        let text = serde_json::to_string_pretty(&self.pulled).map_err(|error| error.to_string())?;
        let written = self.file.set_len(0).and_then(|()| self.file.rewind());
        let written = written.and_then(|()| self.file.write_all(text.as_bytes())).and_then(|()| self.file.sync_all());
        written.map_err(|error| told(&folder.join(NAME), &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_and_locks_its_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut record = Record::open(folder.path()).expect("a new one");
        assert_eq!(record.pulled, Pulled::default());
        record.pulled.repository = "org/name".to_owned();
        let file = PulledFile { commit: "c".to_owned(), size: 3, checksum: "SHA-256 ab".to_owned() };
        record.pulled.files.insert("unet/a.safetensors".to_owned(), file);
        record.save(folder.path()).expect("saved");
        assert!(Record::open(folder.path()).is_err_and(|told| told.contains("another pull")));
        let pulled = record.pulled.clone();
        drop(record);
        assert_eq!(Record::open(folder.path()).expect("unlocked").pulled, pulled);
        std::fs::write(folder.path().join(NAME), "{\"repo").expect("cut off");
        assert_eq!(Record::open(folder.path()).expect("as new").pulled, Pulled::default());
    }
}
