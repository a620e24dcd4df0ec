//! The UNet in the names of the original code (CompVis `openaimodel.UNetModel`): numbered input, middle and output blocks.

use serde_json::{Value, json};

use super::{Component, Keys};
use crate::diffusion::weights::names::{NameMap, Row, View};

/// Where it stands in a checkpoint.
pub(super) const MODULE: &str = "model.diffusion_model";

pub(super) const RESNET: &[Row] = &[
    ("norm1", "in_layers.0", View::Whole),
    ("conv1", "in_layers.2", View::Whole),
    ("time_emb_proj", "emb_layers.1", View::Whole),
    ("norm2", "out_layers.0", View::Whole),
    ("conv2", "out_layers.3", View::Whole),
    ("conv_shortcut", "skip_connection", View::Whole),
];

/// What is of one resolution in a network that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginalLevel {
    /// Residual blocks on the way down; one more on the way up.
    pub layers: usize,
    /// Whether those on the way up are followed by transformers.
    pub attends_up: bool,
}

/// The original code's names for a network of these levels, the largest resolution first.
pub fn original_unet_names(levels: &[OriginalLevel]) -> NameMap {
    let mut names = NameMap::default();
    outer(&mut names, str::to_owned);
    let mut number = 1;
    for (k, level) in levels.iter().enumerate() {
        for j in 0..level.layers {
            names.module(format!("down_blocks.{k}.resnets.{j}"), format!("input_blocks.{number}.0"), RESNET);
            names.module(format!("down_blocks.{k}.attentions.{j}"), format!("input_blocks.{number}.1"), &[]);
            number += 1;
        }
        if k + 1 < levels.len() {
            names.module(format!("down_blocks.{k}.downsamplers.0.conv"), format!("input_blocks.{number}.0.op"), &[]);
            number += 1;
        }
    }
    let mut number = 0;
    for (k, level) in levels.iter().rev().enumerate() {
        for j in 0..=level.layers {
            names.module(format!("up_blocks.{k}.resnets.{j}"), format!("output_blocks.{number}.0"), RESNET);
            names.module(format!("up_blocks.{k}.attentions.{j}"), format!("output_blocks.{number}.1"), &[]);
            number += 1;
        }
        if k + 1 < levels.len() {
            let place = if level.attends_up { 2 } else { 1 };
            let module = format!("output_blocks.{}.{place}.conv", number - 1);
            names.module(format!("up_blocks.{k}.upsamplers.0.conv"), module, &[]);
        }
    }
    names
}

/// What stands outside the down and up blocks.
fn outer(names: &mut NameMap, stored: impl Fn(&str) -> String) {
    for (asked, there, rows) in [
        ("time_embedding.linear_1", "time_embed.0", &[] as &[Row]),
        ("time_embedding.linear_2", "time_embed.2", &[]),
        ("add_embedding.linear_1", "label_emb.0.0", &[]),
        ("add_embedding.linear_2", "label_emb.0.2", &[]),
        ("conv_in", "input_blocks.0.0", &[]),
        ("conv_norm_out", "out.0", &[]),
        ("conv_out", "out.2", &[]),
        ("mid_block.resnets.0", "middle_block.0", RESNET),
        ("mid_block.attentions.0", "middle_block.1", &[]),
        ("mid_block.resnets.1", "middle_block.2", RESNET),
    ] {
        names.module(asked, stored(there), rows);
    }
}

/// One resolution.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Level {
    pub(super) channels: usize,
    /// Residual blocks.
    pub(super) layers: usize,
    /// Blocks of each transformer; 0 where it has none.
    pub(super) depth: usize,
}

/// What its names and shapes tell.
pub(super) struct UNet {
    pub(super) component: Component,
    pub(super) in_channels: usize,
}

