//! One suite a trait, run by every implementation, and the builders the suites share.

/// Each of a suite's tests on each store.
macro_rules! for_every_store {
    ($($test:ident,)+) => {
        for_every_store!(@ memory; OPTIONS; $($test,)+);
        for_every_store!(@ sqlite; OPTIONS; $($test,)+);
    };
    // With options of its own.
    (of $options:ident(): $($test:ident,)+) => {
        for_every_store!(@ memory; $options(); $($test,)+);
        for_every_store!(@ sqlite; $options(); $($test,)+);
    };
    (@ $store:ident; $options:expr; $($test:ident,)+) => {
        mod $store {
            use super::*;

            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
                async fn $test() {
                    super::$test(super::Bed::$store($options).await).await;
                }
            )+
        }
    };
}

mod artifacts;
mod event_bus;
mod job_store;
mod job_store_bed;
mod job_store_claims;
mod job_store_deadlines;
mod job_store_files;
mod job_store_identical;
mod job_store_shares;
mod job_store_work;
mod preparing;
mod sharing;
mod streams;
mod watchdog;
mod workers;

use darkroom::domain::{
    GenerationRequest, LatentSpace, Limits, ModelDefaults, ModelId, ModelInfo, RequestDraft, SamplerKind, SigmaSchedule,
};

/// A model that takes any multiple of 8 from 8 to 2048.
fn model(id: &str) -> ModelInfo {
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

/// One unguided picture of 64x64 in 10 steps by model `tiny`, changed by `change`.
fn request(change: impl FnOnce(&mut RequestDraft)) -> GenerationRequest {
    let mut draft = RequestDraft { prompt: Some("a red circle".to_owned()), ..RequestDraft::default() };
    change(&mut draft);
    let model = model(draft.model.as_deref().unwrap_or("tiny"));
    draft.validate(&model, &Limits::default(), 7).unwrap()
}
