//! Which ControlNets a sample's evaluations have, and what those networks make of their pictures.

use crate::diffusion::batching::Branch;
use crate::diffusion::pipelines::{Control, Pipeline, Result};
use crate::domain::GenerationRequest;
use crate::images::ControlPicture;

/// The ControlNets of one pass by evaluation; nothing where it has none.
#[derive(Debug, Default)]
pub(super) struct Controls {
    cond: Vec<Vec<Control>>,
    /// Some are for the prompt alone.
    uncond: Vec<Vec<Control>>,
}

/// What a ControlNet's row costs, in rows of the network of which it is the half and the middle: by multiplications 0.33 in
/// Stable Diffusion 1.5 at 512x512, 0.44 in XL at 1024x1024.
const COST: f64 = 0.4;

impl Controls {
    /// Of pass number `pass`, which has so many evaluations. Networks are fetched, and what they make of the pictures is
    /// computed here, once for all steps and all pictures of the job.
    pub(super) fn of(
        pipeline: &dyn Pipeline,
        request: &GenerationRequest,
        (pictures, pass): (&[ControlPicture], usize),
        evaluations: usize,
    ) -> Result<Self> {
        let mut controls = Self::default();
        for (input, picture) in request.controls().iter().zip(pictures) {
            let active = input.evaluations(evaluations);
            let Some(picture) = picture.passes.get(pass).filter(|_| !active.is_empty()) else { continue };
            let net = pipeline.controlnet(input.model())?;
            let control = Control { embedded: net.embed(picture)?, scale: input.scale(), net };
            controls.cond.resize(evaluations, Vec::new());
            controls.uncond.resize(evaluations, Vec::new());
            for at in active {
                controls.cond[at].push(control.clone());
                if !control.net.is_for_prompt_alone() {
                    controls.uncond[at].push(control.clone());
                }
            }
        }
        Ok(controls)
    }

    /// Which networks are asked at each evaluation.
    pub(super) fn fingerprints(&self) -> impl Iterator<Item = Vec<&str>> {
        self.cond.iter().map(|controls| controls.iter().map(|control| control.net.fingerprint()).collect())
    }

    /// Those of one row of an evaluation.
    pub(super) fn at(&self, evaluation: usize, branch: Branch) -> &[Control] {
        let rows = match branch {
            Branch::Cond => &self.cond,
            Branch::Uncond => &self.uncond,
        };
        rows.get(evaluation).map_or(&[], Vec::as_slice)
    }
}

/// What a forward without ControlNets would have taken, of one of so many rows that took `seconds` with so many rows of
/// ControlNets. What forwards cost is learnt from that, since who has controls is not part of a batch's key.
pub(super) fn without_controls(seconds: f64, rows: u32, control_rows: u32) -> f64 {
    let rows = f64::from(rows);
    seconds * rows / (rows + COST * f64::from(control_rows))
}
