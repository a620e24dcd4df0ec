//! A checkpoint in one file, in the names of the original code (CompVis LDM, Stability AI SGM), seen as a folder of
//! diffusers: the same configurations and component names, so that what loads a folder loads a file.
//!
//! Structure is read from names and shapes, no layer count is assumed. What they do not tell (heads, groups of norms, the
//! schedule of training) is as in the published checkpoints of the family, which is also what diffusers' `from_single_file`
//! takes for granted; a folder named by `config` says otherwise.

mod configs;
mod controlnet;
mod keys;
mod text;
mod tiny;
mod unet;
mod vae;

use std::collections::BTreeMap;

use serde_json::Value;

pub(super) use keys::Keys;

use super::clip_vocabulary::{END, ZERO, merges_txt, vocab_json};
use super::header::Header;
use super::names::NameMap;
pub use controlnet::ControlNetFile;
use text::{Kind, Place, Tower};
pub use tiny::TinyFile;
use unet::UNet;
pub use unet::{OriginalLevel, original_unet_names};
pub use vae::VaeFile;

/// What a checkpoint is a kind of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Stable Diffusion 1.x.
    StableDiffusion1,
    /// Stable Diffusion 2.x.
    StableDiffusion2,
    /// SDXL base.
    StableDiffusionXl,
    /// SDXL refiner.
    StableDiffusionXlRefiner,
}

impl Family {
    /// For people.
    pub fn label(self) -> &'static str {
        match self {
            Self::StableDiffusion1 => "Stable Diffusion 1.x",
            Self::StableDiffusion2 => "Stable Diffusion 2.x",
            Self::StableDiffusionXl => "Stable Diffusion XL",
            Self::StableDiffusionXlRefiner => "Stable Diffusion XL refiner",
        }
    }

    fn is_xl(self) -> bool {
        matches!(self, Self::StableDiffusionXl | Self::StableDiffusionXlRefiner)
    }
}

/// One network: where its tensors are, and its configuration, or why it cannot be told.
#[derive(Clone, Debug)]
pub(super) struct Component {
    /// What the names of its tensors begin with.
    pub(super) module: String,
    pub(super) config: Result<Value, String>,
    pub(super) names: NameMap,
}

/// What the network's output means, and how that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// diffusers' name: `epsilon` or `v_prediction`.
    pub kind: &'static str,
    /// One clause for people.
    pub because: &'static str,
}

/// A checkpoint file's parts.
#[derive(Clone, Debug)]
pub struct Layout {
    /// What it is.
    pub family: Family,
    /// Channels the UNet takes: 4, or 9 with a mask and a masked picture.
    pub in_channels: usize,
    /// Of the UNet's output.
    pub prediction: Prediction,
    components: BTreeMap<&'static str, Component>,
    texts: BTreeMap<&'static str, Value>,
    /// Folder of a tokenizer -> the encoder that reads its tokens: rows of its table, and what its prompts are padded with.
    tokenizers: BTreeMap<&'static str, (usize, &'static str)>,
}

impl Layout {
    /// Reads a file's structure.
    ///
    /// # Errors
    /// A file that is no checkpoint of a known family, as a sentence.
    pub fn read(header: &Header) -> Result<Self, String> {
        let keys = Keys::of(header);
        if !keys.any(&format!("{}.", unet::MODULE)) {
            return Err(configs::what_else(&keys));
        }
        let encoders = text::places(&keys);
        let family = family(&keys, &encoders)?;
        let prediction = configs::prediction(&keys, header, family, encoders.first());
        let size = configs::image_size(family, &prediction);
        let autoencoder = vae::module(&keys).map(|module| vae::read(&keys, module)).transpose()?;
        let factor = autoencoder.as_ref().map_or(8, |vae| configs::factor(&vae.config));
        let unet = UNet::read(&keys, (size, factor))?;
        // Where the autoencoder comes from elsewhere, its scale is still the family's.
        let mut texts = configs::texts(&keys, family, unet.in_channels, &prediction, &encoders);
        texts.insert("vae/config.json", configs::scaled(Value::Object(serde_json::Map::new()), family, size));
        let mut layout = Self {
            family,
            in_channels: unet.in_channels,
            texts,
            prediction,
            components: BTreeMap::new(),
            tokenizers: BTreeMap::new(),
        };
        layout.components.insert("unet", unet.component);
        if let Some(mut vae) = autoencoder {
            vae.config = vae.config.map(|config| configs::scaled(config, family, size));
            layout.texts.remove("vae/config.json");
            layout.components.insert("vae", vae);
        }
        layout.add_encoders(&keys, &encoders)?;
        Ok(layout)
    }

