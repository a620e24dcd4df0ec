//! What the rows of a forward are told.

use candle_core::Tensor;

use super::{Control, Result};
use crate::domain::{GenerationRequest, PromptSyntax};

/// Which side of classifier-free guidance a text stands on. Some families read them differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PromptSide {
    /// What to draw.
    Positive,
    /// What to keep away from.
    Negative,
}

/// A text for the text encoders, and how to read it: all that its embeddings depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prompt<'a> {
    /// The words; none on the negative side is the unconditional row of guidance.
    pub text: &'a str,
    /// Prompt or negative prompt.
    pub side: PromptSide,
    /// What brackets in it mean.
    pub syntax: PromptSyntax,
    /// Layers of the text encoders left out at the end, beyond those that the family leaves out anyway.
    pub clip_skip: u32,
}

impl<'a> Prompt<'a> {
    /// One of a request's two.
    pub fn of(request: &'a GenerationRequest, side: PromptSide) -> Self {
        let text = match side {
            PromptSide::Positive => request.prompt(),
            PromptSide::Negative => request.negative_prompt(),
        };
        let syntax = request.prompt_syntax();
        // diffusers leaves layers out for the prompt alone, A1111 for both.
        let is_skipped = side == PromptSide::Positive || syntax == PromptSyntax::A1111;
        Self { text, side, syntax, clip_skip: if is_skipped { request.clip_skip() } else { 0 } }
    }
}

/// One prompt as the text encoders read it. It depends on the [`Prompt`] alone, never on the rest of a request.
#[derive(Clone, Debug)]
pub struct PromptEmbeds {
    /// (1, tokens, width) f32, on the pipeline's device.
    pub hidden_states: Tensor,
    /// (1, pooled width) f32, where the network reads the prompt as a whole too (SDXL).
    pub pooled: Option<Tensor>,
    /// What the client should know, such as a prompt that was cut.
    pub warnings: Vec<String>,
}

impl PromptEmbeds {
    /// Tokens of the hidden states: rows that differ in it cannot share a forward.
    ///
    /// # Errors
    /// None for hidden states of three dimensions.
    pub fn tokens(&self) -> Result<usize> {
        Ok(self.hidden_states.dim(1)?)
    }
}

/// All that a row is told: a prompt, and what the request says besides.
#[derive(Clone, Debug)]
pub struct Conditioning {
    /// What the prompt says.
    pub prompt: PromptEmbeds,
    /// Sizes, in the order the network was trained with (SDXL's `time_ids`); as many in every row of a model, none where
    /// it takes none.
    pub time_ids: Vec<f64>,
    /// The guidance scale, where the network is told it instead of being asked twice (latent consistency models).
    pub guidance_scale: Option<f64>,
}

impl From<PromptEmbeds> for Conditioning {
    /// The prompt and nothing besides.
    fn from(prompt: PromptEmbeds) -> Self {
        Self { prompt, time_ids: Vec::new(), guidance_scale: None }
    }
}

/// One row of a forward, beside its latents.
#[derive(Clone, Copy, Debug)]
pub struct StepRow<'a> {
    /// In the units of the training schedule.
    pub timestep: f64,
    /// What it is told.
    pub conditioning: &'a Conditioning,
    /// What the network is shown below the latents: (1, C', h, w) f32, where it is shown something.
    pub extra_channels: Option<&'a Tensor>,
    /// What controls it at this step, if anything.
    pub controls: &'a [Control],
}

/// The rows of one forward. They may differ in all but the shapes of their tensors.
#[derive(Debug)]
pub struct StepInputs<'a> {
    /// (N, C, h, w) f32, already times `input_scale`.
    pub latents: &'a Tensor,
    /// N of them.
    pub rows: &'a [StepRow<'a>],
}

impl StepInputs<'_> {
    /// The latents, and what the network is shown below them: (N, C + C', h, w) f32.
    ///
    /// # Errors
    /// Rows of different shapes.
    pub fn shown(&self) -> Result<Tensor> {
        let extra: Option<Vec<&Tensor>> = self.rows.iter().map(|row| row.extra_channels).collect();
        match extra {
            Some(extra) => Ok(Tensor::cat(&[self.latents, &Tensor::cat(&extra, 0)?], 1)?),
            None => Ok(self.latents.clone()),
        }
    }

    /// One a row.
    pub fn timesteps(&self) -> Vec<f64> {
        self.rows.iter().map(|row| row.timestep).collect()
    }

    /// (N, tokens, width) f32.
    ///
    /// # Errors
    /// Rows of different numbers of tokens.
    pub fn hidden_states(&self) -> Result<Tensor> {
        let rows: Vec<&Tensor> = self.rows.iter().map(|row| &row.conditioning.prompt.hidden_states).collect();
        Ok(Tensor::cat(&rows, 0)?)
    }

    /// (N, pooled width) f32; `None` where the rows have none.
    ///
    /// # Errors
    /// Rows of different widths.
    pub fn pooled(&self) -> Result<Option<Tensor>> {
        let rows: Option<Vec<&Tensor>> = self.rows.iter().map(|row| row.conditioning.prompt.pooled.as_ref()).collect();
        Ok(rows.map(|rows| Tensor::cat(&rows, 0)).transpose()?)
    }

    /// One list a row.
    pub fn time_ids(&self) -> Vec<&[f64]> {
        self.rows.iter().map(|row| row.conditioning.time_ids.as_slice()).collect()
    }

    /// One a row; `None` where the rows have none.
    pub fn guidance_scales(&self) -> Option<Vec<f64>> {
        self.rows.iter().map(|row| row.conditioning.guidance_scale).collect()
    }
}