impl UNet {
    /// Reads the structure below `module`; `image_size` over `factor` is the side of its latents.
    ///
    /// # Errors
    /// Names that are not of this network, as a sentence.
    pub(super) fn read(keys: &Keys<'_>, (image_size, factor): (usize, usize)) -> Result<Self, String> {
        let mut names = NameMap::default();
        let stored = |rest: &str| format!("{MODULE}.{rest}");
        outer(&mut names, stored);
        let down = down_path(keys, &mut names, &stored(""))?;
        let mid_depth = keys.count(&stored("middle_block.1.transformer_blocks"))?;
        let up = up_path(keys, &mut names)?;
        let first_attention =
            names.modules().find(|(asked, _)| asked.contains("attentions")).map(|(_, stored)| stored.to_owned());
        let Some(attention) = first_attention else { return Err(format!("`{MODULE}` has no attention")) };
        let in_channels = keys.side(&stored("input_blocks.0.0.weight"), 1)?;
        let context = keys.side(&format!("{attention}.transformer_blocks.0.attn2.to_k.weight"), 1)?;
        let linear = keys.shape(&format!("{attention}.proj_in.weight")).is_some_and(|shape| shape.len() == 2);
        let added = keys.shape(&stored("label_emb.0.0.weight")).and_then(|shape| shape.get(1)).copied();
        let out_channels = keys.side(&stored("out.2.weight"), 0)?;
        let config = config(&down, &up, mid_depth, linear).map(|mut config| {
            config["in_channels"] = in_channels.into();
            config["out_channels"] = out_channels.into();
            config["cross_attention_dim"] = context.into();
            config["sample_size"] = (image_size / factor.max(1)).into();
            if let Some(width) = added {
                config["addition_embed_type"] = "text_time".into();
                // The width of each size's embedding: fixed in the original code (`ConcatTimestepEmbedderND`, outdim 256).
                config["addition_time_embed_dim"] = 256.into();
                config["projection_class_embeddings_input_dim"] = width.into();
            }
            config
        });
        Ok(Self { component: Component { module: MODULE.to_owned(), config, names }, in_channels })
    }
}

/// The input blocks; `prefix` stands before their names.
pub(super) fn down_path(keys: &Keys<'_>, names: &mut NameMap, prefix: &str) -> Result<Vec<Level>, String> {
    let (blocks, mut levels) = (keys.count(&format!("{prefix}input_blocks"))?, vec![Level::default()]);
    for number in 1..blocks {
        let (module, place) = (format!("{prefix}input_blocks.{number}"), levels.len() - 1);
        if keys.has(&format!("{module}.0.op.weight")) {
            names.module(format!("down_blocks.{place}.downsamplers.0.conv"), format!("{module}.0.op"), &[]);
            levels.push(Level::default());
        } else {
            let level = levels.last_mut().expect("never empty. This is a bug in weights.");
            layer(keys, names, (&module, &format!("down_blocks.{place}")), level)?;
        }
    }
    Ok(levels)
}

/// In the order of the up blocks: from the smallest resolution.
fn up_path(keys: &Keys<'_>, names: &mut NameMap) -> Result<Vec<Level>, String> {
    let (blocks, mut levels) = (keys.count(&format!("{MODULE}.output_blocks"))?, vec![Level::default()]);
    for number in 0..blocks {
        let (module, place) = (format!("{MODULE}.output_blocks.{number}"), levels.len() - 1);
        let level = levels.last_mut().expect("never empty. This is a bug in weights.");
        layer(keys, names, (&module, &format!("up_blocks.{place}")), level)?;
        // After the attention where there is one.
        let upsampler = [1, 2].map(|place| format!("{module}.{place}.conv"));
        if let Some(upsampler) = upsampler.into_iter().find(|module| keys.has(&format!("{module}.weight"))) {
            names.module(format!("up_blocks.{place}.upsamplers.0.conv"), upsampler, &[]);
            levels.push(Level::default());
        }
    }
    Ok(levels)
}

