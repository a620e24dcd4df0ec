//! A sample to and from what is kept of a parked one.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::{SampleState, Told};
use crate::diffusion::batching::SampleMeta;
use crate::diffusion::engine::hand_over::HandOver;
use crate::diffusion::engine::parking::{ParkedSample, ParkedTensor};
use crate::diffusion::engine::start::Kept;
use crate::diffusion::noise::NoiseGenerator;
use crate::diffusion::pipelines;
use crate::domain::{GenerationRequest, JobId};

impl SampleState {
    /// All that does not follow from the request.
    pub(in crate::diffusion::engine) fn parked(&self) -> pipelines::Result<ParkedSample> {
        let one = |name: &str, tensor: &Option<Tensor>| tensor.as_ref().map(|tensor| (name.to_owned(), tensor.clone()));
        let first = [("latents".to_owned(), self.latents.clone())].into_iter();
        let own = [one("held", &self.held), one("drawn", &self.drawn), one("denoised", &self.denoised)];
        let memory = self.memory.iter().enumerate().map(|(at, tensor)| (remembered(at), tensor.clone()));
        let kept =
            self.kept.iter().flat_map(|kept| KEPT.map(str::to_owned).into_iter().zip(kept.parts().map(Tensor::clone)));
        let named = first.chain(own.into_iter().flatten()).chain(memory).chain(kept);
        let named = named.chain(one("extra_channels", &self.extra_channels));
        let tensors = named.map(|(name, tensor)| {
            let values = tensor.flatten_all()?.to_vec1::<f32>()?;
            Ok(ParkedTensor { name, shape: tensor.dims().to_vec(), values })
        });
        let tensors = tensors.collect::<pipelines::Result<_>>()?;
        let (image, pass, evaluated) = (self.image, self.pass, self.evaluated);
        Ok(ParkedSample { image, pass, evaluated, noise: self.noise.state(), tensors })
    }

    /// As it stood, given how it would begin: `meta` and what the first pass is told. `Err` says in words why it is none of
    /// this job's.
    pub(in crate::diffusion::engine) fn resumed(
        job: JobId,
        meta: SampleMeta,
        first: &Arc<Told>,
        request: &GenerationRequest,
        state: &ParkedSample,
    ) -> Result<Self, String> {
        let ParkedSample { image, pass, evaluated, .. } = *state;
        let (key, told, steps_before) = match (pass, &first.next) {
            (0, _) => (meta.key.clone(), first.clone(), 0),
            (1, Some(next)) => (next.key.clone(), next.told.clone(), first.own_steps()),
            _ => return Err(format!("image {image} has no pass {pass}")),
        };
        if evaluated >= told.plan.steps.len() {
            return Err(format!("image {image} has no evaluation {evaluated} in pass {pass}"));
        }
        let done = &told.plan.steps[..evaluated];
        let mut tensors = Tensors::of(state, told.pipeline.device());
        let (c, h, w) = key.latent_shape;
        let shape = [1, c, h, w];
        let latents = tensors.take("latents", &shape)?;
        let held = tensors.take_if(done.iter().any(|step| step.hold.is_some()), "held", &shape)?;
        let has_drawn = told.plan.keeps_noise() && done.iter().any(|step| step.draws_noise());
        let drawn = tensors.take_if(has_drawn, "drawn", &shape)?;
        let denoised = tensors.take_if(evaluated > 0, "denoised", &shape)?;
        let in_memory = done.iter().filter(|step| step.remember.is_some()).count().min(told.plan.memory_len());
        let memory = (0..in_memory).map(|at| tensors.take(&remembered(at), &shape)).collect::<Result<_, _>>()?;
        let kept = if first.keeps_in(pass) {
            let [mask, latents, noise] = KEPT;
            let mask = tensors.take(mask, &[1, 1, h, w])?;
            Some(Kept::of(mask, tensors.take(latents, &shape)?, tensors.take(noise, &shape)?))
        } else {
            None
        };
        let is_shown = pass == 0 && told.pipeline.info().inpainting;
        let extra_channels = tensors.take_if(is_shown, "extra_channels", &[1, 1 + c, h, w])?;
        tensors.end()?;
        let noise = first.noise_of(request, state, c * h * w)?;
        let steps_taken = done.iter().filter(|step| step.ends_step).count() as u32;
        let meta = SampleMeta {
            key,
            left: (told.evaluations() - evaluated) as u32,
            rows: told.guidance.most_rows_from(steps_taken),
            rows_now: told.guidance.rows(steps_taken),
            ..meta
        };
        Ok(Self {
            job,
            image,
            meta,
            told,
            pass,
            evaluated,
            steps_taken,
            steps_before,
            latents,
            held,
            memory,
            drawn,
            denoised,
            kept,
            extra_channels,
            noise,
        })
    }
}

impl Told {
    /// Whether a sample of this job, told this in its first pass, puts a part of its picture back in that pass.
    fn keeps_in(&self, pass: usize) -> bool {
        let is_masked = self.canvas.as_ref().is_some_and(|canvas| canvas.mask.is_some());
        let is_kept = is_masked && !self.pipeline.info().inpainting;
        let goes_on = self.next.as_ref().is_some_and(|next| matches!(next.hand_over, HandOver::AsTheyAre));
        is_kept && (pass == 0 || goes_on)
    }

    /// A parked sample's generator. `values` are those of one draw in its pass.
    fn noise_of(
        &self,
        request: &GenerationRequest,
        state: &ParkedSample,
        values: usize,
    ) -> Result<NoiseGenerator, String> {
        let request = match &self.next {
            Some(next) if state.pass == 1 && matches!(next.hand_over, HandOver::Enlarged { .. }) => &next.request,
            _ => request,
        };
        // One draw an evaluation and a few at the beginning, of at most two words a value and a block of them.
        let most = (self.evaluations() as u64 + 8) * (2 * values as u64 + 32);
        NoiseGenerator::resume(state.noise, (request.noise(), request.image_seed(state.image)), most)
            .ok_or_else(|| format!("the noise of image {} is none of its seed", state.image))
    }
}

/// What is put back: names of [`Kept::parts`].
const KEPT: [&str; 3] = ["kept.mask", "kept.latents", "kept.noise"];

fn remembered(at: usize) -> String {
    format!("memory.{at}")
}

/// A state's tensors, taken one by one in the order in which they were written.
struct Tensors<'a> {
    image: u32,
    left: std::slice::Iter<'a, ParkedTensor>,
    device: &'a Device,
}

impl<'a> Tensors<'a> {
    fn of(state: &'a ParkedSample, device: &'a Device) -> Self {
        Self { image: state.image, left: state.tensors.iter(), device }
    }

    fn take(&mut self, name: &str, shape: &[usize; 4]) -> Result<Tensor, String> {
        let wanted = |found: &str| format!("image {} has {found} where `{name}` of {shape:?} belongs", self.image);
        let Some(tensor) = self.left.next() else { return Err(wanted("nothing")) };
        if tensor.name != name || tensor.shape != shape {
            return Err(wanted(&format!("`{:.64}` of {:?}", tensor.name, tensor.shape)));
        }
        Tensor::from_slice(&tensor.values, shape, self.device).map_err(|error| error.to_string())
    }

    fn take_if(&mut self, is_there: bool, name: &str, shape: &[usize; 4]) -> Result<Option<Tensor>, String> {
        is_there.then(|| self.take(name, shape)).transpose()
    }

    fn end(mut self) -> Result<(), String> {
        match self.left.next() {
            None => Ok(()),
            Some(tensor) => Err(format!("image {} has `{:.64}` besides", self.image, tensor.name)),
        }
    }
}
