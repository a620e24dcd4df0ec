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

/// Transformer layers after each residual block of each block.
type LayersOfBlocks = Vec<Vec<usize>>;

/// Transformer layers: one value for all blocks, or for each block one value or one a layer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum TransformerLayers {
    One(usize),
    Each(Vec<PerBlock>),
}

impl TransformerLayers {
    /// One list a block; block `k` has `layers[k]` layers.
    fn resolve(&self, layers: &[usize], key: &'static str) -> Result<LayersOfBlocks> {
        let blocks = match self {
            Self::One(value) => vec![PerBlock::One(*value); layers.len()],
            Self::Each(values) => values.clone(),
        };
        require(blocks.len() == layers.len(), key, self, "one number, or one for each block")?;
        let supported = "for each block, one number or one for each of its layers";
        let each = |(block, count): (&PerBlock, &usize)| match block {
            PerBlock::One(value) => Ok(vec![*value; *count]),
            PerBlock::Each(values) => {
                require(values.len() == *count, key, self, supported)?;
                Ok(values.clone())
            }
        };
        blocks.iter().zip(layers).map(each).collect()
    }

    /// What a middle block of one transformer reads: the last block's, or the first of its list.
    fn middle(&self) -> Option<usize> {
        match self {
            Self::One(value) => Some(*value),
            Self::Each(values) => match values.last()? {
                PerBlock::One(value) => Some(*value),
                PerBlock::Each(values) => values.first().copied(),
            },
        }
    }

    fn has_lists(&self) -> bool {
        matches!(self, Self::Each(values) if values.iter().any(|value| matches!(value, PerBlock::Each(_))))
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
    transformer_layers_per_block: TransformerLayers,
    reverse_transformer_layers_per_block: Option<TransformerLayers>,
    attention_head_dim: PerBlock,
    addition_embed_type: Option<String>,
    addition_time_embed_dim: Option<usize>,
    projection_class_embeddings_input_dim: Option<usize>,
    time_embedding_dim: Option<usize>,
    time_cond_proj_dim: Option<usize>,
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
            transformer_layers_per_block: TransformerLayers::One(1),
            reverse_transformer_layers_per_block: None,
            attention_head_dim: PerBlock::One(8),
            addition_embed_type: None,
            addition_time_embed_dim: None,
            projection_class_embeddings_input_dim: None,
            time_embedding_dim: None,
            time_cond_proj_dim: None,
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
    pub context: usize,
    /// Transformer layers after each residual block of the down block; `None` where it does not attend.
    pub down: Option<Vec<usize>>,
    /// Of the up block at the same resolution, which has one residual block more.
    pub up: Option<Vec<usize>>,
}

/// What stands between the two paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mid {
    None,
    /// One residual block (`UNetMidBlock2D`).
    Plain,
    /// Two with a transformer of so many layers between them (`UNetMidBlock2DCrossAttn`).
    Attends(usize),
}

/// The pooled prompt and the sizes, embedded and added to the timestep's embedding (`addition_embed_type`: `text_time`;
/// Podell et al. 2023, section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddedConditioning {
    /// Width of one size's embedding.
    pub(super) time_ids_width: usize,
    /// Width of the pooled prompt and all the sizes' embeddings together.
    pub(super) inputs: usize,
}

impl AddedConditioning {
    /// How many sizes it takes beside a pooled prompt of this width; `None` where the widths do not fit.
    pub fn time_ids(&self, pooled_width: usize) -> Option<usize> {
        let rest = self.inputs.checked_sub(pooled_width)?;
        rest.is_multiple_of(self.time_ids_width).then_some(rest / self.time_ids_width)
    }
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
    pub(super) mid: Mid,
    pub(super) time_width: usize,
    pub(super) guidance_width: Option<usize>,
    pub(super) added: Option<AddedConditioning>,
    pub(super) norm_groups: usize,
    pub(super) norm_eps: f64,
    pub(super) linear_projection: bool,
    pub(super) sample_size: Option<usize>,
}

/// Far more than any network has; what a file claims is not allocated for.
const MAX_LAYERS: usize = 256;

