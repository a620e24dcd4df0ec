//! Jobs for stores, and a model that nobody draws with.

use darkroom::dispatch::jobs::NewJob;
use darkroom::domain::{
    GenerationRequest, JobId, LatentSpace, Limits, ModelDefaults, ModelId, ModelInfo, RequestDraft, SamplerKind,
    SigmaSchedule,
};

/// Of requests that name none.
pub(crate) const MODEL: &str = "tiny";

/// Nobody's in particular, drawn whatever was before.
pub(crate) fn new_job(request: GenerationRequest) -> NewJob {
    NewJob { id: JobId::generate(), owner: None, request, idempotency: None, identity: None, answer: None, speed: None }
}

/// A model that takes any multiple of 8 from 8 to 2048.
pub(crate) fn model(id: &str) -> ModelInfo {
    ModelInfo {
        id: ModelId::new(id),
        description: String::new(),
        family: "stable-diffusion".to_owned(),
        size_multiple: 8,
        min_side: 8,
        max_side: 2048,
        prompt_tokens: 75,
        max_clip_skip: 11,
        guidance_embedded: false,
        size_conditioning: false,
        inpainting: false,
        controlnets: Vec::new(),
        latents: LatentSpace { channels: 4, factor: 8, scaling_factor: 0.18215 },
        sha256: None,
        files: None,
        samplers: SamplerKind::ALL.to_vec(),
        sigma_schedules: SigmaSchedule::ALL.to_vec(),
        defaults: ModelDefaults {
            width: 64,
            height: 64,
            steps: 10,
            guidance_scale: 1.0,
            sampler: SamplerKind::Euler,
            ..ModelDefaults::default()
        },
    }
}

/// One unguided picture of 64x64 in 10 steps by [`MODEL`], changed by `change`.
pub(crate) fn request(change: impl FnOnce(&mut RequestDraft)) -> GenerationRequest {
    let mut draft = RequestDraft { prompt: Some("a red circle".to_owned()), ..RequestDraft::default() };
    change(&mut draft);
    let model = model(draft.model.as_deref().unwrap_or(MODEL));
    draft.validate(&model, &Limits::default(), 7).expect("the draft is valid")
}