/// A residual block, and the transformer that follows it where there is one.
fn layer(keys: &Keys<'_>, names: &mut NameMap, (module, block): (&str, &str), level: &mut Level) -> Result<(), String> {
    let channels = keys.side(&format!("{module}.0.in_layers.2.weight"), 0)?;
    let depth = keys.count(&format!("{module}.1.transformer_blocks"))?;
    if level.layers > 0 && (level.channels, level.depth) != (channels, depth) {
        return Err(format!(
            "`{module}` has {channels} channels and {depth} transformer blocks, the layers before it {} and {}",
            level.channels, level.depth
        ));
    }
    names.module(format!("{block}.resnets.{}", level.layers), format!("{module}.0"), RESNET);
    if depth > 0 {
        names.module(format!("{block}.attentions.{}", level.layers), format!("{module}.1"), &[]);
    }
    *level = Level { channels, layers: level.layers + 1, depth };
    Ok(())
}

/// As diffusers writes it. What no shape tells is as in every published checkpoint: 32 groups a norm, and heads.
pub(super) fn config(down: &[Level], up: &[Level], mid_depth: usize, linear: bool) -> Result<Value, String> {
    let rising: Vec<&Level> = up.iter().rev().collect();
    let pairs = || down.iter().zip(&rising);
    let fits = |(down, up): (&Level, &&Level)| {
        let depths = down.depth == 0 || up.depth == 0 || down.depth == up.depth;
        down.channels == up.channels && down.layers + 1 == up.layers && depths
    };
    if down.len() != up.len() || !pairs().all(fits) {
        return Err(format!("`{MODULE}`: the output blocks are no mirror of the input blocks: {down:?}, {rising:?}"));
    }
    let depth = |down: &Level, up: &Level| down.depth.max(up.depth).max(1);
    let mut depths: Vec<usize> = pairs().map(|(down, up)| depth(down, up)).collect();
    let last = down.len() - 1;
    match (down[last].depth.max(rising[last].depth), mid_depth) {
        (_, 0) => return Err(format!("`{MODULE}.middle_block.1` has no transformer blocks")),
        (0, mid) => depths[last] = mid,
        (deep, mid) if deep == mid => {}
        (deep, mid) => return Err(format!("the last level has {deep} transformer blocks, the middle block {mid}")),
    }
    let channels: Vec<usize> = down.iter().map(|level| level.channels).collect();
    if let Some(odd) = channels.iter().find(|channels| *channels % 32 != 0) {
        return Err(format!("{odd} channels do not make 32 groups, as norms of published checkpoints have"));
    }
    let types = |levels: &mut dyn Iterator<Item = usize>, plain: &str, cross: &str| -> Vec<String> {
        levels.map(|depth| if depth > 0 { cross } else { plain }.to_owned()).collect()
    };
    Ok(json!({
        "_class_name": "UNet2DConditionModel",
        "block_out_channels": channels,
        "layers_per_block": down.iter().map(|level| level.layers).collect::<Vec<_>>(),
        "down_block_types": types(&mut down.iter().map(|level| level.depth), "DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": types(&mut up.iter().map(|level| level.depth), "UpBlock2D", "CrossAttnUpBlock2D"),
        "transformer_layers_per_block": depths,
        "attention_head_dim": heads(&channels, linear)?,
        "use_linear_projection": linear,
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "act_fn": "silu",
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "downsample_padding": 1,
        "center_input_sample": false,
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
    }))
}

/// Heads a level, which no shape tells: 8 in Stable Diffusion 1.x (v1-inference.yaml, `num_heads`); heads of 64 channels in
/// 2.x and SDXL (`num_head_channels`), which are also those with linear projections (`use_linear_in_transformer`).
fn heads(channels: &[usize], linear: bool) -> Result<Vec<usize>, String> {
    let divisor = if linear { 64 } else { 8 };
    if let Some(odd) = channels.iter().find(|channels| *channels % divisor != 0) {
        let rule = if linear { "heads of 64 channels" } else { "8 heads" };
        return Err(format!("{odd} channels do not make {rule}, as published checkpoints of this kind have"));
    }
    Ok(channels.iter().map(|channels| if linear { channels / 64 } else { 8 }).collect())
}
