//! Finding models in a folder.

use std::path::{Path, PathBuf};

use crate::diffusion::weights::Checkpoint;

/// Deeper folders are not searched; a link that leads in a circle ends here too.
const DEEPEST: usize = 4;

/// What a folder holds.
#[derive(Debug, Default)]
pub struct Found {
    /// Diffusers folders and checkpoints in one file, sorted.
    pub models: Vec<PathBuf>,
    /// Files with an ending of checkpoints that are none, and why.
    pub skipped: Vec<(PathBuf, String)>,
}

/// Searches a folder and those within: a folder with `model_index.json` is a model, and so is a safetensors file that holds
/// a whole checkpoint. Reads headers alone.
///
/// # Errors
/// The folder itself cannot be read.
pub fn scan(folder: &Path) -> std::result::Result<Found, String> {
    let mut found = Found::default();
    std::fs::read_dir(folder).map_err(|error| format!("cannot read {}: {error}", folder.display()))?;
    search(folder, 0, &mut found);
    Ok(found)
}

fn search(folder: &Path, depth: usize, found: &mut Found) {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        if name.starts_with('.') {
            continue;
        }
        if path.join("model_index.json").is_file() {
            found.models.push(path);
        } else if path.is_dir() {
            if depth < DEEPEST {
                search(&path, depth + 1, found);
            }
        } else if [".safetensors", ".ckpt", ".pt", ".pth"].iter().any(|ending| name.ends_with(ending)) {
            match Checkpoint::file(&path, None) {
                Ok(_) => found.models.push(path),
                Err(error) => found.skipped.push((path, error.to_string())),
            }
        }
    }
}
