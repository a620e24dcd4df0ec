//! Requests and pipelines on the tiny checkpoints.

use std::path::PathBuf;
use std::sync::Arc;

use darkroom::diffusion::pipelines::{self, ModelSource, Pipeline};
use darkroom::domain::{DeviceSpec, GenerationRequest, Limits, RequestDraft};

/// tests/fixtures.
pub(crate) fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// One of the tiny checkpoints, on the CPU.
pub(crate) fn pipeline(style: &str) -> Arc<dyn Pipeline> {
    let source = ModelSource::at(style, fixtures().join(style));
    pipelines::load(&source, DeviceSpec::Cpu).expect("a fixture loads")
}

/// A draft for a small picture in a few steps.
pub(crate) fn draft(prompt: &str, seed: u64) -> RequestDraft {
    RequestDraft {
        prompt: Some(prompt.to_owned()),
        width: Some(16),
        height: Some(16),
        steps: Some(4),
        seed: Some(i128::from(seed)),
        ..RequestDraft::default()
    }
}

/// The draft, checked.
pub(crate) fn checked(draft: RequestDraft, pipeline: &dyn Pipeline) -> GenerationRequest {
    draft.validate(pipeline.info(), &Limits::default(), 0).expect("a valid draft")
}
