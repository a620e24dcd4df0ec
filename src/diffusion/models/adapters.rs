//! LoRA and its kin: what is added to a network's layers, of which the weights stay as they are.
//!
//! A low-rank term is computed beside its layer, `y = layer(x) + scale * up(down(x))`, as PEFT does where nothing is merged. LoHa
//! and LoKr are multiplied out into a term of the layer's own size. Nothing is ever subtracted again: a network without
//! adapters is another copy of the layers, over the same weights. Terms are multiplied out in f32 and then held in the dtype of
//! their layer.

use std::collections::BTreeSet;

use candle_core::{DType, Device, Tensor};

use super::Result;
use super::layers::{Conv2d, Linear, Sides, Window};
use crate::diffusion::weights::{LoraLayer, LoraPart, LoraTarget, LoraTensors, NameMap};

/// A layer that adapters may change.
#[derive(Debug)]
pub enum LayerMut<'a> {
    /// A product.
    Linear(&'a mut Linear),
    /// A convolution.
    Conv2d(&'a mut Conv2d),
}

/// Is shown one layer after the other.
pub type Visit<'a> = &'a mut dyn FnMut(LayerMut<'_>) -> Result<()>;

/// A network whose layers adapters may change. Copies share the weights.
pub trait Adaptable: Clone {
    /// Shows each layer. An error ends it.
    ///
    /// # Errors
    /// The visitor's own.
    fn each_layer(&mut self, visit: Visit<'_>) -> Result<()>;

    /// The original code's names of its layers, which some LoRAs have.
    fn original_names(&self) -> NameMap {
        NameMap::default()
    }
}

/// What was added.
#[derive(Debug, Default)]
pub struct Applied {
    /// The file's layers that found one in the network, as [`crate::diffusion::weights::LoraFile::layers`] calls them.
    pub layers: BTreeSet<(LoraTarget, String)>,
    /// What the added tensors take.
    pub bytes: usize,
}

/// Adds a LoRA, times `scale`, to those layers of a network that it has something for.
///
/// # Errors
/// A tensor of it that does not fit its layer, by its name.
pub fn adapt(
    network: &mut impl Adaptable,
    (lora, target): (&LoraTensors<'_>, LoraTarget),
    scale: f64,
    device: &Device,
) -> Result<Applied> {
    let (original, mut applied) = (network.original_names(), Applied::default());
    network.each_layer(&mut |mut layer| {
        let names = names(layer.name(), &original);
        let Some(found) = lora.layer(target, &names) else { return Ok(()) };
        let term = Builder { lora: &found, layer: &layer.shape(), scale, device, dtype: layer.dtype() };
        applied.bytes += term.add_to(&mut layer)?;
        applied.layers.insert((target, found.name().to_owned()));
        Ok(())
    })?;
    Ok(applied)
}

/// What LoRAs may call a layer: with and without `text_model.`, which transformers wrote at some times only, and as the
/// original code does.
fn names(own: &str, original: &NameMap) -> Vec<String> {
    let short = own.strip_prefix("text_model.").unwrap_or(own);
    let mut names = vec![own.to_owned(), short.to_owned(), format!("text_model.{short}")];
    names.extend(original.find(own).map(|(name, _)| name));
    names
}

/// A layer's shape: a product is taken for a convolution over one pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    sides: Sides,
    window: Window,
}

impl LayerMut<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Linear(linear) => linear.name(),
            Self::Conv2d(conv) => conv.name(),
        }
    }

    fn dtype(&self) -> DType {
        match self {
            Self::Linear(linear) => linear.dtype(),
            Self::Conv2d(conv) => conv.dtype(),
        }
    }

    fn shape(&self) -> Shape {
        match self {
            Self::Linear(linear) => Shape { sides: linear.sides(), window: Window::PIXEL },
            Self::Conv2d(conv) => Shape { sides: conv.sides(), window: conv.window() },
        }
    }
}

/// Makes a term of a file's tensors.
struct Builder<'a> {
    lora: &'a LoraLayer<'a>,
    layer: &'a Shape,
    scale: f64,
    device: &'a Device,
    /// Of the layer.
    dtype: DType,
}

