//! One evaluation's rows through the network.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::diffusion::pipelines::{Pipeline, Result, StepInputs, StepRow};

/// The network's output (1, C, h, w) for each row: its input (1, C, h, w), and what it is told.
///
/// Rows whose prompts are of one length share a forward. Those of another length have one of their own: words added to
/// make the lengths equal would be words that the network attends to.
pub(super) fn forward(pipeline: &dyn Pipeline, rows: &[(Tensor, StepRow<'_>)]) -> Result<Vec<Tensor>> {
    let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (at, (_, row)) in rows.iter().enumerate() {
        by_length.entry(row.conditioning.prompt.tokens()?).or_default().push(at);
    }
    let mut outputs = vec![None; rows.len()];
    for members in by_length.into_values() {
        let latents: Vec<&Tensor> = members.iter().map(|at| &rows[*at].0).collect();
        let told: Vec<StepRow<'_>> = members.iter().map(|at| rows[*at].1).collect();
        let output = pipeline.denoise(&StepInputs { latents: &Tensor::cat(&latents, 0)?, rows: &told })?;
        for (row, at) in members.into_iter().enumerate() {
            outputs[at] = Some(output.narrow(0, row, 1)?);
        }
    }
    Ok(outputs.into_iter().map(|output| output.expect("each row has a length. This is a bug in engine.")).collect())
}
