//! CLIP's text transformer (Radford et al. 2021; transformers `CLIPTextModel` and `CLIPTextModelWithProjection`).

use candle_core::{D, Device, Tensor};
use serde::Deserialize;

use crate::diffusion::models::adapters::{Adaptable, LayerMut, Visit};
use crate::diffusion::models::layers::{Activation, Embedding, LayerNorm, Linear, scaled_dot_product};
use crate::diffusion::models::{Result, require};
use crate::diffusion::weights::{self, Weights};

/// `text_encoder/config.json`; absent keys take the defaults of transformers' `CLIPTextConfig`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct ClipTextConfig {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    hidden_act: Activation,
    layer_norm_eps: f64,
    projection_dim: usize,
    eos_token_id: Option<u32>,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49_408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            projection_dim: 512,
            eos_token_id: Some(49_407),
        }
    }
}

/// The end mark's id in configs written before it was set right (transformers pull request 24773).
const LEGACY_EOS: u32 = 2;

impl ClipTextConfig {
    /// Tokens it reads, start and end marks counted.
    pub fn max_tokens(&self) -> usize {
        self.max_position_embeddings
    }

    /// Its layers.
    pub fn num_hidden_layers(&self) -> usize {
        self.num_hidden_layers
    }

    /// Width of its vectors.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    /// Width of what is pooled and projected, where the model has a projection.
    pub fn projection_dim(&self) -> usize {
        self.projection_dim
    }

    /// Tokens it knows.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }
}

#[derive(Clone, Debug)]
struct Layer {
    layer_norm1: LayerNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Layer {
    fn load(config: &ClipTextConfig, w: &Weights) -> weights::Result<Self> {
        let (width, inner, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let attention = |name: &str| Linear::load(width, width, &w.pp("self_attn").pp(name));
        Ok(Self {
            layer_norm1: LayerNorm::load(width, eps, &w.pp("layer_norm1"))?,
            q: attention("q_proj")?,
            k: attention("k_proj")?,
            v: attention("v_proj")?,
            out: attention("out_proj")?,
            layer_norm2: LayerNorm::load(width, eps, &w.pp("layer_norm2"))?,
            fc1: Linear::load(width, inner, &w.pp("mlp.fc1"))?,
            fc2: Linear::load(inner, width, &w.pp("mlp.fc2"))?,
        })
    }

    fn each_layer(&mut self, visit: Visit<'_>) -> Result<()> {
        [&mut self.q, &mut self.k, &mut self.v, &mut self.out, &mut self.fc1, &mut self.fc2]
            .into_iter()
            .try_for_each(|linear| visit(LayerMut::Linear(linear)))
    }

    fn forward(&self, x: &Tensor, mask: &Tensor, config: &ClipTextConfig) -> candle_core::Result<Tensor> {
        let h = self.layer_norm1.forward(x)?;
        let (q, k, v) = (self.q.forward(&h)?, self.k.forward(&h)?, self.v.forward(&h)?);
        let x = (x + self.out.forward(&scaled_dot_product(&q, &k, &v, config.num_attention_heads, Some(mask))?)?)?;
        let h = self.fc1.forward(&self.layer_norm2.forward(&x)?)?;
        &x + self.fc2.forward(&config.hidden_act.forward(&h)?)?
    }
}

/// What the layers made of tokens.
#[derive(Clone, Debug)]
pub struct ClipTextOutput {
    /// Before the first layer and after each, not normed: `num_hidden_layers + 1` of (N, L, width) f32.
    pub hidden_states: Vec<Tensor>,
    /// The last of them, normed.
    pub last_hidden_state: Tensor,
}

impl ClipTextOutput {
    /// What was there before the last `count` layers, not normed; `None` when there are fewer.
    pub fn before_last(&self, count: usize) -> Option<&Tensor> {
        self.hidden_states.iter().rev().nth(count)
    }
}

/// Token ids to vectors.
#[derive(Clone, Debug)]
pub struct ClipTextModel {
    config: ClipTextConfig,
    tokens: Embedding,
    positions: Embedding,
    layers: Vec<Layer>,
    final_layer_norm: LayerNorm,
}

impl ClipTextModel {
    /// Reads every tensor the configuration names, with or without the leading `text_model.`, as versions of the
    /// reference have written it.
    pub fn load(config: ClipTextConfig, w: &Weights) -> Result<Self> {
        let heads = config.num_attention_heads;
        require(
            heads > 0 && config.hidden_size.is_multiple_of(heads),
            "num_attention_heads",
            heads,
            "a divisor of hidden_size",
        )?;
        let w = if w.contains("text_model.final_layer_norm.weight") { w.pp("text_model") } else { w.clone() };
        let (width, embeddings) = (config.hidden_size, w.pp("embeddings"));
        Ok(Self {
            tokens: Embedding::load(config.vocab_size, width, &embeddings.pp("token_embedding"))?,
            positions: Embedding::load(config.max_position_embeddings, width, &embeddings.pp("position_embedding"))?,
            layers: (0..config.num_hidden_layers)
                .map(|k| Layer::load(&config, &w.pp("encoder.layers").pp(k)))
                .collect::<weights::Result<_>>()?,
            final_layer_norm: LayerNorm::load(width, config.layer_norm_eps, &w.pp("final_layer_norm"))?,
            config,
        })
    }

    /// Teaches it tokens: vectors (n, width) f32 for the ids from `first` on, which is at most `vocab_size`.
    pub fn add_tokens(&mut self, first: u32, vectors: &Tensor) -> Result<()> {
        self.tokens = self.tokens.with_rows(first as usize, vectors)?;
        Ok(())
    }

    /// What it was built from.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// ids: (N, L) u32, L at most `max_tokens` -> the last hidden state, normed: (N, L, width) f32.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(self.hidden_states(ids)?.last_hidden_state)
    }

    /// ids: (N, L) u32, L at most `max_tokens`.
    pub fn hidden_states(&self, ids: &Tensor) -> Result<ClipTextOutput> {
        let length = ids.dim(D::Minus1)?;
        let mut x = self.tokens.forward(ids)?.broadcast_add(&self.positions.first(length)?)?;
        let mask = causal_mask(length, ids.device())?;
        let mut hidden_states = vec![x.clone()];
        for layer in &self.layers {
            x = layer.forward(&x, &mask, &self.config)?;
            hidden_states.push(x.clone());
        }
        Ok(ClipTextOutput { hidden_states, last_hidden_state: self.normed(&x)? })
    }

    /// The norm that follows the last layer: (N, L, width) -> the same shape.
    pub fn normed(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.final_layer_norm.forward(x)?)
    }

