//! A ControlNet alone in one file, in the names of the original code (lllyasviel's `cldm.ControlNet`): the input and middle
//! blocks of the UNet, the convolutions that begin as zeros, and those of the picture.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::unet::{Level, RESNET, config, down_path};
use super::{Keys, configs};
use crate::diffusion::weights::header::PICKLED;
use crate::diffusion::weights::names::NameMap;
use crate::diffusion::weights::tensors::Shard;
use crate::diffusion::weights::{Checkpoint, Error, disk, variants};

/// Where it may stand in the file; others have no prefix.
const MODULE: &str = "control_model";

/// The file of a ControlNet.
pub struct ControlNetFile {
    pub(in crate::diffusion::weights) path: PathBuf,
    pub(in crate::diffusion::weights) shard: Arc<Shard>,
    pub(in crate::diffusion::weights) config: Value,
    pub(in crate::diffusion::weights) names: NameMap,
}

impl Checkpoint {
    /// Opens a ControlNet in one file: a checkpoint with `config.json` and weights, and nothing besides.
    ///
    /// # Errors
    /// A file that is no safetensors file, or no ControlNet in the names of the original code.
    pub fn controlnet_file(path: &Path) -> Result<Self, Error> {
        let file = path.display().to_string();
        if variants::is_pickle(&file) {
            return Err(Error::Malformed { file, reason: PICKLED.to_owned() });
        }
        let shard = disk::shard(path)?;
        let (config, names) = read(&Keys::of(shard.header())).map_err(|reason| Error::Malformed { file, reason })?;
        Ok(Self::ControlNetFile(Arc::new(ControlNetFile { path: path.to_owned(), shard, config, names })))
    }
}

/// Its configuration as diffusers writes it, and where its tensors are.
///
/// # Errors
/// Names that are not of this network, as a sentence.
fn read(keys: &Keys<'_>) -> Result<(Value, NameMap), String> {
    let prefix = if keys.any(&format!("{MODULE}.")) { format!("{MODULE}.") } else { String::new() };
    let stored = |rest: &str| format!("{prefix}{rest}");
    if !keys.has(&stored("input_hint_block.0.weight")) {
        let seems = configs::what_it_seems(keys).map(|what| format!(": it seems to be {what}"));
        let reason = "it is no ControlNet in the names of the original code, it has no `input_hint_block.0.weight`";
        return Err(format!("{reason}{}", seems.unwrap_or_default()));
    }
    let mut names = NameMap::default();
    for (asked, there) in [
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("add_embedding.linear_1", "label_emb.0.0"),
        ("add_embedding.linear_2", "label_emb.0.2"),
        ("conv_in", "input_blocks.0.0"),
        ("mid_block.attentions.0", "middle_block.1"),
        ("controlnet_mid_block", "middle_block_out.0"),
    ] {
        names.module(asked, stored(there), &[]);
    }
    names.module("mid_block.resnets.0", stored("middle_block.0"), RESNET);
    names.module("mid_block.resnets.1", stored("middle_block.2"), RESNET);
    for k in 0..keys.count(&stored("zero_convs"))? {
        names.module(format!("controlnet_down_blocks.{k}"), stored(&format!("zero_convs.{k}.0")), &[]);
    }
    let embedding = embedding(keys, &mut names, &stored("input_hint_block"))?;
    let down = down_path(keys, &mut names, &prefix)?;
    // The half that goes up, which it has not, is one that fits.
    let up: Vec<Level> = down.iter().rev().map(|level| Level { layers: level.layers + 1, ..level.clone() }).collect();
    let middle = stored("middle_block.1");
    let linear = keys.shape(&format!("{middle}.proj_in.weight")).is_some_and(|shape| shape.len() == 2);
    let depth = keys.count(&format!("{middle}.transformer_blocks"))?;
    let mut config = config(&down, &up, depth, linear)?;
    config["_class_name"] = "ControlNetModel".into();
    config["in_channels"] = keys.side(&stored("input_blocks.0.0.weight"), 1)?.into();
    config["cross_attention_dim"] = keys.side(&format!("{middle}.transformer_blocks.0.attn2.to_k.weight"), 1)?.into();
    config["conditioning_channels"] = keys.side(&stored("input_hint_block.0.weight"), 1)?.into();
    config["conditioning_embedding_out_channels"] = embedding.into();
    if keys.has(&stored("label_emb.0.0.weight")) {
        config["addition_embed_type"] = "text_time".into();
        // As in the UNet of the same code.
        config["addition_time_embed_dim"] = 256.into();
        config["projection_class_embeddings_input_dim"] = keys.side(&stored("label_emb.0.0.weight"), 1)?.into();
    }
    Ok((config, names))
}

/// The channels of the picture's convolutions: every second module is one, in turn of stride 1 and 2; the last leads to the
/// latents' width.
fn embedding(keys: &Keys<'_>, names: &mut NameMap, module: &str) -> Result<Vec<usize>, String> {
    let at = |conv: usize| format!("{module}.{}", 2 * conv);
    let convs = (0..).take_while(|conv| keys.has(&format!("{}.weight", at(*conv)))).count();
    if convs < 2 || convs % 2 == 1 {
        return Err(format!("`{module}` has {convs} convolutions; an even number is known, from 2"));
    }
    names.module("controlnet_cond_embedding.conv_in", at(0), &[]);
    for conv in 1..convs - 1 {
        names.module(format!("controlnet_cond_embedding.blocks.{}", conv - 1), at(conv), &[]);
    }
    names.module("controlnet_cond_embedding.conv_out", at(convs - 1), &[]);
    (0..convs - 1).step_by(2).map(|conv| keys.side(&format!("{}.weight", at(conv)), 0)).collect()
}
