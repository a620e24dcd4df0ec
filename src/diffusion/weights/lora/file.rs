//! One file: its header sorted by layers, and its tensors one by one.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use half::{bf16, f16};
use serde_json::{Map, Value};

use super::keys::{Key, LoraPart, LoraTarget, flat, parse};
use crate::diffusion::weights::header::{Dtype, TensorInfo, shown};
use crate::diffusion::weights::tensors::{Bytes, Shard, Weights};
use crate::diffusion::weights::{Error, Result, disk};

/// Where diffusers keeps what a LoRA was trained with.
const METADATA: &str = "lora_adapter_metadata";

/// A file whose header has been read.
pub struct LoraFile {
    name: String,
    shard: Arc<Shard>,
    /// By network and layer: the places of the parts among the file's tensors.
    layers: BTreeMap<(LoraTarget, String), BTreeMap<LoraPart, usize>>,
    trained: Trained,
    has_embeddings: bool,
}

impl std::fmt::Debug for LoraFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LoraFile({})", self.name)
    }
}

impl LoraFile {
    /// Reads a file's header. Messages call it by its name alone: clients see them.
    ///
    /// # Errors
    /// A file that is no safetensors file, or whose tensors are no LoRA's; the first such tensor is named.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self::of(disk::shard_called(path, name)?)
    }

    /// The same of a file's bytes.
    ///
    /// # Errors
    /// As [`LoraFile::open`].
    pub fn parse(name: &str, bytes: Vec<u8>) -> Result<Self> {
        Self::of(Shard::parse(name.to_owned(), Bytes::Held(bytes.into()))?)
    }

    fn of(shard: Arc<Shard>) -> Result<Self> {
        let fault = |reason: String| Error::Malformed { file: shard.file().to_owned(), reason };
        let mut layers: BTreeMap<(LoraTarget, String), BTreeMap<LoraPart, usize>> = BTreeMap::new();
        let (tensors, mut has_embeddings) = (&shard.header().tensors, false);
        for (place, tensor) in tensors.iter().enumerate() {
            let key =
                parse(&tensor.name).map_err(|reason| fault(format!("tensor `{}` {reason}", shown(&tensor.name))))?;
            let Key::Part { target, layer, part } = key else {
                has_embeddings = true;
                continue;
            };
            if let Some(first) = layers.entry((target, layer)).or_default().insert(part, place) {
                let (first, second) = (shown(&tensors[first].name), shown(&tensor.name));
                return Err(fault(format!("tensors `{first}` and `{second}` are the same part of the same layer")));
            }
        }
        if layers.is_empty() {
            return Err(fault("it has no tensors of a LoRA".to_owned()));
        }
        let trained = match shard.header().metadata.get(METADATA) {
            Some(text) => Trained::read(text).map_err(|reason| fault(format!("its `{METADATA}` {reason}")))?,
            None => Trained::default(),
        };
        Ok(Self { name: shard.file().to_owned(), shard, layers, trained, has_embeddings })
    }

    /// As messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether textual inversion embeddings came along, which are not read.
    pub fn has_embeddings(&self) -> bool {
        self.has_embeddings
    }

    /// Its tensors, to be placed on a device.
    ///
    /// # Errors
    /// None for a header that was read.
    pub fn tensors(&self, device: &Device) -> Result<LoraTensors<'_>> {
        Ok(LoraTensors { file: self, weights: Weights::open(vec![self.shard.clone()], None, device)? })
    }

    /// Its layers, and a tensor of each as the file calls it.
    pub fn layers(&self) -> impl Iterator<Item = (LoraTarget, &str, &str)> {
        let tensor =
            |parts: &BTreeMap<LoraPart, usize>| parts.values().next().map(|place| self.info(*place).name.as_str());
        self.layers
            .iter()
            .map(move |((target, layer), parts)| (*target, layer.as_str(), tensor(parts).unwrap_or_default()))
    }

    fn info(&self, place: usize) -> &TensorInfo {
        &self.shard.header().tensors[place]
    }
}

/// A file's tensors on a device.
pub struct LoraTensors<'a> {
    file: &'a LoraFile,
    weights: Weights,
}

impl<'a> LoraTensors<'a> {
    /// The parts for a layer that has these names; what the first name that is there says goes. The names are flattened: both
    /// `a.b` and `a_b` are found.
    pub fn layer(&self, target: LoraTarget, names: &[String]) -> Option<LoraLayer<'_>> {
        let found = names.iter().find_map(|name| self.file.layers.get_key_value(&(target, flat(name))))?;
        let ((_, name), parts) = found;
        Some(LoraLayer { tensors: self, target, name, parts })
    }

    /// The file.
    pub fn file(&self) -> &'a LoraFile {
        self.file
    }
}

/// What a file has for one layer.
pub struct LoraLayer<'a> {
    tensors: &'a LoraTensors<'a>,
    target: LoraTarget,
    name: &'a str,
    parts: &'a BTreeMap<LoraPart, usize>,
}

