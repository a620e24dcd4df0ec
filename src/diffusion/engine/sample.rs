//! One picture in progress: all that a step reads and writes.

mod parking;

use std::collections::VecDeque;
use std::sync::Arc;

use candle_core::Tensor;

use super::controls::Controls;
use super::guidance::Guidance;
use super::hand_over::HandOver;
use super::start::{Begun, Kept, Start};
use crate::diffusion::batching::{BatchKey, Branch, SampleMeta};
use crate::diffusion::noise::NoiseGenerator;
use crate::diffusion::pipelines::{Conditioning, Pipeline, Result, StepRow};
use crate::diffusion::samplers::{Mix, PlanStep, SamplingPlan};
use crate::domain::{GenerationRequest, JobId};
use crate::images::Canvas;

/// What a job's samples share in one pass.
pub(super) struct Told {
    /// With the job's LoRAs.
    pub pipeline: Arc<dyn Pipeline>,
    pub plan: SamplingPlan,
    pub guidance: Guidance,
    pub cond: Conditioning,
    /// Only when guided.
    pub uncond: Option<Conditioning>,
    pub controls: Controls,
    /// What the request's pictures were put on.
    pub canvas: Option<Arc<Canvas>>,
    /// The pass that follows, where one does.
    pub next: Option<NextPass>,
}

/// What samples are told when a pass is done and another goes on.
#[derive(Clone)]
pub(super) struct NextPass {
    pub key: Arc<BatchKey>,
    pub told: Arc<Told>,
    pub hand_over: HandOver,
    /// The pass as a request of its own.
    pub request: Arc<GenerationRequest>,
}

impl Told {
    /// What clients should know of the prompts, each said once.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> = Vec::new();
        let own = [Some(&self.cond), self.uncond.as_ref()].into_iter().flatten().flat_map(|side| &side.prompt.warnings);
        let later = self.next.as_ref().map(|next| next.told.warnings()).unwrap_or_default();
        for warning in own.cloned().chain(later) {
            if !warnings.contains(&warning) {
                warnings.push(warning);
            }
        }
        warnings
    }

    /// Model evaluations, those of the next pass too.
    pub(super) fn evaluations(&self) -> usize {
        self.plan.steps.len() + self.next.as_ref().map_or(0, |next| next.told.evaluations())
    }

    /// Steps that people count, of this pass.
    pub(super) fn own_steps(&self) -> u32 {
        self.plan.steps.iter().filter(|step| step.ends_step).count() as u32
    }

    /// The same, those of the next pass too.
    pub(super) fn steps(&self) -> u32 {
        self.own_steps() + self.next.as_ref().map_or(0, |next| next.told.steps())
    }
}

pub(super) struct SampleState {
    pub job: JobId,
    pub image: u32,
    pub meta: SampleMeta,
    pub told: Arc<Told>,
    /// 0, or 1 when another was before.
    pass: usize,
    /// Model evaluations made in this pass.
    evaluated: usize,
    /// In this pass, and in those before.
    steps_taken: u32,
    steps_before: u32,
    /// (1, C, h, w) f32, like all that follow.
    latents: Tensor,
    /// What the plan holds, remembers (the latest first) and keeps of the noise drawn last.
    held: Option<Tensor>,
    memory: VecDeque<Tensor>,
    drawn: Option<Tensor>,
    /// What the last evaluation took the picture to be.
    denoised: Option<Tensor>,
    /// What is put back after every evaluation.
    kept: Option<Kept>,
    /// What the network is shown below the latents at every step: (1, C', h, w).
    extra_channels: Option<Tensor>,
    noise: NoiseGenerator,
}

