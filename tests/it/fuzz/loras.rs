//! The reader of LoRA files: real ones with a few of their tensors spoilt, and names made of plausible parts. What is read is put
//! on a real network too.

use std::collections::BTreeMap;

use candle_core::Device;
use darkroom::diffusion::models::adapters::adapt;
use darkroom::diffusion::models::unets::{UNet2DConditionConfig, UNet2DConditionModel};
use darkroom::diffusion::weights::{Checkpoint, LoraFile, LoraTarget};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use safetensors::tensor::Dtype;

use super::runner;
use crate::support::drafts::fixtures;
use crate::support::single_files::{Stored, bytes, read};

type Tensors = BTreeMap<String, Stored>;

/// What may happen to one tensor of a file.
#[derive(Clone, Debug)]
enum Injury {
    Remove(Index),
    /// A letter of its name becomes another.
    Respell(Index, Index, char),
    /// Its ending becomes another.
    Become(Index, &'static str),
    /// Its sides change places, one is left out, one more is put in, or one becomes nothing.
    Reshape(Index, u8),
    /// Its numbers become these bytes.
    Fill(Index, u8),
}

const ENDINGS: [&str; 24] = [
    ".lora_down.weight",
    ".lora_up.weight",
    ".lora_mid.weight",
    ".lora_A.weight",
    ".lora_B.weight",
    ".lora_B.bias",
    "_lora.down.weight",
    ".lora.up.weight",
    ".lora_linear_layer.down.weight",
    ".alpha",
    ".hada_w1_a",
    ".hada_w1_b",
    ".hada_w2_a",
    ".hada_w2_b",
    ".hada_t1",
    ".hada_t2",
    ".lokr_w1",
    ".lokr_w1_a",
    ".lokr_w1_b",
    ".lokr_w2",
    ".lokr_w2_a",
    ".lokr_w2_b",
    ".lokr_t2",
    ".dora_scale",
];

fn injury() -> impl Strategy<Value = Injury> {
    let at = any::<Index>;
    prop_oneof![
        at().prop_map(Injury::Remove),
        (at(), at(), prop::char::range('\0', 'z')).prop_map(|(tensor, place, to)| Injury::Respell(tensor, place, to)),
        (at(), select(ENDINGS.to_vec())).prop_map(|(tensor, ending)| Injury::Become(tensor, ending)),
        (at(), any::<u8>()).prop_map(|(tensor, how)| Injury::Reshape(tensor, how)),
        (at(), any::<u8>()).prop_map(|(tensor, byte)| Injury::Fill(tensor, byte)),
    ]
}

impl Injury {
    fn apply(&self, tensors: &mut Tensors) {
        let pick = |at: &Index, tensors: &Tensors| at.get(&tensors.keys().cloned().collect::<Vec<_>>()).clone();
        if tensors.is_empty() {
            return;
        }
        match self {
            Self::Remove(at) => drop(tensors.remove(&pick(at, tensors))),
            Self::Respell(at, place, to) => {
                let name = pick(at, tensors);
                let mut letters: Vec<char> = name.chars().collect();
                if !letters.is_empty() {
                    let place = place.index(letters.len());
                    letters[place] = *to;
                }
                let tensor = tensors.remove(&name).unwrap();
                tensors.insert(letters.into_iter().collect(), tensor);
            }
            Self::Become(at, ending) => {
                let name = pick(at, tensors);
                let layer = name.split('.').next().unwrap_or_default().to_owned();
                let tensor = tensors.remove(&name).unwrap();
                tensors.insert(format!("{layer}{ending}"), tensor);
            }
            Self::Reshape(at, how) => {
                let name = pick(at, tensors);
                let stored = tensors.get_mut(&name).unwrap();
                match how % 5 {
                    0 => stored.shape.reverse(),
                    1 => stored.shape.push(1),
                    2 => stored.shape.insert(0, 1),
                    3 => stored.shape = vec![stored.shape.iter().product()],
                    _ => {
                        stored.shape.push(0);
                        stored.bytes.clear();
                    }
                }
            }
            Self::Fill(at, byte) => {
                let name = pick(at, tensors);
                tensors.get_mut(&name).unwrap().bytes.fill(*byte);
            }
        }
    }
}

fn unet() -> UNet2DConditionModel {
    let checkpoint = Checkpoint::Folder(fixtures().join("tiny-sd"));
    let config = UNet2DConditionConfig::parse(checkpoint.json("unet/config.json").unwrap()).unwrap();
    UNet2DConditionModel::load(config, &checkpoint.weights("unet", &Device::Cpu).unwrap()).unwrap()
}

/// Reads a file and puts it on the network: done, or refused by the file's name. What is put on it takes no more memory than the
/// network's own layers and the file.
fn read_and_put(bytes: Vec<u8>, unet: &UNet2DConditionModel) -> Result<bool, TestCaseError> {
    let size = bytes.len();
    let told = |error: String| {
        prop_assert!(error.contains("spoilt.safetensors"), "{error}");
        prop_assert!(!error.contains('\n') && error.len() < 2_000, "{error}");
        Ok(false)
    };
    let lora = match LoraFile::parse("spoilt.safetensors", bytes) {
        Ok(lora) => lora,
        Err(error) => return told(error.to_string()),
    };
    let tensors = lora.tensors(&Device::Cpu).map_err(|error| TestCaseError::fail(error.to_string()))?;
    match adapt(&mut unet.clone(), (&tensors, LoraTarget::UNet), 1.0, &Device::Cpu) {
        Ok(added) => {
            prop_assert!(added.bytes < 4 * size + (4 << 20), "{} bytes of {size}", added.bytes);
            Ok(true)
        }
        Err(error) => told(error.to_string()),
    }
}

#[test]
fn a_spoilt_lora_is_read_or_refused_by_name() {
    let names = ["sd-kohya", "sd-peft", "sd-processors", "sd-locon", "sd-loha", "sd-lokr"];
    let whole = names.map(|name| read(&fixtures().join(format!("loras/{name}.safetensors"))));
    let (unet, taken) = (unet(), std::cell::Cell::new([0u32; 2]));
    runner(600)
        .run(&(any::<Index>(), vec(injury(), 0..4)), |(file_at, injuries)| {
            let mut tensors = file_at.get(&whole).clone();
            injuries.iter().for_each(|injury| injury.apply(&mut tensors));
            let is_read = read_and_put(bytes(&tensors), &unet)?;
            prop_assert!(is_read || !injuries.is_empty(), "a whole file");
            let mut counts = taken.get();
            counts[usize::from(is_read)] += 1;
            taken.set(counts);
            Ok(())
        })
        .unwrap();
    assert!(taken.get().iter().all(|count| *count > 20), "both happen: {:?}", taken.get());
}

/// Names made of plausible parts, with shapes that may fit one another.
#[test]
fn plausible_tensors_are_read_or_refused_by_name() {
    let layers = [
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q",
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_down_blocks_0_resnets_0_conv1",
        "base_model.model.conv_in",
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
        "",
        ".",
        "lora_unet_",
    ];
    let side = || select(vec![0usize, 1, 2, 4, 16, 17, 144]);
    let dtype = select(vec![Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::I64, Dtype::F64, Dtype::U8]);
    let tensor = (select(layers.to_vec()), select(ENDINGS.to_vec()), vec(side(), 0..5), dtype, any::<u8>());
    let unet = unet();
    runner(1_000)
        .run(&vec(tensor, 1..7), |parts| {
            let mut tensors = Tensors::new();
            for (layer, ending, shape, dtype, byte) in parts {
                let size = shape.iter().product::<usize>() * dtype.bitsize() / 8;
                // Several sides of 144 make what no file here is.
                if size < 1 << 20 {
                    tensors.insert(format!("{layer}{ending}"), Stored { dtype, shape, bytes: vec![byte; size] });
                }
            }
            read_and_put(bytes(&tensors), &unet).map(drop)
        })
        .unwrap();
}

#[test]
fn noise_is_no_lora() {
    let unet = unet();
    runner(1_000)
        .run(&vec(any::<u8>(), 0..200), |bytes| {
            prop_assert!(!read_and_put(bytes, &unet)?);
            Ok(())
        })
        .unwrap();
}