impl Builder<'_> {
    /// Adds the term, and says how many bytes it takes.
    fn add_to(&self, layer: &mut LayerMut<'_>) -> Result<usize> {
        let has = |part| self.lora.has(part);
        let any = |parts: &[LoraPart]| parts.iter().any(|part| has(*part));
        let kinds = [
            any(&[LoraPart::Down, LoraPart::Up, LoraPart::Mid, LoraPart::UpBias]),
            any(&[
                LoraPart::HadaW1A,
                LoraPart::HadaW1B,
                LoraPart::HadaW2A,
                LoraPart::HadaW2B,
                LoraPart::HadaT1,
                LoraPart::HadaT2,
            ]),
            any(&[
                LoraPart::LokrW1,
                LoraPart::LokrW1A,
                LoraPart::LokrW1B,
                LoraPart::LokrW2,
                LoraPart::LokrW2A,
                LoraPart::LokrW2B,
                LoraPart::LokrT2,
            ]),
        ];
        match kinds {
            [true, false, false] => self.low_rank(layer),
            [false, true, false] => self.whole(layer, &self.hadamard()?),
            [false, false, true] => self.whole(layer, &self.kronecker()?),
            [false, false, false] => Err(self.lora.fault("has an alpha and nothing else").into()),
            _ => Err(self.lora.fault("mixes the parts of LoRA, LoHa and LoKr").into()),
        }
    }

    /// LoRA and LoCon. PEFT computes them in this order too.
    fn low_rank(&self, layer: &mut LayerMut<'_>) -> Result<usize> {
        let Shape { sides: Sides { inputs, outputs }, window } = *self.layer;
        let (lora, k) = (self.lora, window.kernel);
        let rank = lora.side(LoraPart::Down, 0)?;
        let scale = lora.scaling(rank)? * self.scale;
        let has_mid = lora.has(LoraPart::Mid);
        let inner = if has_mid { lora.side(LoraPart::Mid, 0)? } else { rank };
        let down_k = if has_mid { 1 } else { k };
        let down = lora.get(LoraPart::Down, &[rank, inputs, down_k, down_k])?;
        let mid = has_mid.then(|| lora.get(LoraPart::Mid, &[inner, rank, k, k])).transpose()?;
        let up = lora.get(LoraPart::Up, &[outputs, inner, 1, 1])?;
        let bias = match lora.has(LoraPart::UpBias) {
            true => lora.get(LoraPart::UpBias, &[outputs])?,
            false => self.zeros(outputs)?,
        };
        let bytes = [Some(&down), mid.as_ref(), Some(&up)].into_iter().flatten().map(|tensor| self.size(tensor)).sum();
        if self.scale == 0.0 {
            return Ok(0);
        }
        match layer {
            LayerMut::Linear(linear) => {
                let up = up.reshape((outputs, inner))?;
                // A middle over one pixel is a matrix more.
                let mid = mid.map(|mid| mid.reshape((inner, rank))).transpose()?;
                let up = mid.map_or(Ok(up.clone()), |mid| up.matmul(&mid))?;
                let (down, up) = (self.rounded(&down.reshape((rank, inputs))?)?, self.rounded(&up)?);
                linear.add_low_rank(down, (up, self.rounded(&bias)?), scale)?;
            }
            LayerMut::Conv2d(conv) => {
                let mid = mid.map(|mid| self.rounded(&mid)).transpose()?;
                let (down, up) = (self.rounded(&down)?, self.rounded(&up)?);
                conv.add_low_rank((down, mid), (up, self.rounded(&bias)?), scale)?;
            }
        }
        Ok(bytes)
    }

    /// LoHa: the product, number by number, of two low-rank matrices (LyCORIS `functional/loha.py`): (outputs, inputs k k).
    fn hadamard(&self) -> Result<Tensor> {
        let rank = self.lora.side(LoraPart::HadaW1B, 0)?;
        let scale = self.lora.scaling(rank)? * self.scale;
        let one = self.hadamard_half([LoraPart::HadaW1A, LoraPart::HadaW1B, LoraPart::HadaT1])?;
        let two = self.hadamard_half([LoraPart::HadaW2A, LoraPart::HadaW2B, LoraPart::HadaT2])?;
        Ok(((one * two)? * scale)?)
    }

    fn hadamard_half(&self, [a, b, t]: [LoraPart; 3]) -> Result<Tensor> {
        let Shape { sides: Sides { inputs, outputs }, window: Window { kernel: k, .. } } = *self.layer;
        let rank = self.lora.side(b, 0)?;
        if self.lora.has(t) {
            let core = self.lora.get(t, &[rank, rank, k, k])?;
            let (a, b) = (self.lora.get(a, &[rank, outputs])?, self.lora.get(b, &[rank, inputs])?);
            return tucker(&core, &a, &b);
        }
        Ok(self.lora.get(a, &[outputs, rank])?.matmul(&self.wide(b, rank, inputs)?)?)
    }

    /// LoKr: the Kronecker product of two matrices, each whole or of two factors (LyCORIS `functional/lokr.py`): (outputs,
    /// inputs k k).
    fn kronecker(&self) -> Result<Tensor> {
        let (lora, k) = (self.lora, self.layer.window.kernel);
        let Sides { inputs, outputs } = self.layer.sides;
        let is_whole = [lora.has(LoraPart::LokrW1), lora.has(LoraPart::LokrW2)];
        let (a, c) = match is_whole[0] {
            true => (lora.side(LoraPart::LokrW1, 0)?, lora.side(LoraPart::LokrW1, 1)?),
            false => (lora.side(LoraPart::LokrW1A, 0)?, lora.side(LoraPart::LokrW1B, 1)?),
        };
        if outputs % a != 0 || inputs % c != 0 {
            let reason =
                format!("has a first matrix of {a} by {c}, which does not divide the layer's {outputs} by {inputs}");
            return Err(lora.fault(reason).into());
        }
        let (b, d) = (outputs / a, inputs / c);
        let mut rank = None;
        let one = match is_whole[0] {
            true => lora.get(LoraPart::LokrW1, &[a, c])?,
            false => {
                let r = *rank.insert(lora.side(LoraPart::LokrW1B, 0)?);
                lora.get(LoraPart::LokrW1A, &[a, r])?.matmul(&lora.get(LoraPart::LokrW1B, &[r, c])?)?
            }
        };
        let two = match is_whole[1] {
            true => lora.get(LoraPart::LokrW2, &[b, d, k, k])?.reshape((b, d * k * k))?,
            false => {
                let r = *rank.insert(lora.side(LoraPart::LokrW2B, 0)?);
                if lora.has(LoraPart::LokrT2) {
                    let core = lora.get(LoraPart::LokrT2, &[r, r, k, k])?;
                    tucker(&core, &lora.get(LoraPart::LokrW2A, &[r, b])?, &lora.get(LoraPart::LokrW2B, &[r, d])?)?
                } else {
                    lora.get(LoraPart::LokrW2A, &[b, r])?.matmul(&self.wide(LoraPart::LokrW2B, r, d)?)?
                }
            }
        };
        // Two whole matrices have no rank, and their alpha says nothing.
        let scale = rank.map_or(Ok(1.0), |rank| lora.scaling(rank))? * self.scale;
        let product = one.reshape((a, 1, c, 1))?.broadcast_mul(&two.reshape((1, b, 1, d * k * k))?)?;
        Ok((product.reshape((outputs, inputs * k * k))? * scale)?)
    }

    /// A factor over (inputs, k, k), which files store flat or not: (rank, inputs k k).
    fn wide(&self, part: LoraPart, rank: usize, inputs: usize) -> Result<Tensor> {
        let k = self.layer.window.kernel;
        let is_flat = self.lora.side(part, 1)? == inputs * k * k;
        let shape = if is_flat { vec![rank, inputs * k * k] } else { vec![rank, inputs, k, k] };
        Ok(self.lora.get(part, &shape)?.reshape((rank, inputs * k * k))?)
    }

    /// weight: (outputs, inputs k k).
    fn whole(&self, layer: &mut LayerMut<'_>, weight: &Tensor) -> Result<usize> {
        if self.scale == 0.0 {
            return Ok(0);
        }
        let Shape { sides: Sides { inputs, outputs }, window: Window { kernel: k, .. } } = *self.layer;
        let weight = self.rounded(weight)?;
        match layer {
            LayerMut::Linear(linear) => linear.add_whole(weight.clone())?,
            LayerMut::Conv2d(conv) => conv.add_whole(weight.reshape((outputs, inputs, k, k))?)?,
        }
        Ok(self.size(&weight))
    }

    /// A finished part of the term, as the layer holds it.
    fn rounded(&self, part: &Tensor) -> Result<Tensor> {
        if self.dtype != DType::F32 {
            // Rounding keeps the order: where the greatest is finite, all are.
            let greatest = part.abs()?.max_all()?;
            let rounded = greatest.to_dtype(self.dtype)?.to_dtype(DType::F32)?.to_scalar::<f32>()?;
            if rounded.is_infinite() {
                let (value, dtype) = (greatest.to_scalar::<f32>()?, self.dtype.as_str());
                return Err(self.lora.fault(format!("comes to {value}, which {dtype} cannot hold; f32 can")).into());
            }
        }
        Ok(part.to_dtype(self.dtype)?)
    }

    /// What a part takes once it is rounded, in bytes.
    fn size(&self, part: &Tensor) -> usize {
        part.elem_count() * self.dtype.size_in_bytes()
    }

    fn zeros(&self, count: usize) -> Result<Tensor> {
        Ok(Tensor::zeros(count, DType::F32, self.device)?)
    }
}

/// Tucker's decomposition of a convolution: core (r, s, k, k), a (r, p), b (s, q) -> (p, q k k).
fn tucker(core: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (r, s, k, _) = core.dims4()?;
    let (p, q) = (a.dim(1)?, b.dim(1)?);
    let by_a = a.t()?.matmul(&core.reshape((r, s * k * k))?)?.reshape((p, s, k * k))?;
    let by_both = by_a.transpose(1, 2)?.contiguous()?.reshape((p * k * k, s))?.matmul(b)?;
    Ok(by_both.reshape((p, k * k, q))?.transpose(1, 2)?.contiguous()?.reshape((p, q * k * k))?)
}
