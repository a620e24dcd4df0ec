//! The parts of a checkpoint that several families have, read from their usual folders.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use sha2::{Digest, Sha256};

use super::adapted::Adapting;
use super::card::ModelCard;
use super::latents::{VaeConfig, VaeConfigs};
use super::{Error, Prompt, Result};
use crate::diffusion::models::adapters::Adaptable;
use crate::diffusion::models::autoencoders::AutoencoderTinyConfig;
use crate::diffusion::models::text_encoders::{
    ClipTextConfig, ClipTextModel, ClipTextModelWithProjection, ClipTextOutput, ClipTokenizer, Window,
};
use crate::diffusion::models::unets::{UNet2DConditionConfig, UNet2DConditionModel};
use crate::diffusion::models::{self};
use crate::diffusion::samplers::TrainingSchedule;
use crate::diffusion::weights::{Checkpoint, LoraTarget, Weights};
use crate::domain::{Fragment, PromptSyntax, hex, parse_a1111};

/// Where parts are read from, and where their tensors go.
pub(super) struct Components<'a> {
    pub checkpoint: &'a Checkpoint,
    pub device: &'a Device,
    /// Of the denoising network. Text encoders and autoencoders are f32: the former take little time, and some of the latter
    /// overflow in f16, which gives black pictures.
    pub network: DType,
    opened: RefCell<Vec<Weights>>,
}

impl<'a> Components<'a> {
    pub(super) fn of(checkpoint: &'a Checkpoint, device: &'a Device, network: DType) -> Self {
        Self { checkpoint, device, network, opened: RefCell::default() }
    }

    /// The tensors of a part, to be read in f32.
    pub(super) fn weights(&self, part: &str) -> Result<Weights> {
        self.weights_in(part, DType::F32)
    }

    /// Those of an autoencoder. Beside a network in half precision its convolutions may take TF32, which is as precise as f16.
    pub(super) fn autoencoder_weights(&self, part: &str) -> Result<Weights> {
        let weights = self.weights(part)?;
        Ok(if self.network == DType::F32 { weights } else { weights.allowing_tf32() })
    }

    fn weights_in(&self, part: &str, dtype: DType) -> Result<Weights> {
        let weights = self.checkpoint.weights(part, self.device)?.in_dtype(dtype);
        self.opened.borrow_mut().push(weights.clone());
        Ok(weights)
    }

    /// What these parts take once they are read in f32, in bytes.
    pub(super) fn bytes(&self, parts: &[&str]) -> Result<u64> {
        parts.iter().map(|part| Ok(self.checkpoint.weights(part, self.device)?.bytes())).sum()
    }

    /// What all tensors read so far take, in bytes.
    pub(super) fn bytes_read(&self) -> u64 {
        self.opened.borrow().iter().map(Weights::bytes_read).sum()
    }

    /// [`Weights::fingerprint`] of all that was read.
    pub(super) fn fingerprint(&self) -> Arc<str> {
        let each: Vec<String> = self.opened.borrow().iter().map(Weights::fingerprint).collect();
        hex(Sha256::digest(each.concat())).into()
    }

    /// What is wrong with a part, or how it does not fit the others.
    pub(super) fn fault<T>(&self, part: &str, reason: String) -> Result<T> {
        Err(Error::Unsupported { file: self.checkpoint.describe(part), reason })
    }

    pub(super) fn within(&self, part: &str) -> impl FnOnce(models::Error) -> Error {
        let file = self.checkpoint.describe(part);
        move |source| Error::Network { file, source: Box::new(source) }
    }

    /// `darkroom.json`, where there is one.
    pub(super) fn card(&self) -> Result<ModelCard> {
        let has = self.checkpoint.has("darkroom.json");
        Ok(if has { self.checkpoint.json("darkroom.json")? } else { ModelCard::default() })
    }

    pub(super) fn unet(&self) -> Result<UNet2DConditionModel> {
        UNet2DConditionModel::load(self.unet_config()?, &self.weights_in("unet", self.network)?)
            .map_err(self.within("unet"))
    }

    pub(super) fn unet_config(&self) -> Result<UNet2DConditionConfig> {
        UNet2DConditionConfig::parse(self.checkpoint.json("unet/config.json")?).map_err(self.within("unet"))
    }

