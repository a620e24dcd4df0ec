//! Where LoRAs come from.

use std::path::PathBuf;

use crate::config::Settings;
use crate::diffusion::pipelines::LoraLibrary;
use crate::domain::LoraInfo;
use crate::service::LoraShelf;

/// A library as the service sees it.
#[derive(Clone, Debug)]
pub struct Shelf(pub LoraLibrary);

impl LoraShelf for Shelf {
    fn list(&self) -> Vec<LoraInfo> {
        self.0.list()
    }

    fn hash(&self, name: &str) -> Result<String, String> {
        self.0.hash(name).map_err(|error| error.to_string())
    }
}

/// The folder `models.loras`, where one is named.
///
/// # Errors
/// There is no such folder.
pub fn lora_folder(settings: &Settings) -> Result<Option<PathBuf>, String> {
    let folder = settings.models.loras.clone();
    match folder.as_os_str().is_empty() {
        true => Ok(None),
        false if folder.is_dir() => Ok(Some(folder)),
        false => Err(format!("models.loras: there is no folder {}", folder.display())),
    }
}