impl SampleState {
    /// Draws the first latents from the sample's own seed, as diffusers does: one draw of (C, h, w) normals, and more where
    /// it starts from a picture.
    pub(super) fn begin(
        (job, image): (JobId, u32),
        meta: SampleMeta,
        (told, start): (Arc<Told>, Option<&Start>),
        request: &GenerationRequest,
        pipeline: &dyn Pipeline,
    ) -> Result<Self> {
        let mut noise = NoiseGenerator::new(request.noise(), request.image_seed(image));
        let mut drawn = || draw(&mut noise, meta.key.latent_shape, pipeline);
        let Begun { latents, kept, extra_channels } = match start {
            Some(start) => start.begin(&told.plan, drawn)?,
            None => Begun { latents: (drawn()? * told.plan.init_noise_sigma)?, kept: None, extra_channels: None },
        };
        Ok(Self {
            job,
            image,
            meta,
            told,
            pass: 0,
            evaluated: 0,
            steps_taken: 0,
            steps_before: 0,
            latents,
            held: None,
            memory: VecDeque::new(),
            drawn: None,
            denoised: None,
            kept,
            extra_channels,
            noise,
        })
    }

    /// The sample as the next pass begins it, with nothing of what was remembered. To its batches it is a new one, whose id is
    /// the loop's to give.
    pub(super) fn taken_over(&self, next: NextPass, pipeline: &dyn Pipeline) -> Result<Self> {
        let NextPass { key, told, hand_over, request } = next;
        let shape = key.latent_shape;
        let mut noise = match hand_over {
            // As image to image with that seed does: how many numbers the first pass drew is its sampler's affair.
            HandOver::Enlarged { .. } => NoiseGenerator::new(request.noise(), request.image_seed(self.image)),
            // The same numbers again would be the noise that the latents began with.
            HandOver::AsTheyAre => self.noise.clone(),
        };
        let drawn = || draw(&mut noise, shape, pipeline);
        let Begun { latents, kept, .. } =
            hand_over.begin((self.latents.clone(), self.kept.clone()), told.plan.steps[0].noised, pipeline, drawn)?;
        let rows = (told.guidance.most_rows_from(0), told.guidance.rows(0));
        let left = told.evaluations() as u32;
        let meta = SampleMeta { key, left, rows: rows.0, rows_now: rows.1, ..self.meta.clone() };
        Ok(Self {
            meta,
            told,
            pass: self.pass + 1,
            evaluated: 0,
            steps_taken: 0,
            steps_before: self.steps_before + self.steps_taken,
            latents,
            held: None,
            memory: VecDeque::new(),
            drawn: None,
            denoised: None,
            kept,
            extra_channels: None,
            noise,
            job: self.job,
            image: self.image,
        })
    }

    /// Steps that people count; some take several evaluations.
    pub(super) fn steps_taken(&self) -> u32 {
        self.steps_before + self.steps_taken
    }

    /// Of all passes.
    pub(super) fn total_steps(&self) -> u32 {
        self.steps_before + self.told.steps()
    }

    /// Whether the last evaluation ended a step, or the pass within one.
    pub(super) fn is_between_steps(&self) -> bool {
        self.is_done() || self.evaluated.checked_sub(1).is_none_or(|last| self.told.plan.steps[last].ends_step)
    }

    pub(super) fn is_done(&self) -> bool {
        self.evaluated == self.told.plan.steps.len()
    }

    pub(super) fn latents(&self) -> &Tensor {
        &self.latents
    }

    /// How the picture looks so far: without the noise that is still in the latents.
    pub(super) fn denoised(&self) -> &Tensor {
        self.denoised.as_ref().unwrap_or(&self.latents)
    }

    fn step(&self) -> &PlanStep {
        &self.told.plan.steps[self.evaluated]
    }

    /// What the network is shown: (1, C, h, w).
    pub(super) fn network_input(&self) -> Result<Tensor> {
        Ok((&self.latents * self.step().input_scale)?)
    }

