//! What a job's pictures are drawn on and controlled by, of the files that came with its request.

use std::sync::Arc;

use super::PATIENCE;
use super::pool::PoolParts;
use crate::domain::{GenerationRequest, InputName, Job};
use crate::images::{self, Canvas, ControlPicture, Framing, InputLimits};

/// They were held to the limits when they came, which may have been others.
const AS_THEY_ARE: InputLimits = InputLimits { max_bytes: usize::MAX, max_pixels: u64::MAX };

/// What a job came with, ready for an engine.
#[derive(Default)]
pub(super) struct Given {
    /// `None` where it starts from noise.
    pub canvas: Option<Arc<Canvas>>,
    /// As many as the request has controls.
    pub controls: Vec<ControlPicture>,
}

/// Why a job cannot be given what it came with.
pub(super) enum NotGiven {
    /// It never will be.
    Missing(String),
    /// The store did not answer; it may another time.
    NotNow(String),
}

/// What a job came with.
pub(super) async fn given(parts: &PoolParts, job: &Job) -> Result<Given, NotGiven> {
    let mut files = Vec::new();
    for picture in job.request.input_pictures() {
        let got = tokio::time::timeout(PATIENCE, parts.artifacts.get_input(job.id, picture.input)).await;
        let got = got.map_err(|_| NotGiven::NotNow("it took too long".to_owned()))?;
        let file = got.map_err(|error| NotGiven::NotNow(error.to_string()))?;
        let missing = || NotGiven::Missing(format!("the stored `{}` is gone", picture.input));
        files.push((picture.input, file.ok_or_else(missing)?));
    }
    if files.is_empty() {
        return Ok(Given::default());
    }
    let request = job.request.clone();
    let prepared = tokio::task::spawn_blocking(move || framed(&request, &files));
    prepared.await.map_err(|error| NotGiven::Missing(error.to_string()))?.map_err(NotGiven::Missing)
}

fn framed(request: &GenerationRequest, files: &[(InputName, bytes::Bytes)]) -> Result<Given, String> {
    let (mut picture, mut mask, mut controls) = (None, None, Vec::new());
    for (input, bytes) in files {
        let told = |fault| format!("the stored `{input}` {fault}");
        match input {
            InputName::InitImage => picture = Some(images::read_rgb(bytes, AS_THEY_ARE).map_err(told)?),
            InputName::MaskImage => mask = Some(images::read_mask(bytes, AS_THEY_ARE).map_err(told)?),
            InputName::Control(_) => controls.push(images::read_rgb(bytes, AS_THEY_ARE).map_err(told)?),
        }
    }
    if picture.is_none() && mask.is_some() {
        return Err("it has a mask and no picture".to_owned());
    }
    let canvas = picture.map(|picture| Canvas::new(picture, mask, &Framing::of(request)));
    let controls = controls.iter().map(|picture| ControlPicture::new(picture, request, canvas.as_ref())).collect();
    Ok(Given { canvas: canvas.map(Arc::new), controls })
}