    /// The vector at each row's end mark: last_hidden_state (N, L, width) of ids (N, L) u32 -> (N, width). The end mark is
    /// the first token with the configured id, or in old configs the first of the largest id in the row.
    fn pooled(&self, ids: &Tensor, last_hidden_state: &Tensor) -> Result<Tensor> {
        let rows: Vec<Vec<u32>> = ids.to_vec2()?;
        let end = self.config.eos_token_id.filter(|id| *id != LEGACY_EOS);
        let at = |row: &Vec<u32>| {
            let end = end.or_else(|| row.iter().copied().max());
            // Without an end mark the reference takes the first token too.
            row.iter().position(|id| Some(*id) == end).unwrap_or(0)
        };
        let pick = |(k, row): (usize, &Vec<u32>)| last_hidden_state.narrow(0, k, 1)?.narrow(1, at(row), 1)?.squeeze(1);
        Ok(Tensor::cat(&rows.iter().enumerate().map(pick).collect::<candle_core::Result<Vec<_>>>()?, 0)?)
    }
}

/// The text model and a projection of its pooled vector into the space that words and pictures share.
#[derive(Clone, Debug)]
pub struct ClipTextModelWithProjection {
    model: ClipTextModel,
    text_projection: Linear,
}

impl ClipTextModelWithProjection {
    /// Reads every tensor the configuration names, `text_projection` too.
    pub fn load(config: ClipTextConfig, w: &Weights) -> Result<Self> {
        let (width, projected) = (config.hidden_size, config.projection_dim);
        Ok(Self {
            model: ClipTextModel::load(config, w)?,
            text_projection: Linear::load_no_bias(width, projected, &w.pp("text_projection"))?,
        })
    }

    /// The text model alone.
    pub fn model(&self) -> &ClipTextModel {
        &self.model
    }

    /// last_hidden_state (N, L, width) of ids (N, L) u32 -> each text as a whole: (N, projection_dim) f32.
    pub fn project(&self, ids: &Tensor, last_hidden_state: &Tensor) -> Result<Tensor> {
        Ok(self.text_projection.forward(&self.model.pooled(ids, last_hidden_state)?)?)
    }
}

impl Adaptable for ClipTextModel {
    fn each_layer(&mut self, visit: Visit<'_>) -> Result<()> {
        self.layers.iter_mut().try_for_each(|layer| layer.each_layer(visit))
    }
}

impl Adaptable for ClipTextModelWithProjection {
    fn each_layer(&mut self, visit: Visit<'_>) -> Result<()> {
        self.model.each_layer(visit)?;
        visit(LayerMut::Linear(&mut self.text_projection))
    }
}

impl AsMut<ClipTextModel> for ClipTextModel {
    fn as_mut(&mut self) -> &mut ClipTextModel {
        self
    }
}

impl AsMut<ClipTextModel> for ClipTextModelWithProjection {
    fn as_mut(&mut self) -> &mut ClipTextModel {
        &mut self.model
    }
}

impl AsRef<ClipTextModel> for ClipTextModel {
    fn as_ref(&self) -> &ClipTextModel {
        self
    }
}

impl AsRef<ClipTextModel> for ClipTextModelWithProjection {
    fn as_ref(&self) -> &ClipTextModel {
        &self.model
    }
}

/// (L, L): 0 where a token may look, the lowest f32 where it may not.
fn causal_mask(length: usize, device: &Device) -> candle_core::Result<Tensor> {
    let values: Vec<f32> =
        (0..length * length).map(|at| if at % length > at / length { f32::MIN } else { 0.0 }).collect();
    Tensor::from_vec(values, (length, length), device)
}
