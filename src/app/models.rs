//! Which models there are: built-in ones, described ones (`config/models/*.toml`), those found in `models.dir`, and what is
//! named by its path.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, to_value};

use crate::config::{Fault, ModelFile, Settings};
use crate::diffusion::pipelines::{self, Changes, ControlNets, Introduced, ModelSource};
use crate::dispatch::workers::{Loads, ServedModel};
use crate::domain::{DeviceSpec, DtypeSpec, ModelId, ModelLoad};

/// Stands in `models.serve` for every described and found model that is not named otherwise.
const ALL_OTHERS: &str = "*";

/// A model to serve.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Where it comes from.
    pub source: ModelSource,
    /// When it is loaded.
    pub load: ModelLoad,
    /// Found in `models.dir`, and neither named nor described.
    is_found: bool,
}

/// The models to serve, in order; the first is the default.
///
/// # Errors
/// A text that names no model, two models of one name, or faults of descriptions, all of them.
pub fn offers(settings: &Settings) -> Result<Vec<Offer>, String> {
    let catalog = Catalog::read(settings)?;
    let mut offers: Vec<Offer> = Vec::new();
    let serve = &settings.models.serve;
    for text in serve {
        if text == ALL_OTHERS {
            let is_named = |other: &&Known| serve.iter().any(|named| named == other.source.id.as_str());
            let others = catalog.models.iter().filter(|other| !is_named(other)).cloned();
            offers.extend(others.map(|other| catalog.offer(other, settings.models.load)));
        } else {
            let named =
                Known { is_found: false, ..catalog.find(text).map_err(|error| format!("models.serve: {error}"))? };
            offers.push(catalog.offer(named, settings.models.load));
        }
    }
    if offers.is_empty() {
        return Err("models.serve: no model is named, described or found".to_owned());
    }
    match repeated(offers.iter().map(|offer| &offer.source)) {
        Some(id) => Err(format!("models.serve: two models are called `{id}`")),
        None => Ok(offers),
    }
}

