//! Requests and pipelines on the tiny checkpoints.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use darkroom::diffusion::engine::Drawing;
use darkroom::diffusion::pipelines::{self, ControlNets, LoraLibrary, ModelSource, Pipeline};
use darkroom::domain::{
    ControlDraft, DeviceSpec, GenerationRequest, ImageInputsDraft, InputImage, InputName, Limits, LoraDraft, ModelInfo,
    RequestDraft,
};
use darkroom::images::{Canvas, ControlPicture, Framing, GrayImage, Pixels, RgbImage};

/// tests/fixtures.
pub(crate) fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A folder with all that is in it.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// A control by this ControlNet.
pub(crate) fn control(model: &str, scale: f64, start: f64, end: f64) -> ControlDraft {
    let (scale, start, end) = (Some(scale), Some(start), Some(end));
    ControlDraft { model: Some(model.to_owned()), image: None, scale, start, end, is_faulty: false }
}

/// One of the tiny checkpoints, on the CPU, with the ControlNets and LoRAs of tests/fixtures.
pub(crate) fn controlled_pipeline(style: &str) -> Arc<dyn Pipeline> {
    let controlnets = ControlNets::open(&fixtures().join("controlnets"), 4).expect("a fixture opens");
    let source = ModelSource { controlnets, loras: loras(), ..ModelSource::at(style, fixtures().join(style)) };
    pipelines::load(&source, DeviceSpec::Cpu).expect("a fixture loads")
}

/// One of the tiny checkpoints, on the CPU, with the LoRAs of the fixtures.
pub(crate) fn pipeline(style: &str) -> Arc<dyn Pipeline> {
    pipeline_with(style, fixtures().join("loras"))
}

fn loras() -> LoraLibrary {
    LoraLibrary::new(Some(fixtures().join("loras")), Vec::new())
}

/// The same with the LoRAs of another folder.
pub(crate) fn pipeline_with(style: &str, loras: PathBuf) -> Arc<dyn Pipeline> {
    let loras = LoraLibrary::new(Some(loras), Vec::new());
    let source = ModelSource { loras, ..ModelSource::at(style, fixtures().join(style)) };
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

/// A LoRA of this name.
pub(crate) fn lora(name: &str, scale: f64) -> LoraDraft {
    LoraDraft { name: Some(name.to_owned()), scale: Some(scale), ..LoraDraft::default() }
}

/// The draft, checked; the LoRAs that it names are taken to be there.
pub(crate) fn checked(draft: RequestDraft, pipeline: &dyn Pipeline) -> GenerationRequest {
    checked_by(draft, std::slice::from_ref(pipeline.info()))
}

/// The draft, checked where all of these are served; the first of them draws.
pub(crate) fn checked_among(draft: RequestDraft, pipelines: &[Arc<dyn Pipeline>]) -> GenerationRequest {
    checked_by(draft, &infos(pipelines))
}

fn checked_by(draft: RequestDraft, served: &[ModelInfo]) -> GenerationRequest {
    let loras = draft.loras.iter().filter_map(|lora| lora.name.clone()).collect();
    draft.validate_among(&served[0], served, &Limits { loras, ..Limits::default() }, 0).expect("a valid draft")
}

fn infos(pipelines: &[Arc<dyn Pipeline>]) -> Vec<ModelInfo> {
    pipelines.iter().map(|pipeline| pipeline.info().clone()).collect()
}

/// The draft, checked, with the pictures it starts from as the server would bring them to the engine.
pub(crate) fn drawing(
    draft: RequestDraft,
    picture: Option<RgbImage>,
    mask: Option<GrayImage>,
    pipeline: &Arc<dyn Pipeline>,
) -> Drawing {
    drawing_among(draft, picture, mask, std::slice::from_ref(pipeline))
}

/// The same where all of these are served; the first of them draws.
pub(crate) fn drawing_among(
    draft: RequestDraft,
    picture: Option<RgbImage>,
    mask: Option<GrayImage>,
    pipelines: &[Arc<dyn Pipeline>],
) -> Drawing {
    controlled_among(draft, (picture, mask), Vec::new(), &infos(pipelines))
}

/// The same with controls and their pictures.
pub(crate) fn controlled(
    draft: RequestDraft,
    (picture, mask): (Option<RgbImage>, Option<GrayImage>),
    controls: Vec<(ControlDraft, RgbImage)>,
    pipeline: &dyn Pipeline,
) -> Drawing {
    controlled_among(draft, (picture, mask), controls, std::slice::from_ref(pipeline.info()))
}

/// The same where all of these are served; the first of them draws.
pub(crate) fn controlled_among(
    draft: RequestDraft,
    (picture, mask): (Option<RgbImage>, Option<GrayImage>),
    controls: Vec<(ControlDraft, RgbImage)>,
    served: &[ModelInfo],
) -> Drawing {
    let inputs = ImageInputsDraft {
        init_image: picture.as_ref().map(|picture| input(InputName::InitImage, picture)),
        mask_image: mask.as_ref().map(|mask| input(InputName::MaskImage, mask)),
        ..draft.image_inputs.clone()
    };
    let asked = |(at, (draft, picture)): (usize, &(ControlDraft, RgbImage))| ControlDraft {
        image: Some(input(InputName::Control(at as u8), picture)),
        ..draft.clone()
    };
    let drafts = controls.iter().enumerate().map(asked).collect();
    let request = checked_by(RequestDraft { image_inputs: inputs, controls: drafts, ..draft }, served);
    let canvas = picture.map(|picture| Arc::new(Canvas::new(picture, mask, &Framing::of(&request))));
    let pictures = controls.iter().map(|(_, picture)| ControlPicture::new(picture, &request, canvas.as_deref()));
    let controls = pictures.collect();
    Drawing { request, canvas, controls }
}

/// The request's part of a picture.
fn input<const N: usize>(input: InputName, picture: &Pixels<N>) -> InputImage {
    InputImage { job: None, input, sha256: String::new(), width: picture.width(), height: picture.height() }
}