    /// Of `vae`, and of `vae_tiny` where there is one; checked.
    pub(super) fn vae_configs(&self) -> Result<VaeConfigs> {
        let (file, tiny_file) = ("vae/config.json", "vae_tiny/config.json");
        let vae = VaeConfig::parse(self.checkpoint.json(file)?)
            .map_err(|error| self.checkpoint.malformed(file, error.to_string()))?;
        vae.check().map_err(self.within("vae"))?;
        if !self.checkpoint.has(tiny_file) {
            return Ok(VaeConfigs { vae, tiny: None });
        }
        let tiny: AutoencoderTinyConfig = self.checkpoint.json(tiny_file)?;
        tiny.check_decoder().map_err(self.within("vae_tiny"))?;
        let (given, channels) = (tiny.latent_channels(), vae.space().channels);
        if given != channels as usize {
            return self.fault(tiny_file, format!("its latents have {given} channels, those of `vae` {channels}"));
        }
        Ok(VaeConfigs { vae, tiny: Some(tiny) })
    }

    pub(super) fn schedule(&self) -> Result<TrainingSchedule> {
        let file = "scheduler/scheduler_config.json";
        TrainingSchedule::from_json(&self.checkpoint.text(file)?)
            .map_err(|error| self.checkpoint.malformed(file, error.to_string()).into())
    }

    /// A text encoder in folder `encoder` and its tokenizer in folder `tokenizer`.
    pub(super) fn text(&self, encoder: &str, tokenizer: &str) -> Result<TextReader<ClipTextModel>> {
        let weights = self.weights(encoder)?;
        let model = ClipTextModel::load(self.text_config(encoder)?, &weights).map_err(self.within(encoder))?;
        let tokenizer = self.tokenizer(tokenizer, &model)?;
        self.embedded(encoder, (tokenizer, model))
    }

    /// The same of an encoder with a projection.
    pub(super) fn text_with_projection(
        &self,
        encoder: &str,
        tokenizer: &str,
    ) -> Result<TextReader<ClipTextModelWithProjection>> {
        let weights = self.weights(encoder)?;
        let model = ClipTextModelWithProjection::load(self.text_config(encoder)?, &weights);
        let model = model.map_err(self.within(encoder))?;
        let tokenizer = self.tokenizer(tokenizer, model.model())?;
        self.embedded(encoder, (tokenizer, model))
    }

    /// The reader with the checkpoint's textual inversion embeddings.
    fn embedded<E: AsMut<ClipTextModel>>(
        &self,
        component: &str,
        (mut tokenizer, mut encoder): (ClipTokenizer, E),
    ) -> Result<TextReader<E>> {
        let mut hashes = HashMap::new();
        for embedding in self.checkpoint.embeddings() {
            let vectors = embedding.vectors(component, self.device)?;
            match tokenizer.add_word(&embedding.name, vectors.dim(0)?) {
                Ok(first) => {
                    encoder.as_mut().add_tokens(first, &vectors).map_err(self.within(component))?;
                    hashes.insert(embedding.name.clone(), embedding.hash());
                }
                Err(reason) => {
                    let model = self.checkpoint.describe("");
                    tracing::warn!(embedding = embedding.name, model, reason, "embedding left out");
                }
            }
        }
        Ok(TextReader { tokenizer: Arc::new(tokenizer), hashes: Arc::new(hashes), encoder })
    }

    pub(super) fn text_config(&self, encoder: &str) -> Result<ClipTextConfig> {
        Ok(self.checkpoint.json(&format!("{encoder}/config.json"))?)
    }

    fn tokenizer(&self, folder: &str, encoder: &ClipTextModel) -> Result<ClipTokenizer> {
        let tokenizer = ClipTokenizer::load(self.checkpoint, folder, encoder.config().max_tokens())?;
        let (known, given) = (encoder.config().vocab_size(), tokenizer.vocab_size());
        if given > known {
            return self.fault(folder, format!("it has {given} tokens, the text encoder knows {known}"));
        }
        Ok(tokenizer)
    }
}

/// A tokenizer and the network that reads its tokens.
#[derive(Debug)]
pub(super) struct TextReader<E> {
    pub tokenizer: Arc<ClipTokenizer>,
    /// [`TextEmbedding::hash`] of textual inversion embeddings, by their words.
    ///
    /// [`TextEmbedding::hash`]: crate::diffusion::weights::TextEmbedding::hash
    hashes: Arc<HashMap<String, String>>,
    pub encoder: E,
}

/// One text as a reader read it.
#[derive(Debug)]
pub(super) struct ReadText {
    /// At least one.
    pub windows: Vec<ReadWindow>,
    /// What the client should know.
    pub warning: Option<String>,
}

/// What a reader reads at once.
#[derive(Debug)]
pub(super) struct ReadWindow {
    /// (1, L) u32.
    pub ids: Tensor,
    pub output: ClipTextOutput,
    /// One a token, where a prompt has weights.
    weights: Option<Vec<f32>>,
}

