//! Down, mid and up blocks.

use candle_core::{Result, Tensor};

use super::config::{Level, Mid, UNet2DConditionConfig};
use super::resnet::{ResnetBlock, ResnetOptions};
use super::transformer::Transformer2D;
use crate::diffusion::models;
use crate::diffusion::models::adapters::{LayerMut, Visit};
use crate::diffusion::models::layers::{Conv2d, upsample_nearest};
use crate::diffusion::weights::{self, Weights};

/// What every block reads beside its input.
pub(super) struct Told<'a> {
    /// (N, time_width), after its activation.
    pub time: &'a Tensor,
    /// (N, T, context).
    pub context: &'a Tensor,
}

/// Residual blocks, each followed by a transformer where the level attends.
#[derive(Clone, Debug)]
struct Layers {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<Transformer2D>,
}

impl Layers {
    fn each_layer(&mut self, visit: Visit<'_>) -> models::Result<()> {
        self.resnets.iter_mut().try_for_each(|resnet| resnet.each_layer(visit))?;
        self.attentions.iter_mut().try_for_each(|attention| attention.each_layer(visit))
    }

    fn step(&self, k: usize, x: &Tensor, told: &Told<'_>) -> Result<Tensor> {
        let x = self.resnets[k].forward(x, Some(told.time))?;
        match self.attentions.get(k) {
            Some(attention) => attention.forward(&x, told.context),
            None => Ok(x),
        }
    }
}

/// One after each residual block, of so many layers each; none where the block does not attend.
fn transformers(
    layers: Option<&[usize]>,
    level: &Level,
    config: &UNet2DConditionConfig,
    w: &Weights,
) -> weights::Result<Vec<Transformer2D>> {
    let load = |(k, layers): (usize, &usize)| {
        Transformer2D::load((level, *layers), config.norm_groups, config.linear_projection, &w.pp("attentions").pp(k))
    };
    layers.unwrap_or_default().iter().enumerate().map(load).collect()
}

#[derive(Clone, Debug)]
pub(super) struct DownBlock {
    layers: Layers,
    downsample: Option<Conv2d>,
}

impl DownBlock {
    /// Block `k`, whose input has `inputs` channels.
    pub(super) fn load(
        k: usize,
        inputs: usize,
        config: &UNet2DConditionConfig,
        options: ResnetOptions,
        w: &Weights,
    ) -> weights::Result<Self> {
        let level = &config.levels[k];
        let c = level.channels;
        let resnet = |j: usize| ResnetBlock::load(if j == 0 { inputs } else { c }, c, options, &w.pp("resnets").pp(j));
        let is_last = k + 1 == config.levels.len();
        let layers = Layers {
            resnets: (0..level.layers).map(resnet).collect::<weights::Result<_>>()?,
            attentions: transformers(level.down.as_deref(), level, config, w)?,
        };
        let downsample = || Conv2d::load_strided(c, c, 3, (2, 1), &w.pp("downsamplers.0.conv"));
        Ok(Self { layers, downsample: (!is_last).then(downsample).transpose()? })
    }

    /// Shows each layer that adapters may change.
    pub(super) fn each_layer(&mut self, visit: Visit<'_>) -> models::Result<()> {
        self.layers.each_layer(visit)?;
        self.downsample.iter_mut().try_for_each(|conv| visit(LayerMut::Conv2d(conv)))
    }

    /// Pushes what the up path will take onto `skips`.
    pub(super) fn forward(&self, x: Tensor, told: &Told<'_>, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        let mut x = x;
        for k in 0..self.layers.resnets.len() {
            x = self.layers.step(k, &x, told)?;
            skips.push(x.clone());
        }
        if let Some(conv) = &self.downsample {
            x = conv.forward(&x)?;
            skips.push(x.clone());
        }
        Ok(x)
    }
}

