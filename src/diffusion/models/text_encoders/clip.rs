//! CLIP's text transformer (Radford et al. 2021; transformers `CLIPTextModel`).

use candle_core::{D, Device, Tensor};
use serde::Deserialize;

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
        }
    }
}

impl ClipTextConfig {
    /// Tokens it reads, start and end marks counted.
    pub fn max_tokens(&self) -> usize {
        self.max_position_embeddings
    }

    /// Width of its vectors.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    /// Tokens it knows.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }
}

#[derive(Debug)]
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

    fn forward(&self, x: &Tensor, mask: &Tensor, config: &ClipTextConfig) -> candle_core::Result<Tensor> {
        let h = self.layer_norm1.forward(x)?;
        let (q, k, v) = (self.q.forward(&h)?, self.k.forward(&h)?, self.v.forward(&h)?);
        let x = (x + self.out.forward(&scaled_dot_product(&q, &k, &v, config.num_attention_heads, Some(mask))?)?)?;
        let h = self.fc1.forward(&self.layer_norm2.forward(&x)?)?;
        &x + self.fc2.forward(&config.hidden_act.forward(&h)?)?
    }
}

/// Token ids to vectors.
#[derive(Debug)]
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

    /// What it was built from.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// ids: (N, L) u32, L at most `max_tokens` -> the last hidden state, normed: (N, L, width) f32.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let length = ids.dim(D::Minus1)?;
        let mut x = self.tokens.forward(ids)?.broadcast_add(&self.positions.first(length)?)?;
        let mask = causal_mask(length, ids.device())?;
        for layer in &self.layers {
            x = layer.forward(&x, &mask, &self.config)?;
        }
        Ok(self.final_layer_norm.forward(&x)?)
    }
}

/// (L, L): 0 where a token may look, the lowest f32 where it may not.
fn causal_mask(length: usize, device: &Device) -> candle_core::Result<Tensor> {
    let values: Vec<f32> =
        (0..length * length).map(|at| if at % length > at / length { f32::MIN } else { 0.0 }).collect();
    Tensor::from_vec(values, (length, length), device)
}
