//! Which files of a repository are wanted: by their names alone, nothing is fetched here. Names come from a server, so they
//! are data to be checked.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::diffusion::pipelines;
use crate::diffusion::weights::variants::{self, WeightFile};

pub(super) const MODEL_INDEX: &str = "model_index.json";
/// Says what is particular about a folder of ours.
const CARD: &str = "darkroom.json";
/// Parts of published folders that nothing here reads.
const UNREAD: [&str; 3] = ["safety_checker", "feature_extractor", "image_encoder"];
/// A repository may have thousands of files; a message names some.
const MOST_NAMED: usize = 20;
const LONGEST_NAME: usize = 255;
const MOST_FOLDERS: usize = 4;

/// One folder of a repository; the root is the empty text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Component {
    pub(super) folder: String,
    /// Configurations and vocabularies, whole paths.
    pub(super) texts: Vec<String>,
    pub(super) weights: Option<WeightFile>,
}

/// What a repository is, going by its files.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `model_index.json` tells its parts.
    Pipeline,
    /// One part alone: an autoencoder, a ControlNet.
    Part,
}

/// What can be pulled whole.
///
/// # Errors
/// A repository of other things, with what `--file` could name.
pub(super) fn kind(names: &[String]) -> Result<Kind, String> {
    let has = |name: &str| names.iter().any(|known| known == name);
    if has(MODEL_INDEX) {
        return Ok(Kind::Pipeline);
    }
    if has("config.json") && variants::choose(&within(names, ""), None).is_ok() {
        return Ok(Kind::Part);
    }
    let files: Vec<&String> = names.iter().filter(|name| name.ends_with(".safetensors")).collect();
    Err(match files.len() {
        0 => match names.iter().find(|name| variants::is_pickle(name)) {
            Some(pickle) => format!(
                "it has no safetensors file; `{pickle}` is a pickle file, which can run code and is not fetched"
            ),
            None => format!("it has neither {MODEL_INDEX} nor a safetensors file"),
        },
        _ => format!("it has no {MODEL_INDEX}; name one of its files by --file: {}", named(&files)),
    })
}

/// The parts that a pipeline's `model_index.json` names, without those that nothing here reads, and the root.
///
/// # Errors
/// A class of pipeline that could not be served, or a part that cannot be fetched.
pub(super) fn components(index: &Value, names: &[String], variant: Option<&str>) -> Result<Vec<Component>, String> {
    let object = index.as_object().ok_or_else(|| format!("its {MODEL_INDEX} is no object"))?;
    let class = object.get("_class_name").and_then(Value::as_str).unwrap_or_default();
    let supported = pipelines::supported_classes();
    if !supported.contains(&class) {
        return Err(format!("it is a {class:?}, which cannot be served; supported: {}", supported.join(", ")));
    }
    let is_there = |value: &Value| value.as_array().is_some_and(|pair| pair.iter().all(Value::is_string));
    let parts = object.iter().filter(|(name, value)| is_there(value) && !UNREAD.contains(&name.as_str()));
    let root = [MODEL_INDEX, CARD].into_iter().filter(|name| names.iter().any(|known| known == name));
    let mut found =
        vec![Component { folder: String::new(), texts: root.map(ToOwned::to_owned).collect(), weights: None }];
    for (name, _) in parts {
        checked(name)?;
        let beside = within(names, name);
        if beside.is_empty() {
            return Err(format!("its {MODEL_INDEX} names `{name}`, and it has no such folder"));
        }
        found.push(component(name, &beside, variant)?);
    }
    let asked = variant
        .filter(|variant| !found.iter().any(|part| variants::has_variant(&within(names, &part.folder), variant)));
    match asked {
        Some(variant) => Err(format!("no part of it has the variant `{variant}`")),
        None => Ok(found),
    }
}

/// A repository that is one part.
pub(super) fn part(names: &[String], variant: Option<&str>) -> Result<Component, String> {
    let beside = within(names, "");
    if let Some(variant) = variant.filter(|variant| !variants::has_variant(&beside, variant)) {
        return Err(format!("it has no variant `{variant}`"));
    }
    component("", &beside, variant)
}

