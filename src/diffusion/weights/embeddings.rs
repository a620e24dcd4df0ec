//! Textual inversion embeddings (Gal et al. 2022): vectors that stand for a word of their own, one or several a word.
//!
//! What files look like: diffusers' `learned_embeds.safetensors` has one tensor, named as the word; A1111's and kohya's have
//! `emb_params` (or `string_to_param`) and are named by their file; those for SDXL have `clip_l` and `clip_g`, one for each
//! text encoder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};

use super::checkpoint::Checkpoint;
use super::tensors::{Shard, Weights};
use super::{Error, Result, disk, variants};
use crate::domain::hex;

/// Names of tensors that are no words, in files named as the word.
const NAMELESS: [&str; 6] = ["emb_params", "string_to_param", "string_to_param.*", "*", "weight", "embedding"];
/// SDXL's tensors, and the encoders they are for.
const XL: [(&str, &str); 2] = [("clip_l", "text_encoder"), ("clip_g", "text_encoder_2")];
/// More than any text encoder reads at once.
const MOST_VECTORS: usize = 1024;
const DEEPEST: usize = 3;

/// One file's word and vectors.
#[derive(Clone)]
pub struct TextEmbedding {
    /// How prompts call it.
    pub name: String,
    path: PathBuf,
    shard: Arc<Shard>,
    for_each: Parts,
}

/// The tensors for each text encoder: name, vectors, width.
#[derive(Clone)]
enum Parts {
    /// For the only encoder a checkpoint has.
    One(Part),
    /// By the component they are for.
    Xl(BTreeMap<&'static str, Part>),
}

#[derive(Clone, Debug)]
struct Part {
    tensor: String,
    shape: Vec<usize>,
}

impl Part {
    fn vectors(&self) -> usize {
        if self.shape.len() == 1 { 1 } else { self.shape[0] }
    }

    fn width(&self) -> usize {
        *self.shape.last().expect("checked when opened. This is a bug in weights.")
    }
}

impl TextEmbedding {
    /// Reads a file's header.
    ///
    /// # Errors
    /// A file that is no safetensors file, or no embedding.
    pub fn open(path: &Path) -> Result<Self> {
        let shard = disk::shard(path)?;
        let fault = |reason: String| Error::Malformed { file: path.display().to_string(), reason };
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let tensors = &shard.header().tensors;
        let part = |name: &str| {
            let info = tensors.iter().find(|tensor| tensor.name == name)?;
            Some(Part { tensor: name.to_owned(), shape: info.shape.clone() })
        };
        let (name, for_each) = if XL.iter().any(|(name, _)| part(name).is_some()) {
            let parts = XL.iter().filter_map(|(name, component)| Some((*component, part(name)?)));
            (stem, Parts::Xl(parts.collect()))
        } else if let Some(nameless) = NAMELESS.iter().find_map(|name| part(name)) {
            (stem, Parts::One(nameless))
        } else if let [only] = &tensors[..] {
            (only.name.clone(), Parts::One(Part { tensor: only.name.clone(), shape: only.shape.clone() }))
        } else {
            let count = tensors.len();
            return Err(fault(format!(
                "it is no textual inversion embedding: it has {count} tensors, none of them `emb_params`, `clip_l` or `clip_g`"
            )));
        };
        let all: Vec<&Part> = match &for_each {
            Parts::One(part) => vec![part],
            Parts::Xl(parts) => parts.values().collect(),
        };
        for part in &all {
            let fits = matches!(part.shape[..], [_] | [1..=MOST_VECTORS, _]) && part.width() > 0;
            if !fits {
                let shape = &part.shape;
                return Err(fault(format!(
                    "tensor `{}` has shape {shape:?}; an embedding has one vector, or 1 to {MOST_VECTORS}",
                    part.tensor
                )));
            }
        }
        if all.iter().any(|part| part.vectors() != all[0].vectors()) {
            return Err(fault("`clip_l` and `clip_g` have different numbers of vectors".to_owned()));
        }
        if name.trim().is_empty() || name.chars().count() > 128 || name.chars().any(char::is_control) {
            return Err(fault("its name cannot stand in a prompt".to_owned()));
        }
        Ok(Self { name, path: path.to_owned(), shard: shard.clone(), for_each })
    }

    /// Why it cannot be used with text encoders of these widths; `None` where it can.
    fn misfit(&self, widths: &BTreeMap<&'static str, usize>) -> Option<String> {
        let wants = |part: &Part, width: usize| {
            (part.width() != width).then(|| format!("its vectors have {}, the text encoder's {width}", part.width()))
        };
        match &self.for_each {
            Parts::One(part) => match widths.values().collect::<Vec<_>>()[..] {
                [width] => wants(part, *width),
                _ => Some("it is for a checkpoint of one text encoder".to_owned()),
            },
            Parts::Xl(parts) => widths.iter().find_map(|(component, width)| match parts.get(component) {
                Some(part) => wants(part, *width),
                None => Some(format!("it has no vectors for `{component}`")),
            }),
        }
    }

    /// What other programs call its hash: the first 12 digits of the SHA-256 of its file.
    pub fn hash(&self) -> String {
        hex(&Sha256::digest(self.shard.bytes())[..6])
    }

    /// Its vectors for one text encoder: (vectors, width) f32.
    ///
    /// # Errors
    /// Numbers that are not finite, or of a type that cannot be read.
    pub fn vectors(&self, component: &str, device: &Device) -> Result<Tensor> {
        let part = match &self.for_each {
            Parts::One(part) => part,
            Parts::Xl(parts) => parts.get(component).ok_or_else(|| Error::Missing {
                file: self.path.display().to_string(),
                tensor: format!("vectors for {component}"),
            })?,
        };
        let weights = Weights::open(vec![self.shard.clone()], None, device)?;
        let tensor = weights.get(&part.tensor, part.shape.clone())?;
        tensor.reshape((part.vectors(), part.width())).map_err(|error| Error::Device {
            file: self.path.display().to_string(),
            tensor: part.tensor.clone(),
            reason: error.to_string(),
        })
    }
}

/// The embeddings of these files and folders that fit a checkpoint's text encoders. What does not is logged and left out: a
/// folder of embeddings serves several models.
pub(super) fn fitting(places: &[PathBuf], checkpoint: &Checkpoint) -> Result<Vec<TextEmbedding>> {
    let mut files = Vec::new();
    for place in places {
        if place.is_dir() {
            let is_one = |name: &str| name.to_ascii_lowercase().ends_with(".safetensors") || variants::is_pickle(name);
            disk::search(place, DEEPEST, &is_one, &mut files);
        } else {
            files.push(place.clone());
        }
    }
    let mut widths = BTreeMap::new();
    for (_, component) in XL {
        let config = format!("{component}/config.json");
        if !files.is_empty() && checkpoint.has(&config) {
            let config: serde_json::Value = checkpoint.json(&config)?;
            widths.insert(component, config["hidden_size"].as_u64().unwrap_or(0) as usize);
        }
    }
    let mut embeddings: Vec<TextEmbedding> = Vec::new();
    for path in files {
        let read = TextEmbedding::open(&path).map_err(|error| error.to_string());
        let fits = read.and_then(|embedding| match embedding.misfit(&widths) {
            Some(reason) => Err(reason),
            None => Ok(embedding),
        });
        match fits {
            Ok(embedding) => embeddings.push(embedding),
            Err(reason) => {
                tracing::info!(path = %path.display(), model = %checkpoint.describe(""), reason, "embedding left out");
            }
        }
    }
    Ok(embeddings)
}