#[derive(Clone, Debug)]
pub(super) struct MidBlock {
    first: ResnetBlock,
    /// A transformer and the second residual block; the plain kind has neither.
    rest: Option<(Transformer2D, ResnetBlock)>,
}

impl MidBlock {
    /// `None` where the configuration has none.
    pub(super) fn load(
        config: &UNet2DConditionConfig,
        options: ResnetOptions,
        w: &Weights,
    ) -> weights::Result<Option<Self>> {
        let level = config.levels.last().expect("at least one level. This is a bug in unets.");
        let resnet = |k: usize| ResnetBlock::load(level.channels, level.channels, options, &w.pp("resnets").pp(k));
        let rest = match config.mid {
            Mid::None => return Ok(None),
            Mid::Plain => None,
            Mid::Attends(layers) => {
                let (groups, linear) = (config.norm_groups, config.linear_projection);
                Some((Transformer2D::load((level, layers), groups, linear, &w.pp("attentions.0"))?, resnet(1)?))
            }
        };
        Ok(Some(Self { first: resnet(0)?, rest }))
    }

    /// Shows each layer that adapters may change.
    pub(super) fn each_layer(&mut self, visit: Visit<'_>) -> models::Result<()> {
        self.first.each_layer(visit)?;
        self.rest.iter_mut().try_for_each(|(attention, second)| {
            attention.each_layer(visit)?;
            second.each_layer(visit)
        })
    }

    pub(super) fn forward(&self, x: &Tensor, told: &Told<'_>) -> Result<Tensor> {
        let x = self.first.forward(x, Some(told.time))?;
        match &self.rest {
            Some((attention, second)) => second.forward(&attention.forward(&x, told.context)?, Some(told.time)),
            None => Ok(x),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct UpBlock {
    layers: Layers,
    upsample: Option<Conv2d>,
}

impl UpBlock {
    /// The up block at the resolution of level `k`; `inputs` is the channel count coming from below, `skips` those of
    /// the down path still on the stack, which it shortens by what it takes.
    pub(super) fn load(
        k: usize,
        inputs: usize,
        (config, options): (&UNet2DConditionConfig, ResnetOptions),
        skips: &mut Vec<usize>,
        w: &Weights,
    ) -> weights::Result<Self> {
        let level = &config.levels[k];
        let (c, count) = (level.channels, level.layers + 1);
        let mut resnets = Vec::with_capacity(count);
        for j in 0..count {
            let skip = skips.pop().expect("the down path pushed as many. This is a bug in unets.");
            let from = if j == 0 { inputs } else { c };
            resnets.push(ResnetBlock::load(from + skip, c, options, &w.pp("resnets").pp(j))?);
        }
        let attentions = transformers(level.up.as_deref(), level, config, w)?;
        let upsample = (k > 0).then(|| Conv2d::load(c, c, 3, &w.pp("upsamplers.0.conv"))).transpose()?;
        Ok(Self { layers: Layers { resnets, attentions }, upsample })
    }

    /// Shows each layer that adapters may change.
    pub(super) fn each_layer(&mut self, visit: Visit<'_>) -> models::Result<()> {
        self.layers.each_layer(visit)?;
        self.upsample.iter_mut().try_for_each(|conv| visit(LayerMut::Conv2d(conv)))
    }

    pub(super) fn forward(&self, x: Tensor, told: &Told<'_>, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        let mut x = x;
        for k in 0..self.layers.resnets.len() {
            let skip = skips.pop().expect("the down path pushed as many. This is a bug in unets.");
            x = self.layers.step(k, &Tensor::cat(&[&x, &skip], 1)?, told)?;
        }
        match (&self.upsample, skips.last()) {
            // To the size of the map it will meet: odd sizes were rounded up on the way down.
            (Some(conv), Some(skip)) => conv.forward(&upsample_nearest(&x, skip.dim(2)?, skip.dim(3)?)?),
            _ => Ok(x),
        }
    }
}
