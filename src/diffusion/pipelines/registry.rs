//! From a model's source to a pipeline of its family.

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::Device;
use serde_json::Value;

use super::{Error, Pipeline, Result, StableDiffusion, StableDiffusionXl, builtin};
use crate::diffusion::weights::Checkpoint;
use crate::domain::{DeviceSpec, ModelId};

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// A diffusers folder on disk.
    Folder {
        /// The name clients use.
        id: ModelId,
        /// The folder with `model_index.json`.
        path: PathBuf,
    },
    /// A model inside the binary.
    Embedded {
        /// The name clients use, and the embedded folder's.
        id: ModelId,
    },
}

impl ModelSource {
    /// From what an operator writes: the id of a built-in model, or a folder, whose name becomes the id.
    ///
    /// # Errors
    /// A text that is neither.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        if builtin::checkpoint(text).is_some() {
            return Ok(Self::Embedded { id: ModelId::new(text) });
        }
        let path = PathBuf::from(text);
        let name =
            path.canonicalize().ok().and_then(|path| path.file_name().map(|name| name.to_string_lossy().into_owned()));
        match name {
            Some(name) if path.is_dir() => Ok(Self::Folder { id: ModelId::new(name), path }),
            _ => Err(format!("`{text}` is neither a built-in model (`{}`) nor a folder", builtin::PINHOLE)),
        }
    }

    /// The name clients use.
    pub fn id(&self) -> &ModelId {
        match self {
            Self::Folder { id, .. } | Self::Embedded { id } => id,
        }
    }

    fn checkpoint(&self) -> Result<Checkpoint> {
        match self {
            Self::Folder { path, .. } => Ok(Checkpoint::Folder(path.clone())),
            Self::Embedded { id } => builtin::checkpoint(id.as_str()).ok_or_else(|| Error::Unsupported {
                file: id.to_string(),
                reason: "this binary was built without that model (feature `pinhole`)".to_owned(),
            }),
        }
    }
}

/// Loads a model onto a device; its family is what `model_index.json` says in `_class_name`.
///
/// # Errors
/// The first fault of its files, naming file and tensor or key; a family or device that is not supported.
pub fn load(source: &ModelSource, device: DeviceSpec) -> Result<Arc<dyn Pipeline>> {
    let checkpoint = source.checkpoint()?;
    let index: Value = checkpoint.json("model_index.json")?;
    let device = open(device)?;
    let id = source.id().clone();
    match index.get("_class_name").and_then(Value::as_str) {
        Some(class) if STABLE_DIFFUSION.contains(&class) => {
            Ok(Arc::new(StableDiffusion::load(id, class, &checkpoint, device)?))
        }
        Some(class) if STABLE_DIFFUSION_XL.contains(&class) => {
            Ok(Arc::new(StableDiffusionXl::load(id, &index, &checkpoint, device)?))
        }
        other => Err(Error::Unsupported {
            file: checkpoint.describe("model_index.json"),
            reason: format!(
                "`_class_name` is {other:?}; supported: {}",
                [STABLE_DIFFUSION, STABLE_DIFFUSION_XL].concat().join(", ")
            ),
        }),
    }
}

/// Classes of one family have the same components.
const STABLE_DIFFUSION: &[&str] = &[
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "LatentConsistencyModelPipeline",
    "LatentConsistencyModelImg2ImgPipeline",
];
const STABLE_DIFFUSION_XL: &[&str] = &["StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"];

fn open(spec: DeviceSpec) -> Result<Device> {
    match spec {
        DeviceSpec::Cpu => Ok(Device::Cpu),
        DeviceSpec::Cuda(_) if !candle_core::utils::cuda_is_available() => Err(Error::Device {
            device: spec.to_string(),
            reason: "this binary was built without the feature `cuda`".to_owned(),
        }),
        DeviceSpec::Cuda(number) => Device::new_cuda(number)
            .map_err(|error| Error::Device { device: spec.to_string(), reason: error.to_string() }),
    }
}
