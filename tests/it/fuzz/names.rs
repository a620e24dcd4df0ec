//! The readers of checkpoints and of ControlNets in one file: names and shapes of real ones with a few of them spoilt.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Device;
use darkroom::diffusion::models::unets::{ControlNetConfig, ControlNetModel};
use darkroom::diffusion::pipelines::{self, ModelSource};
use darkroom::diffusion::weights::{Checkpoint, Dtype, Header, Layout, TensorInfo};
use darkroom::domain::DeviceSpec;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::runner;
use crate::support::drafts::fixtures;
use crate::support::single_files::{Stored, read_folder, table, write};

/// What may happen to one tensor of a file.
#[derive(Clone, Debug)]
enum Damage {
    Remove(Index),
    /// A number in its name becomes another.
    Renumber(Index, Index, u64),
    /// A letter of its name becomes another.
    Respell(Index, Index, char),
    /// Its sides change places, or one is left out, or one more is put in.
    Reshape(Index, u8),
    /// All tensors whose names begin so go, or get another beginning.
    Module(Index, usize, Option<String>),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<Index>;
    let numbers = prop_oneof![0u64..12, Just(999), Just(u64::MAX)];
    let beginning = prop::option::of(prop::sample::select(vec![
        "model.diffusion_model.input_blocks.1",
        "conditioner.embedders.0.model",
        "conditioner.embedders.1.model",
        "cond_stage_model.model",
        "first_stage_model.decoder.up.0",
        "control_model.input_blocks.1",
        "control_model.zero_convs",
        "",
    ]));
    prop_oneof![
        at().prop_map(Damage::Remove),
        (at(), at(), numbers).prop_map(|(tensor, place, number)| Damage::Renumber(tensor, place, number)),
        (at(), at(), prop::char::range('\0', 'z'))
            .prop_map(|(tensor, place, letter)| Damage::Respell(tensor, place, letter)),
        (at(), any::<u8>()).prop_map(|(tensor, how)| Damage::Reshape(tensor, how)),
        (at(), 1usize..6, beginning).prop_map(|(tensor, parts, to)| Damage::Module(
            tensor,
            parts,
            to.map(str::to_owned)
        )),
    ]
}

impl Damage {
    fn apply<T>(&self, tensors: &mut BTreeMap<String, T>, shape: impl Fn(&mut T) -> &mut Vec<usize>) {
        let pick =
            |at: &Index, tensors: &BTreeMap<String, T>| at.get(&tensors.keys().cloned().collect::<Vec<_>>()).clone();
        if tensors.is_empty() {
            return;
        }
        match self {
            Self::Remove(at) => drop(tensors.remove(&pick(at, tensors))),
            Self::Renumber(at, place, number) => {
                let name = pick(at, tensors);
                let mut parts: Vec<String> = name.split('.').map(ToOwned::to_owned).collect();
                let numbers: Vec<usize> = (0..parts.len()).filter(|k| parts[*k].parse::<u64>().is_ok()).collect();
                if !numbers.is_empty() {
                    parts[*place.get(&numbers)] = number.to_string();
                }
                let tensor = tensors.remove(&name).unwrap();
                tensors.insert(parts.join("."), tensor);
            }
            Self::Respell(at, place, letter) => {
                let name = pick(at, tensors);
                let mut letters: Vec<char> = name.chars().collect();
                let place = place.index(letters.len());
                letters[place] = *letter;
                let tensor = tensors.remove(&name).unwrap();
                tensors.insert(letters.into_iter().collect(), tensor);
            }
            Self::Reshape(at, how) => {
                let sides = shape(tensors.get_mut(&pick(at, tensors)).unwrap());
                match how % 3 {
                    0 => sides.reverse(),
                    1 => sides.push(1),
                    _ => sides.insert(0, 1),
                }
            }
            Self::Module(at, parts, to) => {
                let name = pick(at, tensors);
                let module = name.split('.').take(*parts).collect::<Vec<_>>().join(".");
                let rest =
                    std::mem::take(tensors).into_iter().filter_map(|(name, tensor)| match name.strip_prefix(&module) {
                        None => Some((name, tensor)),
                        Some(rest) => to.as_ref().map(|to| (format!("{to}{rest}"), tensor)),
                    });
                *tensors = rest.collect();
            }
        }
    }
}