impl Offer {
    /// What is known of it unloaded. `None` for one that is only found and does not tell what it is, which is logged: of a
    /// folder of many, one damaged file is no reason not to serve the others.
    ///
    /// # Errors
    /// Its first fault, as a sentence naming the file.
    pub fn introduced(&self) -> Result<Option<Introduced>, String> {
        match pipelines::introduce(&self.source) {
            Ok(introduced) => Ok(Some(introduced)),
            Err(error) if self.is_found => {
                tracing::warn!(model.id = %self.source.id, %error, "a model that was found is left out");
                Ok(None)
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

/// What workers are told of these models, and where each comes from.
///
/// # Errors
/// The first that does not tell what it is, unless it is only found; none are left.
pub fn served(offers: Vec<Offer>) -> Result<Vec<(ModelSource, ServedModel)>, String> {
    let mut served = Vec::new();
    for offer in offers {
        let loads = match offer.load {
            ModelLoad::Start => Loads::AtStart,
            ModelLoad::FirstUse => match offer.introduced()? {
                Some(introduced) => Loads::AtFirstUse(Box::new(introduced)),
                None => continue,
            },
        };
        let id = offer.source.id.clone();
        served.push((offer.source, ServedModel { id, loads }));
    }
    if served.is_empty() {
        return Err("models.serve: no model that was found can be served".to_owned());
    }
    Ok(served)
}

/// One model, by what an operator writes: a described or found model's id, a built-in one's, or a path.
///
/// # Errors
/// A text that names no model, or faults of descriptions.
pub fn model_source(settings: &Settings, text: &str) -> Result<ModelSource, String> {
    let catalog = Catalog::read(settings)?;
    Ok(catalog.embedded(catalog.find(text)?.source))
}

/// A described or found model.
#[derive(Clone)]
struct Known {
    source: ModelSource,
    /// As its description says.
    load: Option<ModelLoad>,
    is_found: bool,
}

/// Described and found models.
struct Catalog {
    models: Vec<Known>,
    /// Of every model.
    embeddings: Option<PathBuf>,
    /// The same.
    controlnets: ControlNets,
    /// The same.
    dtype: DtypeSpec,
}

impl Catalog {
    fn read(settings: &Settings) -> Result<Self, String> {
        let files = ModelFile::read_all(&settings.models.descriptions).map_err(|faults| told(&faults))?;
        let mut models: Vec<Known> = files.into_iter().map(described).collect::<Result<_, _>>()?;
        let dir = settings.models_dir();
        // The folder that nobody named need not be there.
        if !settings.models.dir.as_os_str().is_empty() || dir.is_dir() {
            let found = pipelines::scan(&dir).map_err(|error| format!("models.dir: {error}"))?;
            for (path, reason) in &found.skipped {
                tracing::warn!(path = %path.display(), reason, "no model");
            }
            for path in found.models {
                models.push(Known { is_found: true, ..beside(&path)? });
            }
        }
        match repeated(models.iter().map(|known| &known.source)) {
            Some(id) => Err(format!("models: two descriptions or files are called `{id}`")),
            None => {
                let (embeddings, controlnets) = (Self::embeddings(settings)?, Self::controlnets(settings)?);
                let dtype: Result<DtypeSpec, String> = settings.workers.dtype.parse();
                let devices: Result<Vec<DeviceSpec>, String> =
                    settings.workers.devices.iter().map(|device| device.parse()).collect();
                let devices = devices.map_err(|error| format!("workers.devices: {error}"))?;
                let dtype = dtype.map_err(|error| format!("workers.dtype: {error}"))?.among(&devices);
                Ok(Self { models, embeddings, controlnets, dtype })
            }
        }
    }

    fn embeddings(settings: &Settings) -> Result<Option<PathBuf>, String> {
        let folder = settings.models.embeddings.clone();
        match folder.as_os_str().is_empty() {
            true => Ok(None),
            false if folder.is_dir() => Ok(Some(folder)),
            false => Err(format!("models.embeddings: there is no folder {}", folder.display())),
        }
    }

    fn controlnets(settings: &Settings) -> Result<ControlNets, String> {
        let folder = &settings.models.controlnets;
        match folder.as_os_str().is_empty() {
            true => Ok(ControlNets::default()),
            false => ControlNets::open(folder, settings.models.max_controlnets)
                .map_err(|error| format!("models.controlnets: {error}")),
        }
    }

    /// The model with what every model has: embeddings, ControlNets, a dtype.
    fn embedded(&self, mut source: ModelSource) -> ModelSource {
        source.dtype = self.dtype;
        source.controlnets = self.controlnets.clone();
        source.changes.embeddings.extend(self.embeddings.clone());
        source
    }

    /// As its description says; else at first use where it is only found, else as `usual`.
    fn offer(&self, known: Known, usual: ModelLoad) -> Offer {
        let load = known.load.unwrap_or(if known.is_found { ModelLoad::FirstUse } else { usual });
        Offer { source: self.embedded(known.source), load, is_found: known.is_found }
    }

    fn find(&self, text: &str) -> Result<Known, String> {
        if let Some(known) = self.models.iter().find(|known| known.source.id.as_str() == text) {
            return Ok(known.clone());
        }
        let source = ModelSource::parse(text).map_err(|error| match &self.models[..] {
            [] => error,
            known => {
                format!(
                    "{error}, nor one of {}",
                    known.iter().map(|it| it.source.id.as_str()).collect::<Vec<_>>().join(", ")
                )
            }
        })?;
        if source.is_built_in() { Ok(Known { source, load: None, is_found: false }) } else { beside(Path::new(text)) }
    }
}

fn repeated<'a>(sources: impl Iterator<Item = &'a ModelSource>) -> Option<&'a ModelId> {
    let mut known = HashSet::new();
    sources.map(|source| &source.id).find(|id| !known.insert(*id))
}

/// A folder or file by its path, with what a TOML file of the same name beside it says.
fn beside(path: &Path) -> Result<Known, String> {
    let plain = ModelSource::parse(&path.display().to_string())?;
    let description = path.with_extension("toml");
    if !path.is_file() || !description.is_file() {
        return Ok(Known { source: plain, load: None, is_found: false });
    }
    let mut file = ModelFile::read(&description).map_err(|faults| told(&[faults].concat()))?;
    let own = path.file_name().map(|name| name.to_string_lossy().into_owned());
    file.path = file.path.or(own);
    described(file)
}

/// A model as its file says.
fn described(file: ModelFile) -> Result<Known, String> {
    let within = |path: PathBuf| file.folder.join(path);
    let at = |error: String| format!("model `{}`: {error}", file.id);
    let path = file.path.as_deref().ok_or_else(|| at("`path` is missing".to_owned()))?;
    let mut source = match ModelSource::parse(path) {
        Ok(source) if source.is_built_in() => source,
        _ => ModelSource::parse(&within(PathBuf::from(path)).display().to_string())
            .map_err(|error| at(format!("`path`: {error}")))?,
    };
    source.id = ModelId::new(file.id.clone());
    source.config = file.config.clone().map(within);
    source.changes = Changes {
        embeddings: file.embeddings.clone().map(within).into_iter().collect(),
        variant: file.variant.clone(),
        vae: file.vae.clone().map(within),
        vae_tiny: file.vae_tiny.clone().map(within),
        patches: [
            ("scheduler/scheduler_config.json", to_value(&file.schedule)),
            ("darkroom.json", to_value(&file.card)),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value.ok().filter(is_filled)?)))
        .collect(),
    };
    let embeddings = source.changes.embeddings.first().cloned();
    for (key, named) in [
        ("config", &source.config),
        ("vae", &source.changes.vae),
        ("vae_tiny", &source.changes.vae_tiny),
        ("embeddings", &embeddings),
    ] {
        if let Some(named) = named.as_ref().filter(|named| !named.exists()) {
            return Err(at(format!("`{key}`: there is no {}", named.display())));
        }
    }
    Ok(Known { source, load: file.load, is_found: false })
}

fn is_filled(value: &Value) -> bool {
    value.as_object().is_some_and(|object| !object.is_empty())
}

fn told(faults: &[Fault]) -> String {
    let each: Vec<String> = faults.iter().map(|fault| format!("  {fault}")).collect();
    format!("descriptions of models are not valid:\n{}", each.join("\n"))
}