impl LoraLayer<'_> {
    /// Its name, with `_` for `.`.
    pub fn name(&self) -> &str {
        self.name
    }

    /// Whether it has this part.
    pub fn has(&self, part: LoraPart) -> bool {
        self.parts.contains_key(&part)
    }

    /// The parts it has.
    pub fn parts(&self) -> impl Iterator<Item = LoraPart> {
        self.parts.keys().copied()
    }

    fn info(&self, part: LoraPart) -> Result<&TensorInfo> {
        match self.parts.get(&part) {
            Some(place) => Ok(self.tensors.file.info(*place)),
            None => Err(self.fault(format!("lacks its part {part:?}"))),
        }
    }

    /// Side `axis` of a part, 1 where it has fewer.
    ///
    /// # Errors
    /// A part that is not there, or a side of 0.
    pub fn side(&self, part: LoraPart, axis: usize) -> Result<usize> {
        let info = self.info(part)?;
        match info.shape.get(axis).copied().unwrap_or(1) {
            0 => Err(self.fault(format!("has an empty tensor `{}`", shown(&info.name)))),
            side => Ok(side),
        }
    }

    /// One part as f32, of this shape; sides of 1 at the end, of matrices over one pixel, may be there or not.
    ///
    /// # Errors
    /// Missing, of another shape, or with numbers that cannot be used.
    pub fn get(&self, part: LoraPart, shape: &[usize]) -> Result<Tensor> {
        let info = self.info(part)?;
        if trimmed(&info.shape) != trimmed(shape) {
            return Err(Error::Misfit {
                file: self.tensors.file.name.clone(),
                tensor: shown(&info.name),
                found: info.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        let failed = |error: candle_core::Error| Error::Device {
            file: self.tensors.file.name.clone(),
            tensor: shown(&info.name),
            reason: error.to_string(),
        };
        self.tensors.weights.get(&info.name, info.shape.clone())?.reshape(shape).map_err(failed)
    }

    /// What the product is multiplied with: alpha / rank, or 1 where nothing is said of alpha (or 0, as kohya's scripts take
    /// it). What a LoRA was trained with by PEFT says it where diffusers wrote that down.
    ///
    /// # Errors
    /// An alpha that is no number.
    pub fn scaling(&self, rank: usize) -> Result<f64> {
        let Some(place) = self.parts.get(&LoraPart::Alpha) else {
            return Ok(self.tensors.file.trained.scaling(self.target, self.name, rank));
        };
        let info = self.tensors.file.info(*place);
        let bytes = &self.tensors.file.shard.bytes()[info.bytes.clone()];
        let alpha = if info.elements() == 1 { number(info.dtype, bytes) } else { None };
        match alpha.filter(|alpha| alpha.is_finite()) {
            Some(0.0) => Ok(1.0),
            Some(alpha) => Ok(alpha / rank as f64),
            None => Err(self.fault(format!("has an alpha `{}` that is no number", shown(&info.name)))),
        }
    }

    /// An error about this layer.
    pub fn fault(&self, reason: impl std::fmt::Display) -> Error {
        let (component, name) = (self.target.component(), shown(self.name));
        Error::Malformed {
            file: self.tensors.file.name.clone(),
            reason: format!("layer `{name}` of {component} {reason}"),
        }
    }
}

/// Without the sides of 1 that a convolution over one pixel has beyond a matrix.
fn trimmed(shape: &[usize]) -> &[usize] {
    match shape {
        [matrix @ .., 1, 1] if matrix.len() == 2 => matrix,
        _ => shape,
    }
}

fn number(dtype: Dtype, bytes: &[u8]) -> Option<f64> {
    match dtype {
        Dtype::F64 => Some(f64::from_le_bytes(bytes.try_into().ok()?)),
        Dtype::F32 => Some(f32::from_le_bytes(bytes.try_into().ok()?).into()),
        Dtype::F16 => Some(f16::from_le_bytes(bytes.try_into().ok()?).into()),
        Dtype::BF16 => Some(bf16::from_le_bytes(bytes.try_into().ok()?).into()),
        Dtype::I64 => Some(i64::from_le_bytes(bytes.try_into().ok()?) as f64),
        Dtype::I32 => Some(i32::from_le_bytes(bytes.try_into().ok()?).into()),
        _ => None,
    }
}

/// PEFT's configuration, by network.
#[derive(Default)]
struct Trained(HashMap<&'static str, Config>);

struct Config {
    alpha: f64,
    /// By endings of layers' names, flattened.
    alphas: Vec<(String, f64)>,
    /// Scales by the root of the rank.
    rank_stabilised: bool,
}

impl Trained {
    fn read(text: &str) -> std::result::Result<Self, String> {
        let json: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| format!("is no JSON object: {error}"))?;
        let mut found = HashMap::new();
        for target in [LoraTarget::UNet, LoraTarget::TextEncoder, LoraTarget::TextEncoder2] {
            let component = target.component();
            let get = |key: &str| json.get(&format!("{component}.{key}"));
            let Some(alpha) = get("lora_alpha").and_then(Value::as_f64) else { continue };
            let is_true = |key: &str| get(key) == Some(&Value::Bool(true));
            if is_true("use_dora") {
                return Err("says it is a DoRA; LoRA, LoCon, LoHa and LoKr are supported".to_owned());
            }
            let mut alphas = Vec::new();
            for (pattern, alpha) in get("alpha_pattern").and_then(Value::as_object).into_iter().flatten() {
                let name = pattern.trim_start_matches('^');
                let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "._".contains(c));
                match alpha.as_f64() {
                    Some(alpha) if is_plain => alphas.push((flat(name), alpha)),
                    _ => return Err(format!("has an alpha for `{}`, which is no layer's name", shown(pattern))),
                }
            }
            found.insert(component, Config { alpha, alphas, rank_stabilised: is_true("use_rslora") });
        }
        Ok(Self(found))
    }

    fn scaling(&self, target: LoraTarget, layer: &str, rank: usize) -> f64 {
        let Some(config) = self.0.get(target.component()) else { return 1.0 };
        let ends = |name: &str| layer.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('_'));
        let own = config.alphas.iter().find(|(name, _)| ends(name)).map(|(_, alpha)| *alpha);
        let rank = rank as f64;
        own.unwrap_or(config.alpha) / if config.rank_stabilised { rank.sqrt() } else { rank }
    }
}
