//! Text encoders inside a checkpoint: OpenAI's CLIP in transformers' names, OpenCLIP in its own.

use serde_json::{Value, json};

use super::{Component, Family, Keys};
use crate::diffusion::weights::names::{NameMap, Row, View};

/// Width of a head in every published CLIP.
const HEAD: usize = 64;

const OPEN_CLIP_LAYER: &[Row] = &[
    ("layer_norm1", "ln_1", View::Whole),
    ("layer_norm2", "ln_2", View::Whole),
    ("mlp.fc1", "mlp.c_fc", View::Whole),
    ("mlp.fc2", "mlp.c_proj", View::Whole),
    ("self_attn.out_proj", "attn.out_proj", View::Whole),
    ("self_attn.q_proj.weight", "attn.in_proj_weight", View::Third(0)),
    ("self_attn.k_proj.weight", "attn.in_proj_weight", View::Third(1)),
    ("self_attn.v_proj.weight", "attn.in_proj_weight", View::Third(2)),
    ("self_attn.q_proj.bias", "attn.in_proj_bias", View::Third(0)),
    ("self_attn.k_proj.bias", "attn.in_proj_bias", View::Third(1)),
    ("self_attn.v_proj.bias", "attn.in_proj_bias", View::Third(2)),
];
const PROJECTION: &[Row] = &[("weight", "", View::Transposed)];

/// Whose code wrote its names, which tells its activation and its padding too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Clip,
    OpenClip,
}

/// A text encoder that was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) kind: Kind,
    pub(super) module: &'static str,
}

/// Where text encoders may stand: in LDM checkpoints (SD 1.x and 2.x), and in SGM ones (SDXL, SD-Turbo).
const PLACES: [Place; 5] = [
    Place { kind: Kind::Clip, module: "cond_stage_model.transformer" },
    Place { kind: Kind::OpenClip, module: "cond_stage_model.model" },
    Place { kind: Kind::Clip, module: "conditioner.embedders.0.transformer" },
    Place { kind: Kind::OpenClip, module: "conditioner.embedders.0.model" },
    Place { kind: Kind::OpenClip, module: "conditioner.embedders.1.model" },
];

impl Place {
    /// diffusers' names of the encoder, and of the tokenizer for it.
    pub(super) fn components(&self, family: Family) -> (&'static str, &'static str) {
        let second = family.is_xl() && self.kind == Kind::OpenClip;
        if second { ("text_encoder_2", "tokenizer_2") } else { ("text_encoder", "tokenizer") }
    }

    pub(super) fn is_sgm(&self) -> bool {
        self.module.starts_with("conditioner")
    }
}

/// The text encoders of a file.
pub(super) fn places(keys: &Keys<'_>) -> Vec<Place> {
    PLACES.into_iter().filter(|place| keys.any(&format!("{}.", place.module))).collect()
}

/// What an OpenCLIP tower is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tower {
    /// SD 2.x reads the vectors before the last block, so transformers' copy has one block fewer.
    BeforeLast,
    /// SDXL: all blocks, and the projection of the pooled vector.
    Whole,
}

/// Reads the structure of the encoder at `place`.
///
/// # Errors
/// Names that are not of this network, as a sentence.
pub(super) fn read(keys: &Keys<'_>, place: &Place, tower: Tower) -> Result<Component, String> {
    match place.kind {
        Kind::Clip => clip(keys, place.module),
        Kind::OpenClip => open_clip(keys, place.module, tower),
    }
}

/// Rows of its token table.
pub(super) fn vocabulary(keys: &Keys<'_>, place: &Place) -> Option<usize> {
    let tables = match place.kind {
        Kind::Clip => vec!["text_model.embeddings.token_embedding.weight", "embeddings.token_embedding.weight"],
        Kind::OpenClip => vec!["token_embedding.weight"],
    };
    tables.into_iter().find_map(|name| keys.side(&format!("{}.{name}", place.module), 0).ok())
}