/// Keys that change the network in ways this one does not follow, and the value at which they don't.
const NEUTRAL: [(&str, Value); 11] = [
    ("class_embed_type", Value::Null),
    ("encoder_hid_dim", Value::Null),
    ("encoder_hid_dim_type", Value::Null),
    // diffusers refuses it as well: the number of heads stands in `attention_head_dim`.
    ("num_attention_heads", Value::Null),
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
        let attention = text("attention_type", "default");
        require(attention == "default", "attention_type", attention, "default")?;
        if let Some(only) = raw.others.get("only_cross_attention") {
            let each = only.as_array().map_or(std::slice::from_ref(only), Vec::as_slice);
            require(each.iter().all(|value| *value == false), "only_cross_attention", only, "false")?;
        }
        Ok(Self {
            in_channels: raw.in_channels,
            out_channels: raw.out_channels,
            center_input_sample: raw.center_input_sample,
            flip_sin_to_cos: raw.flip_sin_to_cos,
            freq_shift: raw.freq_shift,
            mid: raw.mid()?,
            time_width: raw.time_embedding_dim.unwrap_or(4 * raw.block_out_channels.first().copied().unwrap_or(0)),
            guidance_width: raw.time_cond_proj_dim,
            added: raw.added()?,
            levels: raw.levels()?,
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

    /// Channels of its prediction.
    pub fn out_channels(&self) -> usize {
        self.out_channels
    }

    /// Whether its transformers project by products instead of convolutions (2.x and later).
    pub fn uses_linear_projection(&self) -> bool {
        self.linear_projection
    }

    /// Whether it is told the guidance scale (`time_cond_proj_dim`; Meng et al. 2023).
    pub fn is_told_guidance(&self) -> bool {
        self.guidance_width.is_some()
    }

    /// What it takes besides words, where it does.
    pub fn added(&self) -> Option<AddedConditioning> {
        self.added
    }

    /// Channels of the maps that the down path hands to the up path, in its order.
    pub(super) fn skip_channels(&self) -> Vec<usize> {
        let mut skips = vec![self.levels[0].channels];
        for (k, level) in self.levels.iter().enumerate() {
            let maps = level.layers + usize::from(k + 1 < self.levels.len());
            skips.extend(std::iter::repeat_n(level.channels, maps));
        }
        skips
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
        // diffusers' historical name: `attention_head_dim` holds the number of heads.
        let heads = self.attention_head_dim.resolve(blocks, "attention_head_dim")?;
        let layers = self.layers_per_block.resolve(blocks, "layers_per_block")?;
        let few = layers.iter().all(|count| *count <= MAX_LAYERS);
        require(few, "layers_per_block", &layers, "at most 256 layers in a block")?;
        let context = self.cross_attention_dim.resolve(blocks, "cross_attention_dim")?;
        let down =
            attends(&self.down_block_types, blocks, "down_block_types", ["DownBlock2D", "CrossAttnDownBlock2D"])?;
        let up = attends(&self.up_block_types, blocks, "up_block_types", ["UpBlock2D", "CrossAttnUpBlock2D"])?;
        let (down_layers, mut up_layers) = self.transformer_layers(&layers)?;
        up_layers.reverse();
        let mid = self.mid()?;
        let level = |k: usize| {
            let (channels, heads) = (self.block_out_channels[k], heads[k]);
            let (down, up) = (down[k], up[blocks - 1 - k]);
            let splits = heads > 0 && channels.is_multiple_of(heads);
            let attends = down || up || (k + 1 == blocks && matches!(mid, Mid::Attends(_)));
            require(splits || !attends, "attention_head_dim", heads, "a divisor of the block's channels")?;
            Ok(Level {
                channels,
                layers: layers[k],
                heads,
                context: context[k],
                down: down.then(|| down_layers[k].clone()),
                up: up.then(|| up_layers[k].clone()),
            })
        };
        (0..blocks).map(level).collect()
    }

    /// One list a down block and one an up block, in the order of the blocks.
    fn transformer_layers(&self, layers: &[usize]) -> Result<(LayersOfBlocks, LayersOfBlocks)> {
        let (given, key) = (&self.transformer_layers_per_block, "transformer_layers_per_block");
        let up_layers: Vec<usize> = layers.iter().rev().map(|count| count + 1).collect();
        let down = given.resolve(layers, key)?;
        let up = match (&self.reverse_transformer_layers_per_block, given) {
            (Some(reverse), _) => reverse.resolve(&up_layers, "reverse_transformer_layers_per_block")?,
            (None, TransformerLayers::Each(values)) => {
                let supported = "lists within it only beside reverse_transformer_layers_per_block";
                require(!given.has_lists(), key, given, supported)?;
                TransformerLayers::Each(values.iter().rev().cloned().collect()).resolve(&up_layers, key)?
            }
            (None, TransformerLayers::One(_)) => given.resolve(&up_layers, key)?,
        };
        Ok((down, up))
    }

    fn mid(&self) -> Result<Mid> {
        match (self.mid_block_type.as_deref(), self.transformer_layers_per_block.middle()) {
            (None, _) => Ok(Mid::None),
            (Some("UNetMidBlock2D"), _) => Ok(Mid::Plain),
            (Some("UNetMidBlock2DCrossAttn"), Some(layers)) => Ok(Mid::Attends(layers)),
            (Some("UNetMidBlock2DCrossAttn"), None) => {
                let given = &self.transformer_layers_per_block;
                require(false, "transformer_layers_per_block", given, "one for the middle block too")
                    .map(|()| Mid::None)
            }
            (other, _) => require(false, "mid_block_type", other, "UNetMidBlock2DCrossAttn, UNetMidBlock2D, or null")
                .map(|()| Mid::None),
        }
    }

    fn added(&self) -> Result<Option<AddedConditioning>> {
        let Some(kind) = self.addition_embed_type.as_deref() else { return Ok(None) };
        require(kind == "text_time", "addition_embed_type", kind, "text_time or null")?;
        let (width, inputs) = (self.addition_time_embed_dim, self.projection_class_embeddings_input_dim);
        let (time_ids_width, inputs) = (width.unwrap_or(0), inputs.unwrap_or(0));
        require(time_ids_width > 0, "addition_time_embed_dim", width, "a width above 0")?;
        require(inputs > 0, "projection_class_embeddings_input_dim", inputs, "a width above 0")?;
        Ok(Some(AddedConditioning { time_ids_width, inputs }))
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
