//! Which files of a component's folder hold its weights.

use std::collections::BTreeMap;

use serde_json::Value;

use super::header::PICKLED;

/// diffusers' name, and transformers'.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];
/// Taken where the plain file is missing and nothing is configured, before any other variant.
const USUAL: &str = "fp16";
const PICKLES: [&str; 5] = [".bin", ".ckpt", ".pt", ".pth", ".pkl"];

/// Weights in one file, or an index that names the files they are spread over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightFile {
    /// One file.
    Whole(String),
    /// `.safetensors.index.json`; [`shards`] reads it.
    Index(String),
}

/// Chooses among the names in a component's folder: the configured variant, else the plain files, else `fp16`, else the one
/// variant there is. A configured variant that this component lacks falls back likewise, as in diffusers.
///
/// # Errors
/// A sentence: nothing there, several variants and none configured, or files of a kind that is refused.
pub fn choose(names: &[String], variant: Option<&str>) -> Result<WeightFile, String> {
    for stem in STEMS {
        let found = variants(names, stem);
        let wanted = [variant.unwrap_or(""), "", USUAL];
        if let Some(file) = wanted.iter().find_map(|variant| found.get(*variant)) {
            return Ok(file.clone());
        }
        match found.len() {
            0 => {}
            1 => return Ok(found.into_values().next().expect("one. This is a bug in weights.")),
            _ => {
                let names: Vec<&str> = found.into_keys().collect();
                return Err(format!("it has the variants {}; choose one by `variant`", names.join(", ")));
            }
        }
    }
    match names.iter().find(|name| is_pickle(name)) {
        Some(name) => Err(format!(
            "it has no safetensors file, only `{name}`: {PICKLED} (or, a whole folder: \
             DiffusionPipeline.from_pretrained(IN).save_pretrained(OUT))"
        )),
        None => Err(format!("there is no such file, nor {}.safetensors, nor a variant or index of either", STEMS[1])),
    }
}

/// The files that an index names, each with the tensors that should be in it.
///
/// # Errors
/// A sentence: no index, an empty one, or one that names files elsewhere.
pub fn shards(index: &Value) -> Result<BTreeMap<String, Vec<String>>, String> {
    let map = index.get("weight_map").and_then(Value::as_object).ok_or("it has no object `weight_map`")?;
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, file) in map {
        let beside = file.as_str().filter(|file| !file.contains(['/', '\\']));
        let file = beside.ok_or_else(|| format!("`weight_map`: {file} is no file beside it"))?;
        shards.entry(file.to_owned()).or_default().push(tensor.clone());
    }
    if shards.is_empty() { Err("its `weight_map` is empty".to_owned()) } else { Ok(shards) }
}

/// Whether the folder has a file of this variant, for any stem.
pub fn has_variant(names: &[String], variant: &str) -> bool {
    STEMS.iter().any(|stem| variants(names, stem).contains_key(variant))
}

/// The file a component's weights are in by default; for messages.
pub(super) fn usual_name() -> String {
    format!("{}.safetensors", STEMS[0])
}

/// Candidates where a folder cannot be listed.
pub(super) fn usual_names() -> impl Iterator<Item = String> {
    STEMS.into_iter().flat_map(|stem| {
        [format!("{stem}.safetensors"), format!("{stem}.{USUAL}.safetensors"), format!("{stem}.safetensors.index.json")]
    })
}

/// Whether a name ends like a file of Python's pickle format.
pub fn is_pickle(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    PICKLES.iter().any(|ending| name.ends_with(ending))
}

/// Variant (empty: the plain one) -> its file; a whole file goes before an index.
fn variants<'a>(names: &'a [String], stem: &str) -> BTreeMap<&'a str, WeightFile> {
    let mut found = BTreeMap::new();
    for name in names {
        let Some(rest) = name.strip_prefix(stem) else { continue };
        let index = rest.strip_prefix(".safetensors.index").and_then(|rest| rest.strip_suffix(".json"));
        let variant = |text: &'a str| if text.is_empty() { Some("") } else { text.strip_prefix('.') };
        if let Some(variant) = index.and_then(variant) {
            found.entry(variant).or_insert_with(|| WeightFile::Index(name.clone()));
        } else if let Some(variant) = rest.strip_suffix(".safetensors").and_then(variant) {
            // `model.fp16-00001-of-00002.safetensors` is a shard, not a variant.
            if !variant.contains("-of-") {
                found.insert(variant, WeightFile::Whole(name.clone()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str], variant: Option<&str>) -> Result<WeightFile, String> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        choose(&names, variant)
    }

    fn whole(name: &str) -> Result<WeightFile, String> {
        Ok(WeightFile::Whole(name.to_owned()))
    }

    const PLAIN: &str = "diffusion_pytorch_model.safetensors";
    const HALF: &str = "diffusion_pytorch_model.fp16.safetensors";
    const EMA: &str = "diffusion_pytorch_model.non_ema.safetensors";

    #[test]
    fn the_configured_variant_then_the_plain_file_then_fp16_then_the_only_one() {
        assert_eq!(chosen(&[PLAIN, HALF, EMA], None), whole(PLAIN));
        assert_eq!(chosen(&[PLAIN, HALF, EMA], Some("non_ema")), whole(EMA));
        assert_eq!(chosen(&[PLAIN, HALF], Some("non_ema")), whole(PLAIN));
        assert_eq!(chosen(&[HALF, EMA], None), whole(HALF));
        assert_eq!(chosen(&[EMA, "config.json"], None), whole(EMA));
        assert_eq!(chosen(&["model.fp16.safetensors"], None), whole("model.fp16.safetensors"));
        let told = chosen(&[EMA, "diffusion_pytorch_model.x.safetensors"], None).unwrap_err();
        assert!(told.contains("non_ema, x"), "{told}");
    }

    #[test]
    fn shards_are_reached_by_their_index_alone() {
        let shard = "diffusion_pytorch_model.fp16-00001-of-00002.safetensors";
        let index = "diffusion_pytorch_model.safetensors.index.fp16.json";
        assert_eq!(chosen(&[shard, index], None), Ok(WeightFile::Index(index.to_owned())));
        assert_eq!(chosen(&[index, HALF], None), whole(HALF));
        assert!(chosen(&[shard, "model-00001-of-00002.safetensors"], None).is_err());
        assert!(has_variant(&[index.to_owned()], "fp16"));
    }

    #[test]
    fn pickles_are_refused_with_the_way_out() {
        for name in ["diffusion_pytorch_model.bin", "pytorch_model.bin", "model.CKPT"] {
            let told = chosen(&[name, "config.json"], None).unwrap_err();
            assert!(told.contains(name) && told.contains("save_file") && told.contains("save_pretrained"), "{told}");
        }
    }
}
