//! What a file or folder is, without loading it: family, components, sizes, hashes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::header::{Dtype, Header, TensorInfo};
use super::single_file::{Family, Layout, Prediction, what_it_seems};
use super::tensors::Shard;
use super::{Checkpoint, Error, Result, disk};
use crate::domain::hex;

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// As named.
    pub path: PathBuf,
    /// One phrase for people.
    pub what: String,
    /// The family of a whole checkpoint, where it is known.
    pub family: Option<&'static str>,
    /// diffusers' name of the pipeline for it.
    pub pipeline: Option<String>,
    /// What the UNet's output means.
    pub prediction_type: Option<String>,
    /// How that is known.
    pub prediction_because: Option<&'static str>,
    /// Channels the UNet takes.
    pub in_channels: Option<usize>,
    /// Each network, and what belongs to none.
    pub components: Vec<ComponentReport>,
    /// Each file of weights.
    pub files: Vec<FileReport>,
    /// What the writer of a single file said about it.
    pub metadata: BTreeMap<String, String>,
}

/// One network.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ComponentReport {
    /// diffusers' name of it.
    pub name: String,
    /// How many tensors.
    pub tensors: usize,
    /// How many numbers.
    pub parameters: u64,
    /// Their size on disk.
    pub bytes: u64,
    /// Numbers by how they are stored.
    pub dtypes: BTreeMap<Dtype, u64>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FileReport {
    /// Where.
    pub path: PathBuf,
    /// Its size.
    pub size_bytes: u64,
    /// Its hashes, unless they were not asked for.
    pub hashes: Option<Hashes>,
}

/// The hashes by which checkpoints and adapters are known elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hashes {
    /// SHA-256 of the whole file.
    pub sha256: String,
    /// Its first 10 digits: "AutoV2", and `Model hash` in A1111's parameters.
    pub auto_v2: String,
    /// The first 12 digits of the SHA-256 of the tensors' data alone: "AutoV3", by which adapters are known.
    pub auto_v3: String,
    /// The first 8 digits of the SHA-256 of 64 KiB at 1 MiB: A1111's old short hash.
    pub short: String,
}

impl Hashes {
    /// Reads the whole file.
    ///
    /// # Errors
    /// A file that is no safetensors file.
    pub fn of(path: &Path) -> Result<Self> {
        let shard = disk::shard(path)?;
        Ok(Self::of_shard(&shard))
    }

    fn of_shard(shard: &Shard) -> Self {
        let bytes = shard.bytes();
        let data = shard.header().tensors.first().map_or(bytes.len(), |tensor| tensor.bytes.start);
        // One pass over the file for two sums.
        let (mut whole, mut tail) = (Sha256::new(), Sha256::new());
        whole.update(&bytes[..data]);
        for chunk in bytes[data..].chunks(1 << 20) {
            whole.update(chunk);
            tail.update(chunk);
        }
        let start = bytes.len().min(0x10_0000);
        let part = Sha256::digest(&bytes[start..bytes.len().min(start + 0x1_0000)]);
        let (sha256, tail, part) = (hex(whole.finalize()), hex(tail.finalize()), hex(part));
        Self { auto_v2: sha256[..10].to_owned(), sha256, auto_v3: tail[..12].to_owned(), short: part[..8].to_owned() }
    }
}

/// Looks at a diffusers folder or a safetensors file; `hashed` reads every byte of it.
///
/// # Errors
/// Neither of the two, or a file that is damaged.
pub fn inspect(path: &Path, hashed: bool) -> Result<Inspection> {
    if path.is_dir() { folder(path, hashed) } else { file(path, hashed) }
}

impl Inspection {
    fn empty(path: &Path, what: String) -> Self {
        Self {
            path: path.to_owned(),
            what,
            family: None,
            pipeline: None,
            prediction_type: None,
            prediction_because: None,
            in_channels: None,
            components: Vec::new(),
            files: Vec::new(),
            metadata: BTreeMap::new(),
        }
    }
}

fn file(path: &Path, hashed: bool) -> Result<Inspection> {
    let shard = disk::shard(path)?;
    let header = shard.header();
    let files = vec![report(path, &shard, hashed)];
    let metadata = header.metadata.clone();
    match Layout::read(header) {
        Err(reason) => {
            let what = what_it_seems(header).map_or(reason, |what| format!("{what}, in one file"));
            let components = vec![component("all", header.tensors.iter())];
            Ok(Inspection { components, files, metadata, ..Inspection::empty(path, what) })
        }
        Ok(layout) => {
            let Prediction { kind, because } = layout.prediction.clone();
            let index: Value = layout
                .text("model_index.json")
                .and_then(|text| serde_json::from_str(&text.ok()?).ok())
                .unwrap_or_default();
            Ok(Inspection {
                family: Some(layout.family.label()),
                pipeline: index["_class_name"].as_str().map(ToOwned::to_owned),
                prediction_type: Some(kind.to_owned()),
                prediction_because: Some(because),
                in_channels: Some(layout.in_channels),
                components: parts(header, &layout),
                files,
                metadata,
                ..Inspection::empty(path, format!("a {} checkpoint in one file", layout.family.label()))
            })
        }
    }
}