impl ReadText {
    /// The windows' hidden states that `layer` picks, each (1, L, width), weighted and one after the other.
    pub(super) fn hidden_states(&self, layer: impl Fn(&ClipTextOutput) -> Result<Tensor>) -> Result<Tensor> {
        let states = self.windows.iter().map(|window| {
            let hidden = layer(&window.output)?;
            window.weights.as_ref().map_or(Ok(hidden.clone()), |weights| weighted(&hidden, weights))
        });
        Ok(Tensor::cat(&states.collect::<Result<Vec<_>>>()?, 1)?)
    }
}

/// Each token's vector times its weight, then all of them by what gives the window the mean it had (A1111's emphasis
/// "Original"). hidden: (1, L, width).
fn weighted(hidden: &Tensor, weights: &[f32]) -> Result<Tensor> {
    let weights = Tensor::from_slice(weights, (1, weights.len(), 1), hidden.device())?;
    let emphasised = hidden.broadcast_mul(&weights)?;
    let mean = |x: &Tensor| -> Result<f64> { Ok(x.to_dtype(DType::F64)?.mean_all()?.to_scalar()?) };
    let restored = mean(hidden)? / mean(&emphasised)?;
    Ok((emphasised * restored)?)
}

impl<E: Adaptable> TextReader<E> {
    /// The reader with what LoRAs have for its network.
    pub(super) fn adapted(&self, adapting: &mut Adapting<'_>, target: LoraTarget) -> Result<Self> {
        let (tokenizer, hashes) = (self.tokenizer.clone(), self.hashes.clone());
        Ok(Self { tokenizer, hashes, encoder: adapting.network(&self.encoder, target)? })
    }
}

impl<E> TextReader<E> {
    /// The textual inversion embeddings that a prompt names, each once, with its hash.
    pub(super) fn embeddings(&self, prompt: &Prompt<'_>) -> Result<Vec<(String, String)>> {
        let words = match prompt.syntax {
            PromptSyntax::Plain => self.tokenizer.added_words(prompt.text)?,
            PromptSyntax::A1111 => {
                let fragments = parse_a1111(prompt.text).map_err(|error| Error::Prompt(error.to_string()))?;
                let texts = fragments.iter().filter_map(|fragment| match fragment {
                    Fragment::Words { text, .. } => Some(self.tokenizer.added_words(text)),
                    Fragment::Break => None,
                });
                texts.collect::<std::result::Result<Vec<_>, _>>()?.concat()
            }
        };
        let mut named: Vec<(String, String)> = Vec::new();
        for word in words {
            if let Some(hash) = self.hashes.get(&word).filter(|_| named.iter().all(|(known, _)| *known != word)) {
                named.push((word, hash.clone()));
            }
        }
        Ok(named)
    }
}

impl<E: AsRef<ClipTextModel>> TextReader<E> {
    /// Tokens and what the layers make of them; `model` is how a warning calls the model.
    pub(super) fn read(&self, prompt: &Prompt<'_>, model: &str, device: &Device) -> Result<ReadText> {
        match prompt.syntax {
            PromptSyntax::Plain => {
                let tokens = self.tokenizer.encode(prompt.text)?;
                let (room, cut) = (self.room(), tokens.cut);
                let told = || {
                    format!("the text encoder of `{model}` reads {room} tokens; the last {cut} of a prompt were cut")
                };
                let windows = vec![self.window(tokens.ids, None, device)?];
                Ok(ReadText { windows, warning: (cut > 0).then(told) })
            }
            PromptSyntax::A1111 => {
                let fragments = parse_a1111(prompt.text).map_err(|error| Error::Prompt(error.to_string()))?;
                let windows = self.tokenizer.windows(&fragments)?.into_iter();
                let windows = windows.map(|Window { ids, weights }| {
                    let weights = weights.iter().any(|weight| *weight != 1.0).then_some(weights);
                    self.window(ids, weights, device)
                });
                Ok(ReadText { windows: windows.collect::<Result<_>>()?, warning: None })
            }
        }
    }

    fn window(&self, ids: Vec<u32>, weights: Option<Vec<f32>>, device: &Device) -> Result<ReadWindow> {
        let length = ids.len();
        let ids = Tensor::from_vec(ids, (1, length), device)?;
        let output = self.encoder.as_ref().hidden_states(&ids)?;
        Ok(ReadWindow { ids, output, weights })
    }

    fn room(&self) -> usize {
        room(self.encoder.as_ref().config())
    }
}

/// Tokens of a text that an encoder reads, the marks at both ends not counted.
pub(super) fn room(encoder: &ClipTextConfig) -> usize {
    encoder.max_tokens().saturating_sub(2)
}
