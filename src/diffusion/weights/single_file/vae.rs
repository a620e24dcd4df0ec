//! The autoencoder in the names of the original code (CompVis `diffusionmodules.model`: `Encoder`, `Decoder`), or in
//! diffusers', as separate autoencoder files come.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Component, Keys};
use crate::diffusion::weights::changes::{merge, no_autoencoder};
use crate::diffusion::weights::names::{NameMap, Row, View};
use crate::diffusion::weights::tensors::Shard;
use crate::diffusion::weights::{Checkpoint, Error, disk};

/// Where it may stand in a checkpoint; a file of its own has no prefix.
pub(super) const MODULES: [&str; 2] = ["first_stage_model", "vae"];

const RESNET: &[Row] = &[("conv_shortcut", "nin_shortcut", View::Whole)];
const ATTENTION: &[Row] = &[
    ("group_norm", "norm", View::Whole),
    ("to_q", "q", View::Matrix),
    ("to_k", "k", View::Matrix),
    ("to_v", "v", View::Matrix),
    ("to_out.0", "proj_out", View::Matrix),
];

/// The module it stands under (empty: the whole file); `None` where there is no autoencoder.
pub(super) fn module(keys: &Keys<'_>) -> Option<&'static str> {
    let there = |module: &&str| keys.has(&within(module, "decoder.conv_in.weight"));
    MODULES.into_iter().find(there).or_else(|| there(&"").then_some(""))
}

/// Reads the structure below `module`.
///
/// # Errors
/// Names that are not of this network, as a sentence.
pub(super) fn read(keys: &Keys<'_>, module: &str) -> Result<Component, String> {
    let original = keys.any(&within(module, "decoder.up."));
    let (down, up, blocks) = if original { ("down", "up", "block") } else { ("down_blocks", "up_blocks", "resnets") };
    let levels = keys.count(&within(module, &format!("encoder.{down}")))?;
    if levels == 0 || keys.count(&within(module, &format!("decoder.{up}")))? != levels {
        return Err(format!("`{}` has {levels} levels, its decoder has others", within(module, "encoder")));
    }
    let level = |k: usize| within(module, &format!("encoder.{down}.{k}.{blocks}"));
    let mut channels = Vec::new();
    for k in 0..levels {
        channels.push(keys.side(&format!("{}.0.conv1.weight", level(k)), 0)?);
    }
    let layers = keys.count(&level(0))?;
    let attends =
        keys.any(&within(module, if original { "decoder.mid.attn_1." } else { "decoder.mid_block.attentions." }));
    let mut names = NameMap::default();
    names.module("", module, &[]);
    if original {
        original_names(&mut names, module, levels, layers);
    }
    let config = config(keys, module, &channels, layers).map(|mut config| {
        config["mid_block_add_attention"] = attends.into();
        config
    });
    Ok(Component { module: module.to_owned(), config, names })
}

fn original_names(names: &mut NameMap, module: &str, levels: usize, layers: usize) {
    let mut name = |asked: String, stored: String, rows| names.module(asked, within(module, &stored), rows);
    for side in ["encoder", "decoder"] {
        name(format!("{side}.conv_norm_out"), format!("{side}.norm_out"), &[]);
        name(format!("{side}.mid_block.resnets.0"), format!("{side}.mid.block_1"), RESNET);
        name(format!("{side}.mid_block.attentions.0"), format!("{side}.mid.attn_1"), ATTENTION);
        name(format!("{side}.mid_block.resnets.1"), format!("{side}.mid.block_2"), RESNET);
    }
    for k in 0..levels {
        // The original numbers its up path by resolution, from the largest; diffusers in the order of evaluation.
        let (down, up, risen) = (format!("encoder.down.{k}"), format!("decoder.up.{k}"), levels - 1 - k);
        for j in 0..layers {
            name(format!("encoder.down_blocks.{k}.resnets.{j}"), format!("{down}.block.{j}"), RESNET);
        }
        for j in 0..=layers {
            name(format!("decoder.up_blocks.{risen}.resnets.{j}"), format!("{up}.block.{j}"), RESNET);
        }
        name(format!("encoder.down_blocks.{k}.downsamplers.0.conv"), format!("{down}.downsample.conv"), &[]);
        name(format!("decoder.up_blocks.{risen}.upsamplers.0.conv"), format!("{up}.upsample.conv"), &[]);
    }
}

/// The file of an autoencoder alone, or of a checkpoint whose autoencoder is wanted.
pub struct VaeFile {
    pub(in crate::diffusion::weights) path: PathBuf,
    pub(in crate::diffusion::weights) shard: Arc<Shard>,
    pub(in crate::diffusion::weights) config: Value,
    pub(in crate::diffusion::weights) names: NameMap,
}

impl VaeFile {
    /// Opens it for use with `base`, whose configuration tells what the file does not: the scale of latents, and how many
    /// groups norms have.
    ///
    /// # Errors
    /// A file that is no safetensors file, or has no autoencoder.
    pub(in crate::diffusion::weights) fn open(path: &Path, base: &Checkpoint) -> Result<Self, Error> {
        let shard = disk::shard(path)?;
        let keys = Keys::of(shard.header());
        let module = module(&keys).ok_or_else(|| no_autoencoder(path))?;
        let fault = |reason| Error::Malformed { file: path.display().to_string(), reason };
        let Component { config: told, names, .. } = read(&keys, module).map_err(fault)?;
        let mut config: Value = base.json("vae/config.json")?;
        // A structure that published autoencoders do not have is then the base's, or the loader tells where they differ.
        if let Ok(mut told) = told {
            let groups = config.get("norm_num_groups").cloned();
            told["norm_num_groups"] = groups.unwrap_or_else(|| 32.into());
            merge(&mut config, &told);
        }
        Ok(Self { path: path.to_owned(), shard: shard.clone(), config, names })
    }
}

/// As diffusers writes it, but for the scaling factor, which no shape tells. Norms have 32 groups in every published one.
fn config(keys: &Keys<'_>, module: &str, channels: &[usize], layers: usize) -> Result<Value, String> {
    if let Some(odd) = channels.iter().find(|channels| *channels % 32 != 0) {
        return Err(format!("{odd} channels do not make 32 groups, as norms of published autoencoders have"));
    }
    let has = |name: &str| keys.has(&within(module, name));
    let side = |name: &str, axis| keys.side(&within(module, name), axis);
    Ok(json!({
        "_class_name": "AutoencoderKL",
        "in_channels": side("encoder.conv_in.weight", 1)?,
        "out_channels": side("decoder.conv_out.weight", 0)?,
        "latent_channels": side("decoder.conv_in.weight", 1)?,
        "block_out_channels": channels,
        "layers_per_block": layers,
        "norm_num_groups": 32,
        "act_fn": "silu",
        "down_block_types": vec!["DownEncoderBlock2D"; channels.len()],
        "up_block_types": vec!["UpDecoderBlock2D"; channels.len()],
        "use_quant_conv": has("quant_conv.weight"),
        "use_post_quant_conv": has("post_quant_conv.weight"),
    }))
}

fn within(module: &str, rest: &str) -> String {
    if module.is_empty() { rest.to_owned() } else { format!("{module}.{rest}") }
}
