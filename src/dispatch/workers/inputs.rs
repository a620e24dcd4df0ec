//! What a job's pictures are drawn on, of the files that came with its request.

use std::time::Duration;

use super::pool::PoolParts;
use crate::domain::{GenerationRequest, InputName, Job};
use crate::images::{self, Canvas, Framing, InputLimits};

/// Longest time a job's files may take to come.
const PATIENCE: Duration = Duration::from_secs(10);
/// They were held to the limits when they came, which may have been others.
const AS_THEY_ARE: InputLimits = InputLimits { max_bytes: usize::MAX, max_pixels: u64::MAX };

/// Why there is no canvas.
pub(super) enum NoCanvas {
    /// There will not be one.
    Missing(String),
    /// The store did not answer; it may another time.
    NotNow(String),
}

/// The canvas of a job, `None` where it starts from noise.
pub(super) async fn canvas(parts: &PoolParts, job: &Job) -> Result<Option<Canvas>, NoCanvas> {
    let inputs = job.request.image_inputs();
    let mut files = Vec::new();
    for picture in inputs.pictures() {
        let got = tokio::time::timeout(PATIENCE, parts.artifacts.get_input(job.id, picture.input)).await;
        let got = got.map_err(|_| NoCanvas::NotNow("it took too long".to_owned()))?;
        let file = got.map_err(|error| NoCanvas::NotNow(error.to_string()))?;
        let missing = || NoCanvas::Missing(format!("the stored `{}` is gone", picture.input));
        files.push((picture.input, file.ok_or_else(missing)?));
    }
    if files.is_empty() {
        return Ok(None);
    }
    let request = job.request.clone();
    let drawn_on = tokio::task::spawn_blocking(move || framed(&request, &files)).await;
    drawn_on.map_err(|error| NoCanvas::Missing(error.to_string()))?.map(Some).map_err(NoCanvas::Missing)
}

fn framed(request: &GenerationRequest, files: &[(InputName, bytes::Bytes)]) -> Result<Canvas, String> {
    let (mut picture, mut mask) = (None, None);
    for (input, bytes) in files {
        let told = |fault| format!("the stored `{input}` {fault}");
        match input {
            InputName::InitImage => picture = Some(images::read_rgb(bytes, AS_THEY_ARE).map_err(told)?),
            InputName::MaskImage => mask = Some(images::read_mask(bytes, AS_THEY_ARE).map_err(told)?),
        }
    }
    let picture = picture.ok_or("it has a mask and no picture")?;
    Ok(Canvas::new(picture, mask, &Framing::of(request)))
}
