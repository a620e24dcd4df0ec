//! The U-Net of Stable Diffusion (diffusers `UNet2DConditionModel`); its rows may differ in all they are told.

use candle_core::{DType, Tensor};

use super::blocks::{DownBlock, MidBlock, Told, UpBlock};
use super::config::{Level, UNet2DConditionConfig};
use super::embedding::TimeEmbedding;
use super::resnet::ResnetOptions;
use crate::diffusion::kernels::among_workers;
use crate::diffusion::models::Result;
use crate::diffusion::models::adapters::{Adaptable, LayerMut, Visit};
use crate::diffusion::models::layers::{Conv2d, GroupNorm};
use crate::diffusion::weights::{NameMap, OriginalLevel, Weights, original_unet_names};

/// Latents, timesteps and text to the network's prediction. It computes in the dtype of its weights; what it is told and what it
/// says is f32 all the same.
#[derive(Clone, Debug)]
pub struct UNet2DConditionModel {
    config: UNet2DConditionConfig,
    time: TimeEmbedding,
    conv_in: Conv2d,
    down: Vec<DownBlock>,
    mid: Option<MidBlock>,
    up: Vec<UpBlock>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
    dtype: DType,
}

/// The rows of one evaluation.
#[derive(Clone, Copy, Debug)]
pub struct UNetInputs<'a> {
    /// (N, in_channels, h, w) f32.
    pub latents: &'a Tensor,
    /// N of them, in the units of the training schedule.
    pub timesteps: &'a [f64],
    /// (N, T, context width) f32.
    pub hidden_states: &'a Tensor,
    /// (N, pooled width) f32 and N lists of sizes (`time_ids`), where the configuration has
    /// [`UNet2DConditionConfig::added`]; else nobody looks.
    pub added: Option<(&'a Tensor, &'a [&'a [f64]])>,
    /// N of them, where the configuration [`UNet2DConditionConfig::is_told_guidance`]; else nobody looks.
    pub guidance_scales: Option<&'a [f64]>,
    /// What is added to the maps of some rows.
    pub residuals: Option<&'a UNetResiduals>,
}

/// What ControlNets add to some rows of an evaluation (diffusers `down_block_additional_residuals` and
/// `mid_block_additional_residual`); the other rows stay as they are, to the bit.
#[derive(Clone, Debug)]
pub struct UNetResiduals {
    /// (K,) u32: which rows, each once.
    pub rows: Tensor,
    /// (K, C, h', w') f32, one for each map that the down path hands to the up path, in its order.
    pub down: Vec<Tensor>,
    /// (K, C, h', w') f32, for what comes from the middle.
    pub mid: Tensor,
}

impl UNet2DConditionModel {
    /// Reads every tensor the configuration names.
    pub fn load(config: UNet2DConditionConfig, w: &Weights) -> Result<Self> {
        let first = config.levels[0].channels;
        let options =
            ResnetOptions { groups: config.norm_groups, eps: config.norm_eps, time_width: Some(config.time_width) };
        let (mut down, mut inputs) = (Vec::new(), first);
        for (k, level) in config.levels.iter().enumerate() {
            down.push(DownBlock::load(k, inputs, &config, options, &w.pp("down_blocks").pp(k))?);
            inputs = level.channels;
        }
        let mid = MidBlock::load(&config, options, &w.pp("mid_block"))?;
        let (mut up, mut skips) = (Vec::new(), config.skip_channels());
        for (number, k) in (0..config.levels.len()).rev().enumerate() {
            let w = w.pp("up_blocks").pp(number);
            up.push(UpBlock::load(k, inputs, (&config, options), &mut skips, &w)?);
            inputs = config.levels[k].channels;
        }
        Ok(Self {
            time: TimeEmbedding::load(&config, w)?,
            conv_in: Conv2d::load(config.in_channels, first, 3, &w.pp("conv_in"))?,
            norm_out: GroupNorm::load(config.norm_groups, first, config.norm_eps, &w.pp("conv_norm_out"))?,
            conv_out: Conv2d::load(first, config.out_channels, 3, &w.pp("conv_out"))?,
            config,
            down,
            mid,
            up,
            dtype: w.dtype(),
        })
    }

    /// What it was built from.
    pub fn config(&self) -> &UNet2DConditionConfig {
        &self.config
    }

    /// What it holds its weights in and computes in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The network's prediction: (N, out_channels, h, w) f32.
    ///
    /// # Errors
    /// Inputs that the configuration asks for and that are not there.
    pub fn forward(&self, inputs: &UNetInputs<'_>) -> Result<Tensor> {
        among_workers(inputs.latents.device(), || self.evaluate(inputs))
    }

    fn evaluate(&self, inputs: &UNetInputs<'_>) -> Result<Tensor> {
        let time = self.time.forward(&self.config, inputs)?;
        let told = Told { time: &time, context: &inputs.hidden_states.to_dtype(self.dtype)? };
        let centred = self.config.center_input_sample.then(|| (inputs.latents * 2.0)? - 1.0).transpose()?;
        let mut x = self.conv_in.forward(&centred.as_ref().unwrap_or(inputs.latents).to_dtype(self.dtype)?)?;
        let mut skips = vec![x.clone()];
        for block in &self.down {
            x = block.forward(x, &told, &mut skips)?;
        }
        if let Some(mid) = &self.mid {
            x = mid.forward(&x, &told)?;
        }
        if let Some(UNetResiduals { rows, down, mid }) = inputs.residuals {
            for (skip, residual) in skips.iter_mut().zip(down) {
                *skip = skip.index_add(rows, &residual.to_dtype(self.dtype)?, 0)?;
            }
            x = x.index_add(rows, &mid.to_dtype(self.dtype)?, 0)?;
        }
        for block in &self.up {
            x = block.forward(x, &told, &mut skips)?;
        }
        Ok(self.conv_out.forward(&self.norm_out.forward_silu(&x)?)?.to_dtype(DType::F32)?)
    }
}

impl Adaptable for UNet2DConditionModel {
    fn each_layer(&mut self, visit: Visit<'_>) -> Result<()> {
        self.time.each_layer(visit)?;
        visit(LayerMut::Conv2d(&mut self.conv_in))?;
        self.down.iter_mut().try_for_each(|block| block.each_layer(visit))?;
        self.mid.iter_mut().try_for_each(|block| block.each_layer(visit))?;
        self.up.iter_mut().try_for_each(|block| block.each_layer(visit))?;
        visit(LayerMut::Conv2d(&mut self.conv_out))
    }

    fn original_names(&self) -> NameMap {
        let level = |level: &Level| OriginalLevel { layers: level.layers, attends_up: level.up.is_some() };
        original_unet_names(&self.config.levels.iter().map(level).collect::<Vec<_>>())
    }
}
