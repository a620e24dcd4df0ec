//! `unet/config.json` as diffusers 0.42 writes it (`UNet2DConditionModel.__init__`); absent keys take its defaults.

use serde::Deserialize;
use serde_json::Value;

use crate::diffusion::models::{Error, Result, require};

/// One value for all blocks, or one a block.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum PerBlock {
    One(usize),
    Each(Vec<usize>),
}

impl PerBlock {
    fn resolve(&self, blocks: usize, key: &'static str) -> Result<Vec<usize>> {
        match self {
            Self::One(value) => Ok(vec![*value; blocks]),
            Self::Each(values) => {
                require(values.len() == blocks, key, values, "one number, or one for each block")?;
                Ok(values.clone())
            }
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Raw {
    sample_size: Option<Value>,
    in_channels: usize,
    out_channels: usize,
    center_input_sample: bool,
    flip_sin_to_cos: bool,
    freq_shift: f64,
    down_block_types: Vec<String>,
    mid_block_type: Option<String>,
    up_block_types: Vec<String>,
    block_out_channels: Vec<usize>,
    layers_per_block: PerBlock,
    downsample_padding: usize,
    act_fn: String,
    norm_num_groups: usize,
    norm_eps: f64,
    cross_attention_dim: PerBlock,
    transformer_layers_per_block: PerBlock,
    attention_head_dim: PerBlock,
    num_attention_heads: Option<PerBlock>,
    use_linear_projection: bool,
    conv_in_kernel: usize,
    conv_out_kernel: usize,
    mid_block_scale_factor: f64,
    #[serde(flatten)]
    others: serde_json::Map<String, Value>,
}

impl Default for Raw {
    fn default() -> Self {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        Self {
            sample_size: None,
            in_channels: 4,
            out_channels: 4,
            center_input_sample: false,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            down_block_types: names(&[
                "CrossAttnDownBlock2D",
                "CrossAttnDownBlock2D",
                "CrossAttnDownBlock2D",
                "DownBlock2D",
            ]),
            mid_block_type: Some("UNetMidBlock2DCrossAttn".to_owned()),
            up_block_types: names(&["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]),
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: PerBlock::One(2),
            downsample_padding: 1,
            act_fn: "silu".to_owned(),
            norm_num_groups: 32,
            norm_eps: 1e-5,
            cross_attention_dim: PerBlock::One(1280),
            transformer_layers_per_block: PerBlock::One(1),
            attention_head_dim: PerBlock::One(8),
            num_attention_heads: None,
            use_linear_projection: false,
            conv_in_kernel: 3,
            conv_out_kernel: 3,
            mid_block_scale_factor: 1.0,
            others: serde_json::Map::new(),
        }
    }
}

/// One level of the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Level {
    pub channels: usize,
    pub layers: usize,
    pub heads: usize,
    pub transformer_layers: usize,
    pub context: usize,
    pub down_attends: bool,
    /// Of the up block at the same resolution.
    pub up_attends: bool,
}

/// A configuration that this network can honour.
#[derive(Clone, Debug)]
pub struct UNet2DConditionConfig {
    pub(super) in_channels: usize,
    pub(super) out_channels: usize,
    pub(super) center_input_sample: bool,
    pub(super) flip_sin_to_cos: bool,
    pub(super) freq_shift: f64,
    pub(super) levels: Vec<Level>,
    pub(super) has_mid: bool,
    pub(super) norm_groups: usize,
    pub(super) norm_eps: f64,
    pub(super) linear_projection: bool,
    pub(super) sample_size: Option<usize>,
}

/// Keys that change the network in ways this one does not follow, and the value at which they don't.
const NEUTRAL: [(&str, Value); 12] = [
    ("addition_embed_type", Value::Null),
    ("class_embed_type", Value::Null),
    ("encoder_hid_dim", Value::Null),
    ("encoder_hid_dim_type", Value::Null),
    ("time_cond_proj_dim", Value::Null),
    ("time_embedding_act_fn", Value::Null),
    ("timestep_post_act", Value::Null),
    ("num_class_embeds", Value::Null),
    ("cross_attention_norm", Value::Null),
    ("dual_cross_attention", Value::Bool(false)),
    ("resnet_skip_time_act", Value::Bool(false)),
    ("class_embeddings_concat", Value::Bool(false)),
];

impl UNet2DConditionConfig {
    /// Reads config.json.
    ///
    /// # Errors
    /// A key whose value this network cannot honour, with what it supports.
    pub fn parse(json: Value) -> Result<Self> {
        let raw: Raw = serde_json::from_value(json).map_err(|error| Error::Unsupported {
            key: "unet",
            value: error.to_string(),
            supported: "UNet2DConditionModel's keys",
        })?;
        for (key, neutral) in NEUTRAL {
            let value = raw.others.get(key).unwrap_or(&neutral);
            require(*value == neutral, key, value, "null or false: this network does not have it")?;
        }
        let text = |key: &str, default: &str| raw.others.get(key).and_then(Value::as_str).unwrap_or(default).to_owned();
        let (time, shift) = (text("time_embedding_type", "positional"), text("resnet_time_scale_shift", "default"));
        require(time == "positional", "time_embedding_type", time, "positional")?;
        require(shift == "default", "resnet_time_scale_shift", shift, "default")?;
        require(matches!(raw.act_fn.as_str(), "silu" | "swish"), "act_fn", &raw.act_fn, "silu")?;
        require(raw.conv_in_kernel == 3, "conv_in_kernel", raw.conv_in_kernel, "3")?;
        require(raw.conv_out_kernel == 3, "conv_out_kernel", raw.conv_out_kernel, "3")?;
        require(raw.downsample_padding == 1, "downsample_padding", raw.downsample_padding, "1")?;
        require(
            (raw.mid_block_scale_factor - 1.0).abs() < 1e-12,
            "mid_block_scale_factor",
            raw.mid_block_scale_factor,
            "1",
        )?;
        let mid = raw.mid_block_type.as_deref();
        require(
            matches!(mid, None | Some("UNetMidBlock2DCrossAttn")),
            "mid_block_type",
            mid,
            "UNetMidBlock2DCrossAttn or null",
        )?;
        Ok(Self {
            in_channels: raw.in_channels,
            out_channels: raw.out_channels,
            center_input_sample: raw.center_input_sample,
            flip_sin_to_cos: raw.flip_sin_to_cos,
            freq_shift: raw.freq_shift,
            levels: raw.levels()?,
            has_mid: mid.is_some(),
            norm_groups: raw.norm_num_groups,
            norm_eps: raw.norm_eps,
            linear_projection: raw.use_linear_projection,
            sample_size: raw.sample_size.as_ref().and_then(Value::as_u64).map(|size| size as usize),
        })
    }

    /// Channels of the latents it takes.
    pub fn in_channels(&self) -> usize {
        self.in_channels
    }

    /// The side it was trained at, in latent pixels, where the configuration says.
    pub fn sample_size(&self) -> Option<usize> {
        self.sample_size
    }

    /// Width of the text encoder's vectors.
    pub fn context_width(&self) -> usize {
        self.levels[0].context
    }
}

impl Raw {
    fn levels(&self) -> Result<Vec<Level>> {
        let blocks = self.block_out_channels.len();
        require(blocks > 0, "block_out_channels", &self.block_out_channels, "at least one block")?;
        let divides = self.block_out_channels.iter().all(|channels| channels % self.norm_num_groups.max(1) == 0);
        require(divides, "block_out_channels", &self.block_out_channels, "multiples of norm_num_groups")?;
        let heads = self.num_attention_heads.as_ref().unwrap_or(&self.attention_head_dim);
        // diffusers' historical name: `attention_head_dim` holds the number of heads.
        let heads = heads.resolve(blocks, "attention_head_dim")?;
        let layers = self.layers_per_block.resolve(blocks, "layers_per_block")?;
        let context = self.cross_attention_dim.resolve(blocks, "cross_attention_dim")?;
        let transformer_layers = self.transformer_layers_per_block.resolve(blocks, "transformer_layers_per_block")?;
        let down =
            attends(&self.down_block_types, blocks, "down_block_types", ["DownBlock2D", "CrossAttnDownBlock2D"])?;
        let mut up = attends(&self.up_block_types, blocks, "up_block_types", ["UpBlock2D", "CrossAttnUpBlock2D"])?;
        up.reverse();
        Ok((0..blocks)
            .map(|k| Level {
                channels: self.block_out_channels[k],
                layers: layers[k],
                heads: heads[k].max(1),
                transformer_layers: transformer_layers[k],
                context: context[k],
                down_attends: down[k],
                up_attends: up[k],
            })
            .collect())
    }
}

fn attends(types: &[String], blocks: usize, key: &'static str, [plain, cross]: [&'static str; 2]) -> Result<Vec<bool>> {
    require(types.len() == blocks, key, types, "one type for each of block_out_channels")?;
    types
        .iter()
        .map(|name| {
            let supported = if plain == "DownBlock2D" {
                "DownBlock2D, CrossAttnDownBlock2D"
            } else {
                "UpBlock2D, CrossAttnUpBlock2D"
            };
            require(name == plain || name == cross, key, name, supported).map(|()| name == cross)
        })
        .collect()
}