fn header(tensors: &BTreeMap<String, Vec<usize>>) -> Header {
    let info = |(name, shape): (&String, &Vec<usize>)| TensorInfo {
        name: name.clone(),
        dtype: Dtype::F32,
        shape: shape.clone(),
        bytes: 0..0,
    };
    Header { tensors: tensors.iter().map(info).collect(), ..Header::default() }
}

/// A structure is read or refused with a sentence; never is anything allocated by a number in a name.
#[test]
fn the_structure_of_a_spoilt_checkpoint_is_read_or_refused() {
    let styles = ["tiny-sd", "tiny-sd2", "tiny-sdxl", "tiny-sdxl-refiner"];
    let whole: Vec<BTreeMap<String, Vec<usize>>> = styles
        .iter()
        .map(|style| {
            let file = table(style).apply(&read_folder(&fixtures().join(style)));
            file.into_iter().map(|(name, stored)| (name, stored.shape)).collect()
        })
        .collect();
    whole.iter().for_each(|tensors| drop(Layout::read(&header(tensors)).unwrap()));
    runner(500)
        .run(&(0..whole.len(), vec(damage(), 1..5)), |(style, damages)| {
            let mut tensors = whole[style].clone();
            damages.iter().for_each(|damage| damage.apply(&mut tensors, |shape| shape));
            if let Err(reason) = Layout::read(&header(&tensors)) {
                prop_assert!(reason.len() > 10 && reason.len() < 2000, "{reason}");
            }
            Ok(())
        })
        .unwrap();
}

/// A file that holds what it should loads; any other is refused by its name.
#[test]
fn a_spoilt_checkpoint_is_loaded_or_refused_by_its_name() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("spoilt.safetensors");
    let whole = table("tiny-sd").apply(&read_folder(&fixtures().join("tiny-sd")));
    let source = ModelSource { config: Some(fixtures().join("tiny-sd")), ..ModelSource::at("spoilt", &path) };
    runner(256)
        .run(&vec(damage(), 0..3), |damages| {
            let mut tensors: BTreeMap<String, Stored> = whole.clone();
            damages.iter().for_each(|damage| damage.apply(&mut tensors, |stored| &mut stored.shape));
            write(&path, &tensors);
            match pipelines::load(&source, DeviceSpec::Cpu) {
                Ok(_) => {}
                Err(error) => {
                    prop_assert!(!damages.is_empty(), "{error}");
                    prop_assert!(error.to_string().contains("spoilt.safetensors"), "{error}");
                }
            }
            Ok(())
        })
        .unwrap();
}

/// A ControlNet's file loads when it holds what it should, and is refused by its name otherwise.
#[test]
fn a_spoilt_controlnet_is_loaded_or_refused_by_its_name() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("spoilt.safetensors");
    let whole = ["narrow-controlnet", "narrow-controlnet-xl"].map(|style| table(style).apply(&table(style).numbers()));
    runner(256)
        .run(&(0..whole.len(), vec(damage(), 0..4)), |(style, damages)| {
            let mut tensors: BTreeMap<String, Stored> = whole[style].clone();
            damages.iter().for_each(|damage| damage.apply(&mut tensors, |stored| &mut stored.shape));
            write(&path, &tensors);
            if let Err(error) = controlnet(&path) {
                prop_assert!(!damages.is_empty(), "{error}");
                prop_assert!(error.contains("spoilt.safetensors") && error.len() < 2000, "{error}");
            }
            Ok(())
        })
        .unwrap();
}

/// As `ControlNets` read and load one.
fn controlnet(path: &Path) -> Result<ControlNetModel, String> {
    let told = |error: &dyn std::fmt::Display| error.to_string();
    let checkpoint = Checkpoint::controlnet_file(path).map_err(|error| told(&error))?;
    let json = checkpoint.json("config.json").map_err(|error| told(&error))?;
    let within = |reason: &dyn std::fmt::Display| format!("{}: {reason}", checkpoint.describe(""));
    let config = ControlNetConfig::parse(&json).map_err(|error| within(&error))?;
    let weights = checkpoint.weights("", &Device::Cpu).map_err(|error| told(&error))?;
    ControlNetModel::load(config, &weights).map_err(|error| within(&error))
}
