//! Checkpoints in one file, built from folders by the tables of tests/fixtures/make_single_files.py.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;
use serde_json::Value;

use super::drafts::fixtures;

/// How one checkpoint's tensors are called in the original code's names.
#[derive(Deserialize)]
pub(crate) struct Table {
    /// Name in the file, component, names in its folder, how the one is made of the others.
    rows: Vec<(String, String, Vec<String>, String)>,
    /// Of a checkpoint without numbers: component -> its config.json.
    #[serde(default)]
    pub(crate) configs: BTreeMap<String, Value>,
    #[serde(default)]
    shapes: BTreeMap<String, BTreeMap<String, Vec<usize>>>,
    /// What such a file holds besides: name, dtype, shape.
    #[serde(default)]
    extras: Vec<(String, String, Vec<usize>)>,
}

#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// Component -> tensors by name.
pub(crate) type Tensors = BTreeMap<String, BTreeMap<String, Stored>>;

pub(crate) fn table(style: &str) -> Table {
    let path = fixtures().join(format!("single-files/{style}.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A safetensors file of these tensors.
pub(crate) fn write(path: &Path, tensors: &BTreeMap<String, Stored>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes(tensors)).unwrap();
}

/// Its bytes.
pub(crate) fn bytes(tensors: &BTreeMap<String, Stored>) -> Vec<u8> {
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, stored)| (name, TensorView::new(stored.dtype, stored.shape.clone(), &stored.bytes).unwrap()))
        .collect();
    safetensors::serialize(views, None).unwrap()
}

/// The tensors of a safetensors file.
pub(crate) fn read(path: &Path) -> BTreeMap<String, Stored> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let stored = |view: &TensorView<'_>| Stored {
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        bytes: view.data().to_vec(),
    };
    file.iter().map(|(name, view)| (name.to_owned(), stored(&view))).collect()
}

/// The tensors of a folder's components.
pub(crate) fn read_folder(folder: &Path) -> Tensors {
    let mut tensors = Tensors::new();
    for component in ["unet", "vae", "text_encoder", "text_encoder_2"] {
        for file in ["diffusion_pytorch_model.safetensors", "model.safetensors"] {
            let path = folder.join(component).join(file);
            if path.is_file() {
                tensors.insert(component.to_owned(), read(&path));
            }
        }
    }
    tensors
}

impl Table {
    /// The file's tensors.
    pub(crate) fn apply(&self, tensors: &Tensors) -> BTreeMap<String, Stored> {
        let made = |(name, component, sources, how): &(String, String, Vec<String>, String)| {
            let parts: Vec<&Stored> = sources.iter().map(|source| &tensors[component][source]).collect();
            let mut made = parts[0].clone();
            match how.as_str() {
                "conv" => made.shape.extend([1, 1]),
                "cat" => {
                    made.shape[0] *= parts.len();
                    made.bytes = parts.iter().flat_map(|part| part.bytes.clone()).collect();
                }
                "t" => {
                    let (rows, columns, size) =
                        (made.shape[0], made.shape[1], made.bytes.len() / made.shape[0] / made.shape[1]);
                    made.shape.reverse();
                    let number = |at: usize| parts[0].bytes[at * size..(at + 1) * size].to_vec();
                    made.bytes = (0..rows * columns).flat_map(|at| number(at % rows * columns + at / rows)).collect();
                }
                _ => {}
            }
            (name.clone(), made)
        };
        let mut file: BTreeMap<String, Stored> = self.rows.iter().map(made).collect();
        for (name, dtype, shape) in &self.extras {
            let stored = match dtype.as_str() {
                "F32" => noise(name, shape),
                other => {
                    let (dtype, size) = if other == "I64" { (Dtype::I64, 8) } else { (Dtype::I32, 4) };
                    Stored { dtype, shape: shape.clone(), bytes: vec![0; size * shape.iter().product::<usize>()] }
                }
            };
            file.insert(name.clone(), stored);
        }
        file
    }

    /// Numbers for a checkpoint that has none.
    pub(crate) fn numbers(&self) -> Tensors {
        let component = |shapes: &BTreeMap<String, Vec<usize>>| {
            shapes.iter().map(|(name, shape)| (name.clone(), noise(name, shape))).collect()
        };
        self.shapes.iter().map(|(name, shapes)| (name.clone(), component(shapes))).collect()
    }
}

/// Numbers in (-1, 1), the same for the same name, of a size that keeps activations near 1; weights of norms are around 1.
fn noise(name: &str, shape: &[usize]) -> Stored {
    let mut state = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let inputs = shape.iter().skip(1).product::<usize>();
    let (scale, middle) =
        match (shape.len(), name.ends_with("norm.weight") || name.contains("norm") && name.ends_with("weight")) {
            (1, true) => (0.1, 1.0),
            (0 | 1, _) => (0.1, 0.0),
            _ => ((3.0 / inputs as f32).sqrt(), 0.0),
        };
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let uniform = (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        (middle + scale * uniform).to_le_bytes()
    };
    let bytes = (0..shape.iter().product::<usize>()).flat_map(|_| next()).collect();
    Stored { dtype: Dtype::F32, shape: shape.to_vec(), bytes }
}
