//! Residual block with the timestep added between its convolutions (diffusers `ResnetBlock2D`).

use candle_core::{Result, Tensor};

use crate::diffusion::models;
use crate::diffusion::models::adapters::{LayerMut, Visit};
use crate::diffusion::models::layers::{Bands, Conv2d, GroupNorm, Linear, convolved_rows, with_offsets};
use crate::diffusion::weights::{self, Weights};

#[derive(Clone, Debug)]
pub(in crate::diffusion::models) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

/// What blocks of one network share.
#[derive(Clone, Copy, Debug)]
pub(in crate::diffusion::models) struct ResnetOptions {
    pub groups: usize,
    pub eps: f64,
    /// Width of the time embedding; `None` in an autoencoder.
    pub time_width: Option<usize>,
}

impl ResnetBlock {
    pub(in crate::diffusion::models) fn load(
        inputs: usize,
        outputs: usize,
        options: ResnetOptions,
        w: &Weights,
    ) -> weights::Result<Self> {
        let ResnetOptions { groups, eps, time_width } = options;
        Ok(Self {
            norm1: GroupNorm::load(groups, inputs, eps, &w.pp("norm1"))?,
            conv1: Conv2d::load(inputs, outputs, 3, &w.pp("conv1"))?,
            time_emb_proj: time_width.map(|width| Linear::load(width, outputs, &w.pp("time_emb_proj"))).transpose()?,
            norm2: GroupNorm::load(groups, outputs, eps, &w.pp("norm2"))?,
            conv2: Conv2d::load(outputs, outputs, 3, &w.pp("conv2"))?,
            conv_shortcut: (inputs != outputs)
                .then(|| Conv2d::load(inputs, outputs, 1, &w.pp("conv_shortcut")))
                .transpose()?,
        })
    }

    /// Shows each layer that adapters may change.
    pub(in crate::diffusion::models) fn each_layer(&mut self, visit: Visit<'_>) -> models::Result<()> {
        visit(LayerMut::Conv2d(&mut self.conv1))?;
        self.time_emb_proj.iter_mut().try_for_each(|linear| visit(LayerMut::Linear(linear)))?;
        visit(LayerMut::Conv2d(&mut self.conv2))?;
        self.conv_shortcut.iter_mut().try_for_each(|conv| visit(LayerMut::Conv2d(conv)))
    }

    /// x: (N, inputs, H, W), time: (N, time_width) after its activation -> (N, outputs, H, W).
    pub(in crate::diffusion::models) fn forward(&self, x: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        let mut h = self.conv1.forward(&self.norm1.forward_silu(x)?)?;
        if let (Some(proj), Some(time)) = (&self.time_emb_proj, time) {
            h = with_offsets(h, &proj.forward(time)?)?;
        }
        let short = self.conv_shortcut.as_ref().map(|conv| conv.forward(x)).transpose()?;
        self.conv2.forward_added(&self.norm2.forward_silu(&h)?, short.as_ref().unwrap_or(x))
    }

    /// The same without a timestep, bands of about `at_once` numbers at a time.
    pub(in crate::diffusion::models) fn forward_bands(&self, mut x: Bands, at_once: usize) -> Result<Bands> {
        let statistics = self.norm1.statistics(&x, at_once)?;
        let height = x.height();
        let (mut h, mut short) = (Bands::default(), Bands::default());
        for rows in x.ranges(at_once) {
            let normed = |rows| self.norm1.forward_silu_rows(&x.rows(rows)?, &statistics);
            h.push(convolved_rows(&self.conv1, rows.clone(), height, normed)?)?;
            if let Some(conv) = &self.conv_shortcut {
                short.push(conv.forward(&x.rows(rows.clone())?)?)?;
                x.let_go(rows.end - 1);
            }
        }
        if self.conv_shortcut.is_none() {
            short = x;
        }
        let statistics = self.norm2.statistics(&h, at_once)?;
        let mut out = Bands::default();
        for rows in h.ranges(at_once) {
            let normed = |rows| self.norm2.forward_silu_rows(&h.rows(rows)?, &statistics);
            let changed = convolved_rows(&self.conv2, rows.clone(), height, normed)?;
            out.push((short.rows(rows.clone())? + changed)?)?;
            h.let_go(rows.end - 1);
            short.let_go(rows.end);
        }
        Ok(out)
    }
}