/// The tensors of each component, and those of none.
fn parts(header: &Header, layout: &Layout) -> Vec<ComponentReport> {
    let modules: Vec<(&str, String)> = layout.modules().map(|(name, module)| (name, format!("{module}."))).collect();
    let mut sorted: BTreeMap<&str, Vec<&TensorInfo>> = BTreeMap::new();
    for tensor in &header.tensors {
        let owner = modules.iter().find(|(_, beginning)| tensor.name.starts_with(beginning));
        sorted.entry(owner.map_or("(unused)", |(name, _)| name)).or_default().push(tensor);
    }
    sorted.into_iter().map(|(name, tensors)| component(name, tensors.into_iter())).collect()
}

fn folder(path: &Path, hashed: bool) -> Result<Inspection> {
    let checkpoint = Checkpoint::Folder(path.to_owned());
    let (mut components, mut files) = (Vec::new(), Vec::new());
    let alone = checkpoint.has("config.json") && !checkpoint.has("model_index.json");
    let (checkpoint, names) = if alone {
        (Checkpoint::Component("vae", path.to_owned()), vec!["vae".to_owned()])
    } else {
        let within = |name: &String| checkpoint.has(&format!("{name}/config.json"));
        let names = disk::names(path).into_iter().filter(within).collect();
        (checkpoint, names)
    };
    for name in names {
        let shards = checkpoint.shards(&name, None)?;
        components.push(component(&name, shards.iter().flat_map(|shard| shard.header().tensors.iter())));
        files.extend(shards.iter().map(|shard| report(Path::new(shard.file()), shard, hashed)));
    }
    if alone {
        let class: Value = checkpoint.json("vae/config.json")?;
        let class = class["_class_name"].as_str().unwrap_or("network").to_owned();
        components.iter_mut().for_each(|component| component.name.clone_from(&class));
        return Ok(Inspection { components, files, ..Inspection::empty(path, format!("a folder of one {class}")) });
    }
    if components.is_empty() {
        let reason = "it has neither model_index.json nor config.json, nor folders with one".to_owned();
        return Err(Error::Malformed { file: path.display().to_string(), reason });
    }
    let index: Value = checkpoint.json("model_index.json")?;
    let pipeline = index["_class_name"].as_str().map(ToOwned::to_owned);
    let unet: Value =
        if checkpoint.has("unet/config.json") { checkpoint.json("unet/config.json")? } else { Value::Null };
    let schedule = "scheduler/scheduler_config.json";
    let schedule: Value = if checkpoint.has(schedule) { checkpoint.json(schedule)? } else { Value::Null };
    let prediction = schedule["prediction_type"].as_str();
    let what = format!("a diffusers folder ({})", pipeline.as_deref().unwrap_or("of no pipeline"));
    Ok(Inspection {
        family: pipeline.as_deref().and_then(|class| family(class, &unet)).map(Family::label),
        prediction_type: Some(prediction.unwrap_or("epsilon").to_owned()),
        prediction_because: Some(match prediction {
            Some(_) => "scheduler_config.json says so",
            None => "scheduler_config.json does not say otherwise",
        }),
        in_channels: unet["in_channels"].as_u64().map(|channels| channels as usize),
        components,
        files,
        pipeline,
        ..Inspection::empty(path, what)
    })
}

/// The family of a folder, by its pipeline's class and how its UNet projects.
fn family(class: &str, unet: &Value) -> Option<Family> {
    let refines = unet["projection_class_embeddings_input_dim"] == 2560;
    match class {
        _ if class.starts_with("StableDiffusionXL") && refines => Some(Family::StableDiffusionXlRefiner),
        _ if class.starts_with("StableDiffusionXL") => Some(Family::StableDiffusionXl),
        _ if class.starts_with("StableDiffusion3") => None,
        _ if class.starts_with("StableDiffusion") && unet["use_linear_projection"] == true => {
            Some(Family::StableDiffusion2)
        }
        _ if class.starts_with("StableDiffusion") => Some(Family::StableDiffusion1),
        _ => None,
    }
}

fn component<'a>(name: &str, tensors: impl Iterator<Item = &'a TensorInfo>) -> ComponentReport {
    let mut report = ComponentReport { name: name.to_owned(), ..ComponentReport::default() };
    for tensor in tensors {
        let numbers = tensor.elements() as u64;
        report.tensors += 1;
        report.parameters += numbers;
        report.bytes += tensor.bytes.len() as u64;
        *report.dtypes.entry(tensor.dtype).or_default() += numbers;
    }
    report
}

fn report(path: &Path, shard: &Shard, hashed: bool) -> FileReport {
    let hashes = hashed.then(|| Hashes::of_shard(shard));
    FileReport { path: path.to_owned(), size_bytes: shard.bytes().len() as u64, hashes }
}
