//! From a model's source to a pipeline of its family.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::DType;
use serde_json::Value;

use super::adapted::Adapters;
use super::{ControlNets, Error, Introduced, Pipeline, Result, StableDiffusion, StableDiffusionXl, builtin};
use crate::diffusion::kernels;
use crate::diffusion::weights::{Changes, Checkpoint, LoraLibrary};
use crate::domain::{ComputeDtype, DeviceSpec, DtypeSpec, FieldError, Limits, ModelId, ModelInfo, RequestDraft};

/// A model, where it comes from, and what its operator says of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSource {
    /// The name clients use.
    pub id: ModelId,
    /// Where its files are.
    pub place: ModelPlace,
    /// A folder whose configurations and tokenizers go before what a single file tells.
    pub config: Option<PathBuf>,
    /// Another autoencoder, a variant, other values.
    pub changes: Changes,
    /// Those that requests may name; none by default.
    pub controlnets: ControlNets,
    /// The LoRAs that requests to it may name.
    pub loras: LoraLibrary,
    /// What its denoising network and the ControlNets beside it compute in; text encoders and autoencoders stay f32.
    pub dtype: DtypeSpec,
}

/// Where a model's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelPlace {
    /// Inside the binary, by the name of the built-in model.
    Embedded(String),
    /// A diffusers folder with `model_index.json`, or a checkpoint in one file.
    Path(PathBuf),
}

impl ModelSource {
    /// A folder or file of this name, as it is.
    pub fn at(id: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self::of(ModelId::new(id), ModelPlace::Path(path.into()))
    }

    fn of(id: ModelId, place: ModelPlace) -> Self {
        let (controlnets, loras) = (ControlNets::default(), LoraLibrary::default());
        let (changes, dtype) = (Changes::default(), DtypeSpec::default());
        Self { id, place, config: None, changes, controlnets, loras, dtype }
    }

    /// Whether it is inside the binary.
    pub fn is_built_in(&self) -> bool {
        matches!(self.place, ModelPlace::Embedded(_))
    }

    /// From what an operator writes: the id of a built-in model, a folder, or a safetensors file, whose name becomes the id.
    ///
    /// # Errors
    /// A text that is none of them.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        if builtin::checkpoint(text).is_some() {
            return Ok(Self::of(ModelId::new(text), ModelPlace::Embedded(text.to_owned())));
        }
        let path = PathBuf::from(text);
        let whole = path.canonicalize().ok().filter(|path| path.is_dir() || path.is_file());
        let stem = |path: &Path| if path.is_file() { path.file_stem() } else { path.file_name() }.map(OsStr::to_owned);
        match whole.as_deref().and_then(stem) {
            Some(name) => Ok(Self::at(name.to_string_lossy(), path)),
            None => Err(format!(
                "`{text}` is neither a built-in model (`{}`) nor a folder nor a safetensors file",
                builtin::PINHOLE
            )),
        }
    }

    /// A message about its files without the folders that they lie in: for clients, who are not told how an operator's disk is laid out.
    pub fn without_folders(&self, message: &str) -> String {
        let place = match &self.place {
            ModelPlace::Path(path) => Some(path),
            ModelPlace::Embedded(_) => None,
        };
        let Changes { vae, vae_tiny, embeddings, .. } = &self.changes;
        let changes = vae.iter().chain(vae_tiny).chain(embeddings);
        let files = place.into_iter().chain(&self.config).chain(changes);
        let folders = files.filter_map(|file| file.parent()).map(|folder| format!("{}/", folder.display()));
        folders.filter(|folder| folder.len() > 1).fold(message.to_owned(), |text, folder| text.replace(&folder, ""))
    }

    /// Its files, seen as a diffusers folder.
    ///
    /// # Errors
    /// A file that is no checkpoint, or something named beside it that cannot be read.
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        let base = match &self.place {
            ModelPlace::Path(path) if path.is_dir() => Checkpoint::Folder(path.clone()),
            ModelPlace::Path(path) => Checkpoint::file(path, self.config.clone())?,
            ModelPlace::Embedded(name) => builtin::checkpoint(name).ok_or_else(|| Error::Unsupported {
                file: name.clone(),
                reason: "this binary was built without that model (feature `pinhole`)".to_owned(),
            })?,
        };
        Ok(base.changed(self.changes.clone())?)
    }
}

/// Looks at a model without loading it: reads its configurations and the headers of its weights.
///
/// # Errors
/// As [`load`]'s, where configurations and headers tell.
pub fn introduce(source: &ModelSource) -> Result<Introduced> {
    let checkpoint = source.checkpoint()?;
    let (index, family) = family(&checkpoint)?;
    let id = source.id.clone();
    let introduced = match &family {
        Family::StableDiffusion(class) => StableDiffusion::introduce(id, class, &checkpoint, &source.controlnets)?,
        Family::StableDiffusionXl => StableDiffusionXl::introduce(id, &index, &checkpoint, &source.controlnets)?,
    };
    check_defaults(&introduced.info)?;
    Ok(introduced.in_dtype(source.dtype))
}

