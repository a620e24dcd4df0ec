//! Classifier-free guidance: how a sample's two rows become one output, and which of its steps have two.

use candle_core::{DType, Tensor};

use crate::diffusion::pipelines::Result;
use crate::domain::GenerationRequest;

/// One request's guidance.
#[derive(Clone, Debug)]
pub(super) struct Guidance {
    scale: f64,
    rescale: f64,
    /// Steps with an unconditional row.
    steps: std::ops::Range<u32>,
}

impl Guidance {
    /// `left_out`: steps of the plan before its first.
    pub(super) fn of(request: &GenerationRequest, left_out: u32) -> Self {
        let guided = if request.is_guided() { request.guided_steps() } else { 0..0 };
        // What `strength` leaves out is not counted.
        let left_out = left_out.saturating_sub(request.skipped_steps());
        let steps = guided.start.saturating_sub(left_out)..guided.end.saturating_sub(left_out);
        Self { scale: request.guidance_scale(), rescale: request.guidance_rescale(), steps }
    }

    /// Rows that an evaluation of this step takes.
    pub(super) fn rows(&self, step: u32) -> u32 {
        1 + u32::from(self.steps.contains(&step))
    }

    /// The most rows that an evaluation of this or a later step takes.
    pub(super) fn most_rows_from(&self, step: u32) -> u32 {
        1 + u32::from(!self.steps.is_empty() && step < self.steps.end)
    }

    /// The guided output; all (1, C, h, w) f32.
    pub(super) fn combine(&self, cond: &Tensor, uncond: &Tensor) -> Result<Tensor> {
        let guided = (uncond + ((cond - uncond)? * self.scale)?)?;
        if self.rescale == 0.0 { Ok(guided) } else { self.rescaled(&guided, cond) }
    }

    /// Guidance widens the output's spread; this brings it back to the conditional one's, in part (Lin et al. 2023,
    /// "Common diffusion noise schedules and sample steps are flawed", equations 14 to 16; diffusers `rescale_noise_cfg`).
    fn rescaled(&self, guided: &Tensor, cond: &Tensor) -> Result<Tensor> {
        let (wide, wanted) = (standard_deviation(guided)?, standard_deviation(cond)?);
        let factor = self.rescale * (wanted / wide) + (1.0 - self.rescale);
        Ok((guided * factor)?)
    }
}

/// Of all values, with Bessel's correction as `torch.std` has it.
fn standard_deviation(x: &Tensor) -> Result<f64> {
    let x = x.flatten_all()?.to_dtype(DType::F64)?;
    let mean = x.mean_all()?.to_scalar::<f64>()?;
    let squares = (x.clone() - mean)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
    Ok((squares / (x.elem_count() as f64 - 1.0)).sqrt())
}
