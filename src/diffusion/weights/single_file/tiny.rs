//! The decoder of a tiny autoencoder in one file: in the numbers of the original code (TAESD's `taesd_decoder.safetensors`), or
//! in diffusers' names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::Keys;
use crate::diffusion::weights::names::NameMap;
use crate::diffusion::weights::tensors::Shard;
use crate::diffusion::weights::variants::is_pickle;
use crate::diffusion::weights::{Error, disk, header};

/// Such a file.
pub struct TinyFile {
    pub(in crate::diffusion::weights) path: PathBuf,
    pub(in crate::diffusion::weights) shard: Arc<Shard>,
    pub(in crate::diffusion::weights) config: Value,
    pub(in crate::diffusion::weights) names: NameMap,
}

impl TinyFile {
    /// Opens it; its structure is read from names and shapes.
    ///
    /// # Errors
    /// A file that is no safetensors file, or has no such decoder.
    pub(in crate::diffusion::weights) fn open(path: &Path) -> Result<Self, Error> {
        let file = path.display().to_string();
        if is_pickle(&file) {
            return Err(Error::Malformed { file, reason: header::PICKLED.to_owned() });
        }
        let shard = disk::shard(path)?;
        let read = read(&Keys::of(shard.header()));
        let (config, names) = read.map_err(|reason| Error::Malformed { file, reason })?;
        Ok(Self { path: path.to_owned(), shard, config, names })
    }
}

/// The original begins with a layer without weights, so that its numbers are one higher than diffusers'.
fn read(keys: &Keys<'_>) -> Result<(Value, NameMap), String> {
    let stored = |layer: usize| match keys.has("decoder.layers.0.weight") {
        true => format!("decoder.layers.{layer}"),
        false => format!("{}", layer + 1),
    };
    let has = |layer: usize, tensor: &str| keys.has(&format!("{}.{tensor}", stored(layer)));
    if !has(0, "weight") || !has(2, "conv.0.weight") {
        return Err("it has no tiny autoencoder's decoder (`decoder.layers.0.weight` or `1.weight`)".to_owned());
    }
    // After the first convolution and its activation: blocks, then an enlargement without weights and a convolution.
    let (mut stages, mut layer) = (vec![0], 2);
    loop {
        let last = stages.len() - 1;
        if has(layer, "conv.0.weight") {
            stages[last] += 1;
            layer += 1;
        } else if has(layer, "weight") {
            break;
        } else if has(layer + 1, "weight") {
            stages.push(0);
            layer += 2;
        } else {
            return Err(format!("its decoder ends at `{}` without a last convolution", stored(layer)));
        }
    }
    let first = format!("{}.weight", stored(0));
    let (width, latents) = (keys.side(&first, 0)?, keys.side(&first, 1)?);
    let config = json!({
        "_class_name": "AutoencoderTiny",
        "out_channels": keys.side(&format!("{}.weight", stored(layer)), 0)?,
        "latent_channels": latents,
        "num_decoder_blocks": stages,
        "decoder_block_out_channels": vec![width; stages.len()],
    });
    let mut names = NameMap::default();
    (0..=layer).for_each(|layer| names.module(format!("decoder.layers.{layer}"), stored(layer), &[]));
    Ok((config, names))
}
