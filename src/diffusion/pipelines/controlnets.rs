//! ControlNets: those a folder holds, loaded on first use, and what they add to the rows of a forward.

use std::any::Any;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, DeviceLocation, Tensor};

use super::{Error, Extra, Released, Result, StepInputs};
use crate::diffusion::models::unets::{
    ControlNetConfig, ControlNetModel, ControlNetOutput, UNet2DConditionConfig, UNetInputs, UNetResiduals,
};
use crate::diffusion::weights::Checkpoint;
use crate::domain::{ControlNetInfo, LatentSpace, ModelInfo};
use crate::images::RgbImage;

/// A ControlNet on a device, in the dtype of the network that it controls.
#[derive(Debug)]
pub struct ControlNet {
    model: ControlNetModel,
    fingerprint: String,
    bytes: u64,
    device: Device,
}

impl ControlNet {
    /// What it makes of a picture of the size that is drawn, whatever the step: computed once, used at each of them.
    ///
    /// # Errors
    /// What the tensor library cannot do.
    pub fn embed(&self, picture: &RgbImage) -> Result<Tensor> {
        let values: Vec<f32> = picture.pixels().iter().map(|byte| f32::from(*byte) / 255.0).collect();
        let shape = (1, picture.height() as usize, picture.width() as usize, 3);
        let pixels = Tensor::from_vec(values, shape, &self.device)?.permute((0, 3, 1, 2))?.contiguous()?;
        Ok(self.model.embed(&pixels)?)
    }

    /// [`Weights::fingerprint`] of its file and dtype.
    ///
    /// [`Weights::fingerprint`]: crate::diffusion::weights::Weights::fingerprint
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Whether the unconditional row of guidance goes without it, as diffusers has it for networks that add means alone.
    pub fn is_for_prompt_alone(&self) -> bool {
        self.model.config().pools()
    }
}

/// One picture that controls a row, at one step.
#[derive(Clone, Debug)]
pub struct Control {
    /// Which network.
    pub net: Arc<ControlNet>,
    /// By [`ControlNet::embed`].
    pub embedded: Tensor,
    /// How much of what the network says is added; not 0.
    pub scale: f64,
}

/// The ControlNets of a folder. Its configurations are read when it is opened, weights when somebody asks for them; the
/// networks used last stay in memory. Cloning is cheap, and clones share what is loaded.
#[derive(Clone, Default)]
pub struct ControlNets(Arc<Folder>);

#[derive(Default)]
struct Folder {
    found: Vec<Found>,
    /// Networks that stay in memory on each device.
    most: usize,
    /// The one used last is the last.
    kept: Mutex<Vec<Kept>>,
}

struct Found {
    name: String,
    checkpoint: Checkpoint,
    /// As the checkpoint calls it.
    component: String,
    config: ControlNetConfig,
}

struct Kept {
    name: String,
    device: DeviceLocation,
    dtype: DType,
    /// Held while it is loaded, so that whoever wants the same waits, and nobody else.
    net: Arc<Mutex<Option<Arc<ControlNet>>>>,
}

impl Kept {
    /// Whether anybody has the network beside the list of those that are kept, or waits for it.
    fn is_used(&self) -> bool {
        let has_net = |net: &Option<Arc<ControlNet>>| net.as_ref().is_some_and(|net| Arc::strong_count(net) > 1);
        Arc::strong_count(&self.net) > 1 || self.net.try_lock().map_or(true, |net| has_net(&net))
    }
}

impl std::fmt::Debug for ControlNets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.found.iter().map(|found| &found.name)).finish()
    }
}

impl PartialEq for ControlNets {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.found.is_empty() && other.0.found.is_empty()
    }
}