fn clip(keys: &Keys<'_>, module: &str) -> Result<Component, String> {
    let mut names = NameMap::default();
    names.module("", module, &[]);
    // transformers before 4.0 wrote no `text_model`.
    let wrapped = format!("{module}.text_model");
    let inner = if keys.any(&format!("{wrapped}.")) { &wrapped } else { module };
    let layers = keys.count(&format!("{inner}.encoder.layers"))?;
    let sides = Sides {
        tokens: format!("{inner}.embeddings.token_embedding.weight"),
        positions: format!("{inner}.embeddings.position_embedding.weight"),
        inner: format!("{inner}.encoder.layers.0.mlp.fc1.weight"),
    };
    Ok(Component { module: module.to_owned(), config: config(keys, &sides, layers, "quick_gelu"), names })
}

fn open_clip(keys: &Keys<'_>, module: &str, tower: Tower) -> Result<Component, String> {
    let mut names = NameMap::default();
    let stored = |rest: &str| format!("{module}.{rest}");
    names.module("", module, &[]);
    names.module("text_model.embeddings.token_embedding", stored("token_embedding"), &[]);
    names.module("text_model.embeddings.position_embedding.weight", stored("positional_embedding"), &[]);
    names.module("text_model.final_layer_norm", stored("ln_final"), &[]);
    names.module("text_projection", stored("text_projection"), PROJECTION);
    let blocks = keys.count(&stored("transformer.resblocks"))?;
    for k in 0..blocks {
        let block = stored(&format!("transformer.resblocks.{k}"));
        names.module(format!("text_model.encoder.layers.{k}"), block, OPEN_CLIP_LAYER);
    }
    let projection = stored("text_projection");
    let layers = match tower {
        Tower::Whole => blocks,
        Tower::BeforeLast => used_blocks(blocks, keys.shape(&projection)),
    };
    let sides = Sides {
        tokens: stored("token_embedding.weight"),
        positions: stored("positional_embedding"),
        inner: stored("transformer.resblocks.0.mlp.c_fc.weight"),
    };
    let config = config(keys, &sides, layers, "gelu").map(|mut config| {
        if let Some(side) = keys.shape(&projection).and_then(|shape| shape.get(1)) {
            config["projection_dim"] = (*side).into();
        }
        config
    });
    Ok(Component { module: module.to_owned(), config, names })
}

/// Blocks of an SD 2.x encoder that count. Original files hold the whole tower with its projection, files converted back
/// from diffusers' folders neither the last block nor the projection. ViT-H, the tower of every published one, has 24.
fn used_blocks(blocks: usize, projection: Option<&[usize]>) -> usize {
    const VIT_H: (usize, usize) = (1024, 24);
    match projection {
        Some([width, ..]) if *width == VIT_H.0 => blocks.min(VIT_H.1 - 1),
        Some(_) => blocks.saturating_sub(1),
        None if blocks == VIT_H.1 => blocks - 1,
        None => blocks,
    }
}

/// The tensors that tell a transformer's size.
struct Sides {
    tokens: String,
    positions: String,
    inner: String,
}

/// As transformers writes it. The ids of its marks are CLIP's; `eos_token_id` 2 stands in the published files and means
/// that the pooled vector is the one of the highest id (transformers `CLIPTextTransformer`).
fn config(keys: &Keys<'_>, sides: &Sides, layers: usize, activation: &str) -> Result<Value, String> {
    let (vocabulary, width) = (keys.side(&sides.tokens, 0)?, keys.side(&sides.tokens, 1)?);
    if !width.is_multiple_of(HEAD) {
        return Err(format!("a width of {width} does not make heads of {HEAD}, as published text encoders have"));
    }
    Ok(json!({
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": keys.side(&sides.inner, 0)?,
        "num_hidden_layers": layers,
        "num_attention_heads": width / HEAD,
        "max_position_embeddings": keys.side(&sides.positions, 0)?,
        "hidden_act": activation,
        "layer_norm_eps": 1e-5,
        "projection_dim": width,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }))
}