/// Loads a model onto a device, its denoising network in what [`ModelSource::dtype`] is there; its family is what
/// `model_index.json` says in `_class_name`.
///
/// # Errors
/// The first fault of its files, naming file and tensor or key; a family or device that is not supported.
pub fn load(source: &ModelSource, device: DeviceSpec) -> Result<Arc<dyn Pipeline>> {
    let files = source.files();
    let checkpoint = source.checkpoint()?;
    let (index, family) = family(&checkpoint)?;
    let failed = |reason| Error::Device { device: device.to_string(), reason };
    let wanted = source.dtype.on(device);
    let (opened, dtype) = (kernels::open(device).map_err(failed)?, dtype_of(wanted));
    if !kernels::computes_in(&opened, dtype) {
        return Err(failed(format!("it does not compute in {wanted}; set `workers.dtype` to `f16` or `f32`")));
    }
    let device = opened;
    let (id, adapters) = (source.id.clone(), Adapters::of(source.loras.clone()));
    let controlnets = source.controlnets.clone();
    // Files that were changed meanwhile may have been read in part.
    let read = || files.filter(|files| source.files().as_ref() == Some(files));
    let pipeline: Arc<dyn Pipeline> = match &family {
        Family::StableDiffusion(class) => {
            let mut loaded = StableDiffusion::load(id, class, &checkpoint, (device, dtype, adapters))?;
            loaded.control_by(controlnets);
            loaded.loaded_from(read());
            Arc::new(loaded)
        }
        Family::StableDiffusionXl => {
            let mut loaded = StableDiffusionXl::load(id, &index, &checkpoint, (device, dtype, adapters))?;
            loaded.control_by(controlnets);
            loaded.loaded_from(read());
            Arc::new(loaded)
        }
    };
    check_defaults(pipeline.info())?;
    Ok(pipeline)
}

/// Which pipeline draws with a checkpoint.
enum Family {
    /// By diffusers' class.
    StableDiffusion(String),
    StableDiffusionXl,
}

/// `model_index.json`, and the family it names.
fn family(checkpoint: &Checkpoint) -> Result<(Value, Family)> {
    let file = "model_index.json";
    let index: Value = checkpoint.json(file)?;
    let family = match index.get("_class_name").and_then(Value::as_str) {
        Some(class) if STABLE_DIFFUSION.contains(&class) => Family::StableDiffusion(class.to_owned()),
        Some(class) if STABLE_DIFFUSION_XL.contains(&class) => Family::StableDiffusionXl,
        other => {
            let supported = supported_classes().join(", ");
            let reason = format!("`_class_name` is {other:?}; supported: {supported}");
            return Err(Error::Unsupported { file: checkpoint.describe(file), reason });
        }
    };
    Ok((index, family))
}

/// What an operator or a card names as defaults must be what a request could ask for.
fn check_defaults(info: &ModelInfo) -> Result<()> {
    let limits = Limits { max_steps: u32::MAX, max_pixels: u64::MAX, ..Limits::default() };
    let defaults = &info.defaults;
    let draft = RequestDraft {
        prompt: Some("a default".to_owned()),
        width: Some(defaults.width.into()),
        height: Some(defaults.height.into()),
        steps: Some(defaults.steps.into()),
        guidance_scale: Some(defaults.guidance_scale),
        guidance_rescale: Some(defaults.guidance_rescale),
        clip_skip: Some(defaults.clip_skip.into()),
        sampler: Some(defaults.sampler.name().to_owned()),
        sigma_schedule: Some(defaults.sigma_schedule.name().to_owned()),
        ..RequestDraft::default()
    };
    let told = |faults: Vec<FieldError>| {
        let each: Vec<String> =
            faults.iter().map(|fault| format!("{} {} {}", fault.field, fault.value, fault.message)).collect();
        Error::Unsupported { file: info.id.to_string(), reason: format!("its defaults: {}", each.join("; ")) }
    };
    draft.validate(info, &limits, 0).map(drop).map_err(told)
}

/// Classes of one family have the same components.
const STABLE_DIFFUSION: &[&str] = &[
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "LatentConsistencyModelPipeline",
    "LatentConsistencyModelImg2ImgPipeline",
];
const STABLE_DIFFUSION_XL: &[&str] =
    &["StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"];

/// What `_class_name` may say.
pub fn supported_classes() -> Vec<&'static str> {
    [STABLE_DIFFUSION, STABLE_DIFFUSION_XL].concat()
}

fn dtype_of(dtype: ComputeDtype) -> DType {
    match dtype {
        ComputeDtype::F32 => DType::F32,
        ComputeDtype::F16 => DType::F16,
        ComputeDtype::Bf16 => DType::BF16,
    }
}