impl ControlNets {
    /// Those of a folder: each folder within that has a `config.json` of a ControlNet is one, and each safetensors file in the
    /// names of the original code; the folder's or file's name is the network's. One that cannot be read, or comes after another
    /// of its name, is logged and left out. `most` of them stay in memory on each device.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn open(folder: &Path, most: usize) -> std::result::Result<Self, String> {
        let entries =
            std::fs::read_dir(folder).map_err(|error| format!("cannot read {}: {error}", folder.display()))?;
        let mut names: Vec<String> =
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        let mut found: Vec<Found> = Vec::new();
        for name in names.into_iter().filter(|name| !name.starts_with('.')) {
            let read = Found::in_folder(folder, &name).or_else(|| Found::in_file(folder, &name));
            match read {
                None => {}
                Some(Ok(one)) if found.iter().any(|other| other.name == one.name) => {
                    tracing::warn!(path = %folder.join(&name).display(), "a ControlNet of this name is there already");
                }
                Some(Ok(one)) => found.push(one),
                Some(Err(error)) => tracing::warn!(%error, "no ControlNet"),
            }
        }
        Ok(Self(Arc::new(Folder { found, most: most.max(1), kept: Mutex::default() })))
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.found.iter().map(|found| found.name.as_str())
    }

    /// Each with why it does not fit a model with this U-Net and these latents.
    pub(super) fn for_model(&self, unet: &UNet2DConditionConfig, latents: &LatentSpace) -> Vec<ControlNetInfo> {
        let about = |found: &Found| ControlNetInfo {
            name: found.name.clone(),
            misfit: found.config.misfit(unet, latents.channels as usize, latents.factor as usize),
        };
        self.0.found.iter().map(about).collect()
    }

    /// The one of this name on a model's device, in its network's dtype; loaded if it is not there.
    pub(super) fn get_for(
        &self,
        name: &str,
        model: &ModelInfo,
        (device, dtype): (&Device, DType),
    ) -> Result<Arc<ControlNet>> {
        let fault = |reason: String| Error::Unsupported { file: format!("ControlNet `{name}`"), reason };
        let found = self.0.found.iter().find(|found| found.name == name);
        let found = found.ok_or_else(|| fault("there is none of that name".to_owned()))?;
        let misfit = model.controlnets.iter().find(|net| net.name == name).and_then(|net| net.misfit.clone());
        if let Some(misfit) = misfit {
            return Err(fault(format!("it does not fit model `{}`: {misfit}", model.id)));
        }
        let slot = self.slot(name, (device.location(), dtype));
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(net) = &*slot {
            return Ok(net.clone());
        }
        let net = Arc::new(found.load(device, dtype)?);
        *slot = Some(net.clone());
        Ok(net)
    }

    /// What those in the memory of a device take; one that is being loaded is not counted.
    pub(super) fn bytes(&self, device: &Device) -> Extra {
        let (kept, mut extra) = (self.0.kept.lock().unwrap_or_else(PoisonError::into_inner), Extra::default());
        for one in kept.iter().filter(|one| one.device == device.location()) {
            let bytes = one.net.try_lock().ok().and_then(|net| net.as_ref().map(|net| net.bytes));
            extra.count(bytes.unwrap_or(0), one.is_used());
        }
        extra
    }

    /// Lets go of those on a device that no job uses or waits for.
    pub(super) fn release(&self, device: &Device) -> Released {
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let unused = kept.extract_if(.., |one| one.device == device.location() && !one.is_used());
        unused.map(|one| one.net as Arc<dyn Any + Send + Sync>).collect()
    }

    /// Where the network is or will be; whichever was used longest ago makes room for it.
    fn slot(&self, name: &str, (device, dtype): (DeviceLocation, DType)) -> Arc<Mutex<Option<Arc<ControlNet>>>> {
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |one: &Kept| one.name == name && one.device == device && one.dtype == dtype;
        let known = kept.iter().position(is_it);
        let one = match known {
            Some(at) => kept.remove(at),
            None => Kept { name: name.to_owned(), device, dtype, net: Arc::default() },
        };
        let slot = one.net.clone();
        kept.push(one);
        let here = kept.iter().filter(|one| one.device == device).count();
        if here > self.0.most
            && let Some(oldest) = kept.iter().position(|one| one.device == device)
        {
            kept.remove(oldest);
        }
        slot
    }
}

impl Found {
    /// `None` where it is no folder with a configuration.
    fn in_folder(folder: &Path, name: &str) -> Option<Result<Self>> {
        let has = folder.join(name).join("config.json").is_file();
        has.then(|| Self::read(name, name, Checkpoint::Folder(folder.to_owned())))
    }

    /// `None` where it is no file with an ending of weights.
    fn in_file(folder: &Path, name: &str) -> Option<Result<Self>> {
        let path = folder.join(name);
        let ending = path.extension()?.to_string_lossy().to_ascii_lowercase();
        let is_one = path.is_file() && ["safetensors", "ckpt", "pt", "pth"].contains(&ending.as_str());
        let stem = path.file_stem()?.to_string_lossy();
        let read = || Self::read(&stem, "", Checkpoint::controlnet_file(&path)?);
        is_one.then(read)
    }

    fn read(name: &str, component: &str, checkpoint: Checkpoint) -> Result<Self> {
        let file = if component.is_empty() { "config.json".to_owned() } else { format!("{component}/config.json") };
        let json: serde_json::Value = checkpoint.json(&file)?;
        let class = json["_class_name"].as_str().unwrap_or("ControlNetModel");
        if class != "ControlNetModel" {
            let reason = format!("`_class_name` is {class}; supported: ControlNetModel");
            return Err(Error::Unsupported { file: checkpoint.describe(&file), reason });
        }
        let config = ControlNetConfig::parse(&json)
            .map_err(|source| Error::Network { file: checkpoint.describe(component), source: Box::new(source) })?;
        Ok(Self { name: name.to_owned(), checkpoint, component: component.to_owned(), config })
    }

