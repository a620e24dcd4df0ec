//! The parts of a checkpoint that several families have, read from their usual folders.

use candle_core::{Device, Tensor};

use super::card::ModelCard;
use super::{Error, Result};
use crate::diffusion::models::text_encoders::{
    ClipTextConfig, ClipTextModel, ClipTextModelWithProjection, ClipTextOutput, ClipTokenizer,
};
use crate::diffusion::models::unets::{UNet2DConditionConfig, UNet2DConditionModel};
use crate::diffusion::models::{self};
use crate::diffusion::samplers::TrainingSchedule;
use crate::diffusion::weights::Checkpoint;

/// Where parts are read from, and where their tensors go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Components<'a> {
    pub checkpoint: &'a Checkpoint,
    pub device: &'a Device,
}

impl Components<'_> {
    /// What is wrong with a part, or how it does not fit the others.
    pub(super) fn fault<T>(&self, part: &str, reason: String) -> Result<T> {
        Err(Error::Unsupported { file: self.checkpoint.describe(part), reason })
    }

    fn within(&self, part: &str) -> impl FnOnce(models::Error) -> Error {
        let file = self.checkpoint.describe(part);
        move |source| Error::Network { file, source: Box::new(source) }
    }

    /// `darkroom.json`, where there is one.
    pub(super) fn card(&self) -> Result<ModelCard> {
        let has = self.checkpoint.has("darkroom.json");
        Ok(if has { self.checkpoint.json("darkroom.json")? } else { ModelCard::default() })
    }

    pub(super) fn unet(&self) -> Result<UNet2DConditionModel> {
        let config = UNet2DConditionConfig::parse(self.checkpoint.json("unet/config.json")?);
        let config = config.map_err(self.within("unet"))?;
        UNet2DConditionModel::load(config, &self.checkpoint.weights("unet", self.device)?).map_err(self.within("unet"))
    }

    pub(super) fn schedule(&self) -> Result<TrainingSchedule> {
        let file = "scheduler/scheduler_config.json";
        TrainingSchedule::from_json(&self.checkpoint.text(file)?)
            .map_err(|error| self.checkpoint.malformed(file, error.to_string()).into())
    }

    /// A text encoder in folder `encoder` and its tokenizer in folder `tokenizer`.
    pub(super) fn text(&self, encoder: &str, tokenizer: &str) -> Result<TextReader<ClipTextModel>> {
        let weights = self.checkpoint.weights(encoder, self.device)?;
        let model = ClipTextModel::load(self.text_config(encoder)?, &weights).map_err(self.within(encoder))?;
        let tokenizer = self.tokenizer(tokenizer, &model)?;
        self.embedded(encoder, TextReader { tokenizer, encoder: model })
    }

    /// The same of an encoder with a projection.
    pub(super) fn text_with_projection(
        &self,
        encoder: &str,
        tokenizer: &str,
    ) -> Result<TextReader<ClipTextModelWithProjection>> {
        let weights = self.checkpoint.weights(encoder, self.device)?;
        let model = ClipTextModelWithProjection::load(self.text_config(encoder)?, &weights);
        let model = model.map_err(self.within(encoder))?;
        let tokenizer = self.tokenizer(tokenizer, model.model())?;
        self.embedded(encoder, TextReader { tokenizer, encoder: model })
    }

    /// The reader with the checkpoint's textual inversion embeddings.
    fn embedded<E: AsMut<ClipTextModel>>(&self, component: &str, mut reader: TextReader<E>) -> Result<TextReader<E>> {
        for embedding in self.checkpoint.embeddings() {
            let vectors = embedding.vectors(component, self.device)?;
            match reader.tokenizer.add_word(&embedding.name, vectors.dim(0)?) {
                Ok(first) => reader.encoder.as_mut().add_tokens(first, &vectors).map_err(self.within(component))?,
                Err(reason) => {
                    let model = self.checkpoint.describe("");
                    tracing::warn!(embedding = embedding.name, model, reason, "embedding left out");
                }
            }
        }
        Ok(reader)
    }

    fn text_config(&self, encoder: &str) -> Result<ClipTextConfig> {
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
    pub tokenizer: ClipTokenizer,
    pub encoder: E,
}

/// One text as a reader read it.
#[derive(Debug)]
pub(super) struct ReadText {
    /// (1, L) u32.
    pub ids: Tensor,
    pub output: ClipTextOutput,
    /// What the client should know.
    pub warning: Option<String>,
}

impl<E: AsRef<ClipTextModel>> TextReader<E> {
    /// Tokens and what the layers make of them; `model` is how a warning calls the model.
    pub(super) fn read(&self, text: &str, model: &str, device: &Device) -> Result<ReadText> {
        let tokens = self.tokenizer.encode(text)?;
        let length = tokens.ids.len();
        let (room, cut) = (length - 2, tokens.cut);
        let warning = (cut > 0)
            .then(|| format!("the text encoder of `{model}` reads {room} tokens; the last {cut} of a prompt were cut"));
        let ids = Tensor::from_vec(tokens.ids, (1, length), device)?;
        let output = self.encoder.as_ref().hidden_states(&ids)?;
        Ok(ReadText { ids, output, warning })
    }

    /// Tokens of a text that it reads, the marks at both ends not counted.
    pub(super) fn room(&self) -> usize {
        self.encoder.as_ref().config().max_tokens() - 2
    }
}