/// A file that was asked for by its name.
pub(super) fn single(file: &str, names: &[String]) -> Result<String, String> {
    checked(file)?;
    if variants::is_pickle(file) {
        return Err(format!("`{file}` is a pickle file, which can run code and is not fetched"));
    }
    if !file.ends_with(".safetensors") {
        return Err(format!("`{file}` is no safetensors file"));
    }
    if names.iter().any(|name| name == file) {
        return Ok(file.to_owned());
    }
    let files: Vec<&String> = names.iter().filter(|name| name.ends_with(".safetensors")).collect();
    Err(match files.len() {
        0 => format!("it has no `{file}`, nor any other safetensors file"),
        _ => format!("it has no `{file}`, but {}", named(&files)),
    })
}

/// The files that an index spreads the weights over, whole paths.
pub(super) fn shards(folder: &str, index: &str) -> Result<Vec<String>, String> {
    let index: Value = serde_json::from_str(index).map_err(|error| error.to_string())?;
    let shards = variants::shards(&index)?;
    shards.into_keys().map(|name| checked(&name).map(|name| join(folder, name))).collect()
}

/// `name`, when it stays within its folder on every system and hides nothing.
///
/// # Errors
/// A sentence about the name.
pub(super) fn checked(name: &str) -> Result<&str, String> {
    let fits = |c: char| c.is_alphanumeric() || " ._-+@=~,()[]".contains(c);
    let plain = |part: &str| {
        (1..=LONGEST_NAME).contains(&part.len())
            && part.chars().all(fits)
            && !part.starts_with(['.', ' '])
            && !part.ends_with(['.', ' '])
    };
    let parts: Vec<&str> = name.split('/').collect();
    if parts.len() <= MOST_FOLDERS && parts.iter().all(|part| plain(part)) {
        return Ok(name);
    }
    Err(format!("{name:?} is no name that a file can be stored by"))
}

pub(super) fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

fn component(folder: &str, beside: &[String], variant: Option<&str>) -> Result<Component, String> {
    let mut texts = BTreeSet::new();
    for name in beside.iter().filter(|name| is_text(name)) {
        texts.insert(join(folder, checked(name)?));
    }
    // A tokenizer has none, and need not.
    let has_weights = beside.iter().any(|name| name.ends_with(".safetensors") || variants::is_pickle(name));
    let at = |reason: String| if folder.is_empty() { reason } else { format!("`{folder}`: {reason}") };
    let weights = has_weights.then(|| variants::choose(beside, variant)).transpose().map_err(at)?;
    if let Some(WeightFile::Whole(name) | WeightFile::Index(name)) = &weights {
        checked(name)?;
    }
    Ok(Component { folder: folder.to_owned(), texts: texts.into_iter().collect(), weights })
}

/// Names of the files directly in a folder.
fn within(names: &[String], folder: &str) -> Vec<String> {
    let inside = |name: &&String| {
        match folder {
            "" => Some(name.as_str()),
            _ => name.strip_prefix(folder)?.strip_prefix('/'),
        }
        .filter(|rest| !rest.contains('/'))
        .map(ToOwned::to_owned)
    };
    names.iter().filter_map(|name| inside(&name)).collect()
}

/// Configurations and vocabularies; an index of weights is fetched when it is the chosen one.
fn is_text(name: &str) -> bool {
    (name.ends_with(".json") && !name.contains(".index")) || name == "merges.txt" || name == "vocab.txt"
}