    fn load(&self, device: &Device, dtype: DType) -> Result<ControlNet> {
        let within =
            |source| Error::Network { file: self.checkpoint.describe(&self.component), source: Box::new(source) };
        let weights = self.checkpoint.weights(&self.component, device)?.in_dtype(dtype);
        let model = ControlNetModel::load(self.config.clone(), &weights).map_err(within)?;
        tracing::info!(controlnet = %self.name, device = ?device.location(), dtype = dtype.as_str(), "ControlNet loaded");
        Ok(ControlNet {
            model,
            fingerprint: weights.fingerprint(),
            bytes: weights.bytes_read(),
            device: device.clone(),
        })
    }
}

/// What the controls of the rows add to the U-Net's maps; `None` where no row has any. Rows of one network share its forward;
/// a row's controls are added up in their own order, so that its sum is the same in every batch.
///
/// `told`: what the U-Net is told. ControlNets are shown the latents alone, whatever inpainting checkpoints are shown below.
pub(super) fn residuals(inputs: &StepInputs<'_>, told: &UNetInputs<'_>) -> Result<Option<UNetResiduals>> {
    let controlled: Vec<usize> = (0..inputs.rows.len()).filter(|at| !inputs.rows[*at].controls.is_empty()).collect();
    if controlled.is_empty() {
        return Ok(None);
    }
    // By network: its rows, each of which is a row of the forward with one of that row's controls.
    let mut nets: Vec<(&ControlNet, Vec<(usize, &Control)>)> = Vec::new();
    // By controlled row: for each of its controls the network, and which of that network's rows.
    let mut parts: Vec<Vec<(usize, usize)>> = Vec::new();
    for at in &controlled {
        let mut part = Vec::new();
        for control in inputs.rows[*at].controls {
            let net = nets.iter().position(|(net, _)| std::ptr::eq(*net, control.net.as_ref()));
            let net = net.unwrap_or_else(|| {
                nets.push((&control.net, Vec::new()));
                nets.len() - 1
            });
            part.push((net, nets[net].1.len()));
            nets[net].1.push((*at, control));
        }
        parts.push(part);
    }
    let evaluated = nets.iter().map(|(net, rows)| evaluate(net, rows, inputs.latents, told));
    let outputs = evaluated.collect::<Result<Vec<_>>>()?;
    let summed = |map: &dyn Fn(&ControlNetOutput) -> &Tensor| -> Result<Tensor> {
        let rows = parts.iter().map(|part| {
            let mut addends = part.iter().map(|(net, row)| map(&outputs[*net]).narrow(0, *row, 1));
            let first = addends.next().expect("a controlled row has a control. This is a bug in pipelines.")?;
            addends.try_fold(first, |sum, addend| sum + addend?)
        });
        Ok(Tensor::cat(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)?)
    };
    let rows: Vec<u32> = controlled.iter().map(|at| *at as u32).collect();
    Ok(Some(UNetResiduals {
        rows: Tensor::from_vec(rows, controlled.len(), inputs.latents.device())?,
        down: (0..outputs[0].down.len()).map(|k| summed(&|output| &output.down[k])).collect::<Result<_>>()?,
        mid: summed(&|output| &output.mid)?,
    }))
}

/// One network's forward, of these rows of the evaluation.
fn evaluate(
    net: &ControlNet,
    rows: &[(usize, &Control)],
    latents: &Tensor,
    told: &UNetInputs<'_>,
) -> Result<ControlNetOutput> {
    let at: Vec<u32> = rows.iter().map(|(at, _)| *at as u32).collect();
    let at = Tensor::from_vec(at, rows.len(), latents.device())?;
    let pick = |x: &Tensor| x.index_select(&at, 0);
    let timesteps: Vec<f64> = rows.iter().map(|(at, _)| told.timesteps[*at]).collect();
    let added = told.added.map(|(pooled, time_ids)| {
        let time_ids: Vec<&[f64]> = rows.iter().map(|(at, _)| time_ids[*at]).collect();
        pick(pooled).map(|pooled| (pooled, time_ids))
    });
    let added = added.transpose()?;
    let embedded: Vec<&Tensor> = rows.iter().map(|(_, control)| &control.embedded).collect();
    let scales: Vec<f64> = rows.iter().map(|(_, control)| control.scale).collect();
    let inputs = UNetInputs {
        latents: &pick(latents)?,
        timesteps: &timesteps,
        hidden_states: &pick(told.hidden_states)?,
        added: added.as_ref().map(|(pooled, time_ids)| (pooled, time_ids.as_slice())),
        guidance_scales: None,
        residuals: None,
    };
    Ok(net.model.forward(&inputs, &Tensor::cat(&embedded, 0)?, &scales)?)
}