    fn add_encoders(&mut self, keys: &Keys<'_>, encoders: &[Place]) -> Result<(), String> {
        let tower = if self.family.is_xl() { Tower::Whole } else { Tower::BeforeLast };
        for place in encoders {
            let (component, tokenizer) = place.components(self.family);
            let pad = if place.kind == Kind::OpenClip { ZERO } else { END };
            self.tokenizers.insert(tokenizer, (text::vocabulary(keys, place).unwrap_or(0), pad));
            self.components.insert(component, text::read(keys, place, tower)?);
        }
        Ok(())
    }

    /// The components it holds, and what the names of their tensors begin with.
    pub fn modules(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.components.iter().map(|(name, component)| (*name, component.module.as_str()))
    }

    pub(super) fn component(&self, name: &str) -> Option<&Component> {
        self.components.get(name)
    }

    /// The text of a file that a folder of this checkpoint would have; `None` where it would have none.
    pub(super) fn text(&self, relative: &str) -> Option<Result<String, String>> {
        if let Some(json) = self.texts.get(relative) {
            return Some(Ok(json.to_string()));
        }
        let (folder, file) = relative.split_once('/')?;
        if let (Some(component), "config.json") = (self.components.get(folder), file) {
            return Some(component.config.as_ref().map(Value::to_string).map_err(Clone::clone));
        }
        let (rows, pad) = self.tokenizers.get(folder)?;
        let text = match file {
            "vocab.json" | "merges.txt" if *rows < CLIP_TOKENS => {
                return Some(Err(format!("its text encoder knows {rows} tokens, CLIP's vocabulary has {CLIP_TOKENS}")));
            }
            "vocab.json" => vocab_json(),
            "merges.txt" => merges_txt(),
            "special_tokens_map.json" => configs::special_tokens(pad).to_string(),
            _ => return None,
        };
        Some(Ok(text))
    }
}

/// What a file seems to be that is no checkpoint.
pub(super) fn what_it_seems(header: &Header) -> Option<&'static str> {
    configs::what_it_seems(&Keys::of(header))
}

/// As many as CLIP's vocabulary has.
const CLIP_TOKENS: usize = 49_408;

/// By what the UNet is told beside the time, and by the text encoders.
fn family(keys: &Keys<'_>, encoders: &[Place]) -> Result<Family, String> {
    let added = keys.has(&format!("{}.label_emb.0.0.weight", unet::MODULE));
    if keys.has(&format!("{}.label_emb.weight", unet::MODULE)) {
        return Err("it is an upscaler (its UNet has `label_emb.weight`), which is not supported".to_owned());
    }
    if keys.has("edm_mean") {
        return Err("it was trained in the EDM formulation (`edm_mean`), which is not supported".to_owned());
    }
    let kinds: Vec<Kind> = encoders.iter().map(|place| place.kind).collect();
    match (added, &kinds[..]) {
        (true, [Kind::Clip, Kind::OpenClip]) => Ok(Family::StableDiffusionXl),
        (true, [Kind::OpenClip]) if encoders[0].is_sgm() => Ok(Family::StableDiffusionXlRefiner),
        (false, [Kind::Clip]) => Ok(Family::StableDiffusion1),
        (false, [Kind::OpenClip]) => Ok(Family::StableDiffusion2),
        (_, []) => Err(format!(
            "it has a UNet (`{}`) but no text encoder (`cond_stage_model` or `conditioner.embedders`): a whole checkpoint \
             is needed",
            unet::MODULE
        )),
        _ => Err(format!(
            "its text encoders ({}) and its UNet ({} `label_emb`) are of no family that is supported: Stable Diffusion 1.x, \
             2.x, XL",
            encoders.iter().map(|place| place.module).collect::<Vec<_>>().join(", "),
            if added { "with" } else { "without" }
        )),
    }
}
