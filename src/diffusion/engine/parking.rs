//! A job taken off an engine as it stood between two evaluations, so that another goes on with it to the same bytes.
//!
//! What follows from the request is derived again: prompts, plans, what pictures are drawn on. What does not is kept to the
//! bit: latents, what samplers hold and remember, and where the noise stands. [`Basis`] says what must be as it was; a
//! state on any other basis is not used. Bytes and back: `format`.

mod format;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use format::{MAX_PARKED_BYTES, Unreadable};

use super::sample::Told;
use crate::diffusion::batching::BatchKey;
use crate::diffusion::noise::NoiseState;
use crate::diffusion::pipelines::{Conditioning, Pipeline, Result};
use crate::domain::{Artifact, DrawnBy, DrawnByModel, GenerationRequest, JobId, ModelId, hex};

/// A job that was taken off.
#[derive(Clone, Debug, PartialEq)]
pub struct ParkedJob {
    pub(super) basis: Basis,
    /// Its pictures in progress.
    pub(super) samples: Vec<ParkedSample>,
    /// Its pictures that are drawn and stored; whoever stored them says so.
    stored: Vec<Artifact>,
}

/// What must be the same where a parked job goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Basis {
    job: JobId,
    /// SHA-256 of the request as JSON, in hex.
    request: String,
    /// The version of this program: another may do its arithmetic differently.
    program: String,
    /// `cpu`, `cuda` or `metal`.
    device: String,
    models: Vec<DrawnByModel>,
    /// [`Pipeline::fingerprint`] of each: of the autoencoder too.
    networks: Vec<String>,
    /// Of each pass, SHA-256 of all that its evaluations are told, in hex: LoRAs by hash, the plan, which
    /// ControlNets, prompts as the text encoders read them here.
    passes: Vec<String>,
}

/// One picture in progress.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ParkedSample {
    pub image: u32,
    /// 0, or 1 of a second pass or a refiner.
    pub pass: usize,
    /// Model evaluations made in this pass.
    pub evaluated: usize,
    pub noise: NoiseState,
    /// In an order that follows from the above.
    pub tensors: Vec<ParkedTensor>,
}

/// A tensor in f32.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ParkedTensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl ParkedJob {
    pub(super) fn new(basis: Basis, samples: Vec<ParkedSample>) -> Self {
        Self { basis, samples, stored: Vec::new() }
    }

    /// The same with one more picture in progress.
    pub(super) fn with(mut self, sample: ParkedSample) -> Self {
        self.samples.push(sample);
        self
    }

    /// Whose.
    pub fn job(&self) -> JobId {
        self.basis.job
    }

    /// Pictures that are drawn and stored already.
    pub fn stored(&self) -> &[Artifact] {
        &self.stored
    }

    /// The same with these pictures drawn and stored.
    pub fn with_stored(self, stored: Vec<Artifact>) -> Self {
        Self { stored, ..self }
    }

    /// Whether each of so many pictures is there once, in progress or stored, and one at least is in progress.
    pub(super) fn is_whole(&self, num_images: u32) -> bool {
        let stored = self.stored.iter().map(|artifact| artifact.index);
        let mut images: Vec<u32> = self.samples.iter().map(|sample| sample.image).chain(stored).collect();
        images.sort_unstable();
        !self.samples.is_empty() && images.into_iter().eq(0..num_images)
    }
}

impl Basis {
    /// Of a job whose first pass is told this, drawn with these models.
    pub(super) fn of<'a>(
        job: JobId,
        request: &GenerationRequest,
        (key, told): (&BatchKey, &Told),
        pipelines: impl Iterator<Item = &'a Arc<dyn Pipeline>>,
    ) -> Result<Self> {
        let pipelines: Vec<_> = pipelines.collect();
        let request = serde_json::to_vec(request).unwrap_or_default();
        let mut passes = vec![told.digest(key)?];
        if let Some(next) = &told.next {
            passes.push(next.told.digest(&next.key)?);
        }
        Ok(Self {
            job,
            request: hex(Sha256::digest(request)),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            device: device(told).to_owned(),
            models: DrawnBy::models(pipelines.iter().map(|pipeline| pipeline.info())).models,
            networks: pipelines.iter().map(|pipeline| pipeline.fingerprint().to_owned()).collect(),
            passes,
        })
    }

    /// Whether it is drawn with no other models than these.
    pub(super) fn rests_on(&self, models: &[ModelId]) -> bool {
        self.models.iter().all(|model| models.contains(&model.id))
    }

    /// What is not as `now`, in words; `None` where all is.
    pub(super) fn differs_from(&self, now: &Self) -> Option<String> {
        let word = |what: &str| Some(format!("{what} is not what it was"));
        match () {
            () if self.job != now.job => Some(format!("it is job {}'s", self.job)),
            () if self.request != now.request => word("the request"),
            () if self.program != now.program => Some(format!("it was parked by version {}", self.program)),
            () if self.device != now.device => Some(format!("it was parked on `{}`", self.device)),
            () if self.models != now.models || self.networks != now.networks => word("a model's file"),
            () if self.passes != now.passes => word("what the prompts, the LoRAs and the sampler come to"),
            () => None,
        }
    }
}

fn device(told: &Told) -> &'static str {
    match told.pipeline.device().location() {
        candle_core::DeviceLocation::Cpu => "cpu",
        candle_core::DeviceLocation::Cuda { .. } => "cuda",
        candle_core::DeviceLocation::Metal { .. } => "metal",
    }
}

impl Told {
    /// SHA-256 of what the evaluations of this pass are told, in hex; not of what they start from.
    fn digest(&self, key: &BatchKey) -> Result<String> {
        let mut hash = Sha256::new();
        // Debug gives a float's shortest digits, which no other float has.
        hash.update(format!("{:?}{:?}{key:?}", self.plan, self.guidance));
        self.controls.fingerprints().for_each(|nets| hash.update(format!("{nets:?}")));
        for side in [Some(&self.cond), self.uncond.as_ref()] {
            hash.update([u8::from(side.is_some())]);
            side.map(|side| add(&mut hash, side)).transpose()?;
        }
        Ok(hex(hash.finalize()))
    }
}

fn add(hash: &mut Sha256, Conditioning { prompt, time_ids, guidance_scale }: &Conditioning) -> Result<()> {
    hash.update(format!("{time_ids:?}{guidance_scale:?}"));
    for tensor in [Some(&prompt.hidden_states), prompt.pooled.as_ref()].into_iter().flatten() {
        hash.update(format!("{:?}", tensor.dims()));
        for value in tensor.flatten_all()?.to_dtype(candle_core::DType::F32)?.to_vec1::<f32>()? {
            hash.update(value.to_le_bytes());
        }
    }
    Ok(())
}