    pub(super) fn row(&self, branch: Branch) -> StepRow<'_> {
        let conditioning = match (&self.told.uncond, branch) {
            (Some(uncond), Branch::Uncond) => uncond,
            _ => &self.told.cond,
        };
        StepRow {
            timestep: self.step().timestep,
            conditioning,
            extra_channels: self.extra_channels.as_ref(),
            controls: self.told.controls.at(self.evaluated, branch),
        }
    }

    /// Applies one evaluation: the network's outputs for its rows (conditional first), each (1, C, h, w).
    pub(super) fn advance(&mut self, outputs: &[Tensor], pipeline: &dyn Pipeline) -> Result<()> {
        let told = self.told.clone();
        let output = match outputs {
            [cond, uncond] => told.guidance.combine(cond, uncond)?,
            [cond] => cond.clone(),
            _ => unreachable!("a sample has one row or two. This is a bug in engine."),
        };
        let step = &told.plan.steps[self.evaluated];
        let from = step.denoised_from;
        let mut denoised = combine(&[(from.sample, &self.latents), (from.output, &output)])?;
        if let Some(range) = step.clip_denoised {
            denoised = denoised.clamp(-range as f32, range as f32)?;
        }
        let shape = self.meta.key.latent_shape;
        let fresh = step.draws_noise().then(|| draw(&mut self.noise, shape, pipeline)).transpose()?;
        let mixed = |mix: &Mix| self.mixed(mix, &denoised, &output, fresh.as_ref());
        let next = mixed(&step.next)?;
        let hold = step.hold.as_ref().map(mixed).transpose()?;
        let remember = step.remember.as_ref().map(mixed).transpose()?;
        self.latents = match &self.kept {
            Some(kept) => kept.put_back(&next, told.plan.steps.get(self.evaluated + 1).map(|step| step.noised))?,
            None => next,
        };
        self.held = hold.or(self.held.take());
        if told.plan.keeps_noise() {
            self.drawn = fresh.or(self.drawn.take());
        }
        if let Some(remember) = remember {
            self.memory.push_front(remember);
        }
        self.memory.truncate(told.plan.memory_len());
        self.denoised = Some(denoised);
        self.evaluated += 1;
        self.steps_taken += u32::from(step.ends_step);
        self.meta.left = (told.evaluations() - self.evaluated) as u32;
        self.meta.rows = told.guidance.most_rows_from(self.steps_taken);
        self.meta.rows_now = told.guidance.rows(self.steps_taken);
        Ok(())
    }

    fn mixed(&self, mix: &Mix, denoised: &Tensor, output: &Tensor, fresh: Option<&Tensor>) -> Result<Tensor> {
        let mut terms = vec![(mix.sample, &self.latents), (mix.denoised, denoised), (mix.output, output)];
        // A plan weighs nothing that it did not hold, remember or draw before.
        terms.extend(self.held.as_ref().map(|held| (mix.held, held)));
        terms.extend(mix.remembered.iter().copied().zip(&self.memory));
        terms.extend(fresh.map(|fresh| (mix.noise, fresh)));
        terms.extend(self.drawn.as_ref().map(|drawn| (mix.earlier_noise, drawn)));
        combine(&terms)
    }

    /// For tests: spoils the sample.
    pub(super) fn spoil(&mut self) -> Result<()> {
        self.latents = (&self.latents * f64::NAN)?;
        Ok(())
    }

    /// Whether all its numbers are numbers.
    pub(super) fn is_finite(&self) -> Result<bool> {
        // One NaN or infinity makes the sum of squares one.
        Ok(self.latents.sqr()?.sum_all()?.to_scalar::<f32>()?.is_finite())
    }
}

/// Standard normal noise of one sample: (1, C, h, w). The generator runs on the CPU wherever the network does.
fn draw(noise: &mut NoiseGenerator, (c, h, w): (usize, usize, usize), pipeline: &dyn Pipeline) -> Result<Tensor> {
    let mut values = vec![0f32; c * h * w];
    noise.standard_normal(&mut values);
    Ok(Tensor::from_vec(values, (1, c, h, w), pipeline.device())?)
}

/// The sum of `weight * tensor`; terms of weight 0 are left out, so a NaN there does not count.
fn combine(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (weight, tensor) in terms.iter().filter(|(weight, _)| *weight != 0.0) {
        let term = (*tensor * *weight)?;
        sum = Some(match sum {
            None => term,
            Some(sum) => (sum + term)?,
        });
    }
    match sum {
        Some(sum) => Ok(sum),
        None => Ok(terms[0].1.zeros_like()?),
    }
}