fn named(files: &[&String]) -> String {
    let some: Vec<&str> = files.iter().take(MOST_NAMED).map(|name| name.as_str()).collect();
    let rest = files.len() - some.len();
    if rest == 0 { some.join(", ") } else { format!("{}, and {rest} more", some.join(", ")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// As the repositories of published checkpoints are.
    fn published() -> Vec<String> {
        names(&[
            ".gitattributes",
            "README.md",
            "model_index.json",
            "sd.ckpt",
            "sd.safetensors",
            "feature_extractor/preprocessor_config.json",
            "safety_checker/config.json",
            "safety_checker/model.safetensors",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "text_encoder/model.fp16.safetensors",
            "text_encoder/pytorch_model.bin",
            "tokenizer/merges.txt",
            "tokenizer/vocab.json",
            "tokenizer/tokenizer_config.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors.index.json",
            "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
            "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "unet/diffusion_pytorch_model.bin",
        ])
    }

    fn index() -> Value {
        json!({
            "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", "requires_safety_checker": true,
            "feature_extractor": ["transformers", "CLIPImageProcessor"], "image_encoder": [null, null],
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "scheduler": ["diffusers", "PNDMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"]
        })
    }

    fn planned(variant: Option<&str>) -> Vec<String> {
        let parts = components(&index(), &published(), variant).expect("a pipeline");
        let mut files = Vec::new();
        for part in parts {
            files.extend(part.texts);
            if let Some(WeightFile::Whole(name) | WeightFile::Index(name)) = part.weights {
                files.push(join(&part.folder, &name));
            }
        }
        files
    }

    #[test]
    fn a_pipeline_is_what_its_index_names_and_nothing_else() {
        let expected = [
            "model_index.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "tokenizer/merges.txt",
            "tokenizer/tokenizer_config.json",
            "tokenizer/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors.index.json",
        ];
        assert_eq!(planned(None), expected);
        let halves = planned(Some("fp16"));
        assert!(halves.contains(&"text_encoder/model.fp16.safetensors".to_owned()), "{halves:?}");
        assert!(halves.contains(&"unet/diffusion_pytorch_model.fp16.safetensors".to_owned()), "{halves:?}");
        assert_eq!(halves.len(), expected.len());
        let told = components(&index(), &published(), Some("bf16")).expect_err("no such variant");
        assert!(told.contains("bf16"), "{told}");
    }

    #[test]
    fn what_cannot_be_served_is_refused_before_it_is_fetched() {
        let told = components(&json!({"_class_name": "FluxPipeline"}), &published(), None).expect_err("another family");
        assert!(told.contains("FluxPipeline") && told.contains("StableDiffusionXLPipeline"), "{told}");
        let without: Vec<String> = published().into_iter().filter(|name| !name.starts_with("tokenizer")).collect();
        assert!(components(&index(), &without, None).expect_err("a part is missing").contains("tokenizer"));
        let pickled = names(&[
            "model_index.json",
            "scheduler/x.json",
            "text_encoder/pytorch_model.bin",
            "tokenizer/a.json",
            "unet/u.bin",
        ]);
        let told = components(&index(), &pickled, None).expect_err("pickles");
        assert!(told.contains("text_encoder") && told.contains("pickle"), "{told}");
        let hostile =
            json!({"_class_name": "StableDiffusionPipeline", "../unet": ["diffusers", "UNet2DConditionModel"]});
        assert!(components(&hostile, &published(), None).is_err());
    }

    #[test]
    fn a_repository_is_a_pipeline_a_part_or_files_to_choose_from() {
        assert_eq!(kind(&published()), Ok(Kind::Pipeline));
        let part_of =
            names(&["config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "README.md"]);
        assert_eq!(kind(&part_of), Ok(Kind::Part));
        let part = part(&part_of, None).expect("a part");
        assert_eq!(part.texts, ["config.json"]);
        assert_eq!(part.weights, Some(WeightFile::Whole("diffusion_pytorch_model.safetensors".to_owned())));
        let told = kind(&names(&["lora.safetensors", "b/more.safetensors"])).expect_err("files");
        assert!(told.contains("--file") && told.contains("b/more.safetensors"), "{told}");
        assert!(kind(&names(&["sd.ckpt"])).expect_err("pickles").contains("sd.ckpt"));
        assert!(kind(&names(&["README.md"])).is_err());
    }

    #[test]
    fn one_file_is_a_safetensors_file_that_is_there() {
        assert_eq!(single("sd.safetensors", &published()).as_deref(), Ok("sd.safetensors"));
        for (file, part) in [("sd.ckpt", "pickle"), ("README.md", "safetensors"), ("x.safetensors", "sd.safetensors")] {
            let told = single(file, &published()).expect_err(file);
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn names_stay_within_their_folder() {
        for name in ["unet/a.safetensors", "a b (1).safetensors", "modèle.safetensors", "a-00001-of-00002.safetensors"]
        {
            assert_eq!(checked(name), Ok(name));
        }
        let long = "a".repeat(300);
        let hostile = [
            "",
            "..",
            "../a",
            "a/../b",
            "/etc/passwd",
            "a//b",
            "a/",
            ".hidden",
            "a/.b",
            "a\\b",
            "C:a",
            "a\nb",
            "a\0b",
            "a?b",
            "a%2f",
            "a#b",
            "nul.",
            "a/b/c/d/e",
            long.as_str(),
        ];
        for name in hostile {
            assert!(checked(name).is_err(), "{name:?}");
        }
        let index = |file: &str| json!({"weight_map": {"w": file}}).to_string();
        assert_eq!(shards("unet", &index("a.safetensors")), Ok(vec!["unet/a.safetensors".to_owned()]));
        for file in ["../a.safetensors", "/a", "b/a", "..", ".a"] {
            assert!(shards("unet", &index(file)).is_err(), "{file}");
        }
    }
}
