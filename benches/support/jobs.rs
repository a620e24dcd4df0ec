//! Jobs for stores, of a model that nobody draws with.

use darkroom::dispatch::jobs::NewJob;
use darkroom::domain::{
    GenerationRequest, JobId, LatentSpace, Limits, ModelDefaults, ModelId, ModelInfo, RequestDraft, SamplerKind,
    SigmaSchedule,
};

pub(crate) const MODEL: &str = "bench";

/// Nobody's in particular, drawn whatever was before.
pub(crate) fn new_job(request: GenerationRequest) -> NewJob {
    NewJob { id: JobId::generate(), owner: None, request, idempotency: None, identity: None, answer: None, speed: None }
}

/// One picture of this width and 512 pixels high, in one row.
pub(crate) fn request(width: u32, steps: u32) -> GenerationRequest {
    let model = ModelInfo {
        id: ModelId::new(MODEL),
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
        samplers: vec![SamplerKind::Euler],
        sigma_schedules: vec![SigmaSchedule::Default],
        defaults: ModelDefaults {
            width: 512,
            height: 512,
            steps: 20,
            guidance_scale: 1.0,
            sampler: SamplerKind::Euler,
            ..ModelDefaults::default()
        },
    };
    let draft = RequestDraft {
        prompt: Some("a red circle above a blue square".to_owned()),
        width: Some(i64::from(width)),
        steps: Some(i64::from(steps)),
        ..RequestDraft::default()
    };
    draft.validate(&model, &Limits::default(), 1).expect("the draft is valid")
}
