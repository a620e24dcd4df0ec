//! Files of a folder on disk.

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::tensors::{Bytes, Shard};
use super::{Error, Result};

/// More than any configuration, vocabulary or index has.
const LARGEST_TEXT: u64 = 64 << 20;

pub(super) fn has(root: &Path, relative: &str) -> bool {
    is_inside(relative) && root.join(relative).is_file()
}

/// A path below `root`. An index file names other files: they must not lead out of the checkpoint.
pub(super) fn inside(root: &Path, relative: &str) -> Result<PathBuf> {
    let path = root.join(relative);
    if is_inside(relative) { Ok(path) } else { Err(unreadable(&path, &"it lies outside the checkpoint")) }
}

pub(super) fn text(root: &Path, relative: &str) -> Result<String> {
    let path = inside(root, relative)?;
    let (file, size) = open(&path)?;
    let malformed = |reason: String| Error::Malformed { file: path.display().to_string(), reason };
    if size > LARGEST_TEXT {
        return Err(malformed(format!("it has {size} bytes; at most {LARGEST_TEXT} are read")));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST_TEXT).read_to_end(&mut bytes).map_err(|error| unreadable(&path, &error))?;
    String::from_utf8(bytes).map_err(|_| malformed("it is not UTF-8 text".to_owned()))
}

/// A safetensors file, mapped.
pub(super) fn shard(path: &Path) -> Result<Arc<Shard>> {
    shard_called(path, path.display().to_string())
}

/// The same, called so in messages.
pub(super) fn shard_called(path: &Path, name: String) -> Result<Arc<Shard>> {
    let mapped = open(path).and_then(|(file, _)| Bytes::map(&file).map_err(|error| unreadable(path, &error)));
    match mapped {
        Ok(bytes) => Shard::parse(name, bytes),
        Err(Error::Read { reason, .. }) => Err(Error::Read { file: name, reason }),
        Err(other) => Err(other),
    }
}

/// The files of a folder and of those within, so many folders deep, whose names are `wanted`; hidden ones are passed over.
pub(super) fn search(folder: &Path, depth: usize, wanted: &dyn Fn(&str) -> bool, files: &mut Vec<PathBuf>) {
    for name in names(folder) {
        let path = folder.join(&name);
        if name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            if depth > 0 {
                search(&path, depth - 1, wanted, files);
            }
        } else if wanted(&name) {
            files.push(path);
        }
    }
}

/// What lies in a folder, sorted; nothing where there is none.
pub(super) fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn open(path: &Path) -> Result<(File, u64)> {
    let metadata = path.metadata().map_err(|error| unreadable(path, &error))?;
    // Opening a pipe would wait for its writer.
    if !metadata.is_file() {
        return Err(unreadable(path, &"it is no regular file"));
    }
    Ok((File::open(path).map_err(|error| unreadable(path, &error))?, metadata.len()))
}

fn unreadable(path: &Path, reason: &dyn std::fmt::Display) -> Error {
    Error::Read { file: path.display().to_string(), reason: reason.to_string() }
}

fn is_inside(relative: &str) -> bool {
    Path::new(relative).components().all(|part| matches!(part, Component::Normal(_)))
}
