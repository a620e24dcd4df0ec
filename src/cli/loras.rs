//! The flag of `generate` about LoRAs.

use std::path::{Path, PathBuf};

use crate::app::{Shelf, lora_folder};
use crate::config::Settings;
use crate::diffusion::pipelines::LoraLibrary;
use crate::domain::LoraDraft;

/// What `--lora` says: a name or a file, and a scale.
pub(super) struct NamedLoras {
    pub drafts: Vec<LoraDraft>,
    pub shelf: Shelf,
}

/// Reads `NAME[:SCALE]`, where the name is one of the folder `models.loras`, or a file's path.
pub(super) fn read(flags: &[String], settings: &Settings) -> Result<NamedLoras, String> {
    let (mut drafts, mut files) = (Vec::new(), Vec::new());
    for flag in flags {
        let (named, scale) = split(flag);
        let path = Path::new(named);
        let is_path = path.components().count() > 1 || path.extension().is_some_and(|ending| ending == "safetensors");
        let name = if is_path {
            if !path.is_file() {
                return Err(format!("--lora {flag}: there is no file {named}"));
            }
            files.push(PathBuf::from(path));
            path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
        } else {
            named.to_owned()
        };
        drafts.push(LoraDraft { name: Some(name), scale, ..LoraDraft::default() });
    }
    let library = LoraLibrary::new(lora_folder(settings)?, files);
    Ok(NamedLoras { drafts, shelf: Shelf(library) })
}

/// The scale is what stands behind the last colon, where that is a number.
fn split(flag: &str) -> (&str, Option<f64>) {
    let parts = flag.rsplit_once(':').and_then(|(name, scale)| Some((name, scale.parse::<f64>().ok()?)));
    parts.filter(|(name, _)| !name.is_empty()).map_or((flag, None), |(name, scale)| (name, Some(scale)))
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn a_scale_stands_behind_the_last_colon() {
        for (flag, name, scale) in [
            ("red", "red", None),
            ("red:0.5", "red", Some(0.5)),
            ("./a:b.safetensors:-1", "./a:b.safetensors", Some(-1.0)),
            ("./a:b.safetensors", "./a:b.safetensors", None),
            (":1", ":1", None),
        ] {
            assert_eq!(split(flag), (name, scale));
        }
    }
}
