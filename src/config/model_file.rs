//! `config/models/<id>.toml`: what an operator says of one model. config/models/README.md shows every key.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::Fault;
use crate::domain::{ModelLoad, NoiseSource, PromptSyntax, SamplerKind, SigmaSchedule};

/// One model's file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelFile {
    /// The name clients use: `id`, or the file's own name.
    pub id: String,
    /// The id of a built-in model, a diffusers folder, or a safetensors file; as written.
    pub path: Option<String>,
    /// A folder whose configurations and tokenizers go before what a single file tells.
    pub config: Option<PathBuf>,
    /// A folder or file with the autoencoder to use.
    pub vae: Option<PathBuf>,
    /// A folder or file with a tiny autoencoder for previews.
    pub vae_tiny: Option<PathBuf>,
    /// A folder of textual inversion embeddings, or one file.
    pub embeddings: Option<PathBuf>,
    /// The variant of the weights to read.
    pub variant: Option<String>,
    /// When it is loaded; as `models.load` says when absent.
    pub load: Option<ModelLoad>,
    /// In place of the training schedule's own.
    pub schedule: ScheduleOverrides,
    /// What requests are told, and get when they do not say.
    pub card: CardOverrides,
    /// The folder that relative paths start from: where the file lies.
    pub folder: PathBuf,
}

/// Values in place of those of `scheduler_config.json`.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct ScheduleOverrides {
    /// `epsilon`, `v_prediction` or `sample`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prediction_type: Option<String>,
    /// `leading`, `linspace` or `trailing`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestep_spacing: Option<String>,
    /// Betas rescaled to zero terminal signal-to-noise ratio.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rescale_betas_zero_snr: Option<bool>,
}

/// Values in place of those of `darkroom.json`, by its names.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct CardOverrides {
    /// One sentence for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The smallest width and height, in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_side: Option<u32>,
    /// The largest width and height, in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_side: Option<u32>,
    /// Widths and heights are multiples of this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_multiple: Option<u32>,
    /// `[defaults]`
    #[serde(skip_serializing_if = "DefaultOverrides::is_empty")]
    pub defaults: DefaultOverrides,
}

/// What requests get when they do not say.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct DefaultOverrides {
    /// In pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
    /// In pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
    /// Sampler steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u32>,
    /// Classifier-free guidance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_scale: Option<f64>,
    /// How far guidance's widening of the output is taken back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_rescale: Option<f64>,
    /// The sampler.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampler: Option<SamplerKind>,
    /// The noise levels it visits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigma_schedule: Option<SigmaSchedule>,
    /// What a seed means.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise: Option<NoiseSource>,
    /// What brackets in a prompt mean.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_syntax: Option<PromptSyntax>,
    /// Last layers of the text encoder to leave out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_skip: Option<u32>,
}

impl DefaultOverrides {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl ModelFile {
    /// Reads one file.
    ///
    /// # Errors
    /// Every fault of it: unreadable, no TOML, unknown keys, wrong types, values out of range.
    pub fn read(path: &Path) -> Result<Self, Vec<Fault>> {
        let source = Some(path.display().to_string());
        let fault = |message: String| vec![Fault { key: "model".to_owned(), source: source.clone(), message }];
        let text = std::fs::read_to_string(path).map_err(|error| fault(error.to_string()))?;
        let table: Table = text.parse().map_err(|error: toml::de::Error| fault(error.message().to_owned()))?;
        let mut keys = Keys { table, prefix: "", faults: Vec::new() };
        let named = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut file = Self {
            id: keys.text("id").unwrap_or(named),
            path: keys.text("path"),
            config: keys.text("config").map(PathBuf::from),
            vae: keys.text("vae").map(PathBuf::from),
            vae_tiny: keys.text("vae_tiny").map(PathBuf::from),
            embeddings: keys.text("embeddings").map(PathBuf::from),
            variant: keys.text("variant"),
            load: keys.named("load", ModelLoad::ALL, ModelLoad::name),
            schedule: ScheduleOverrides {
                prediction_type: keys.word("prediction_type", &["epsilon", "v_prediction", "sample"]),
                timestep_spacing: keys.word("timestep_spacing", &["leading", "linspace", "trailing"]),
                rescale_betas_zero_snr: keys.flag("rescale_betas_zero_snr"),
            },
            card: CardOverrides {
                description: keys.text("description"),
                min_side: keys.count("min_side"),
                max_side: keys.count("max_side"),
                size_multiple: keys.count("size_multiple"),
                defaults: DefaultOverrides::default(),
            },
            folder: path.parent().map(Path::to_owned).unwrap_or_default(),
        };
        let mut defaults = Keys { table: keys.table("defaults"), prefix: "defaults.", faults: Vec::new() };
        file.card.defaults = DefaultOverrides {
            width: defaults.count("width"),
            height: defaults.count("height"),
            steps: defaults.count("steps"),
            guidance_scale: defaults.number("guidance_scale", 100.0),
            guidance_rescale: defaults.number("guidance_rescale", 1.0),
            sampler: defaults.named("sampler", SamplerKind::ALL, SamplerKind::name),
            sigma_schedule: defaults.named("sigma_schedule", SigmaSchedule::ALL, SigmaSchedule::name),
            noise: defaults.named("noise", NoiseSource::ALL, NoiseSource::name),
            prompt_syntax: defaults.named("prompt_syntax", PromptSyntax::ALL, PromptSyntax::name),
            clip_skip: defaults.count_from(0, "clip_skip"),
        };
        let mut faults = keys.finish();
        faults.extend(defaults.finish());
        if !is_id(&file.id) {
            let message = format!("`{}` is no id: 1 to 128 letters, digits, `.`, `_`, `-` or `/`", file.id);
            faults.push(("id".to_owned(), message));
        }
        if faults.is_empty() {
            return Ok(file);
        }
        Err(faults.into_iter().map(|(key, message)| Fault { key, source: source.clone(), message }).collect())
    }

    /// Reads every `*.toml` of a folder, by name; none where there is no such folder.
    ///
    /// # Errors
    /// Every fault of every file.
    pub fn read_all(folder: &Path) -> Result<Vec<Self>, Vec<Fault>> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| is_toml(path)).collect();
        paths.sort();
        let (mut files, mut faults) = (Vec::new(), Vec::new());
        for path in paths {
            match Self::read(&path) {
                Ok(file) => files.push(file),
                Err(found) => faults.extend(found),
            }
        }
        if faults.is_empty() { Ok(files) } else { Err(faults) }
    }
}

/// Whether a model's name can stand in addresses and files.
fn is_id(text: &str) -> bool {
    let fits = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | ' ');
    (1..=128).contains(&text.chars().count()) && text.chars().all(fits) && text.trim() == text
}

fn is_toml(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "toml")
}

/// Takes keys out of a table and collects what is wrong; what is left at the end is unknown.
struct Keys {
    table: Table,
    prefix: &'static str,
    faults: Vec<(String, String)>,
}

impl Keys {
    fn take<T>(&mut self, key: &str, wanted: &str, read: impl FnOnce(&Value) -> Option<T>) -> Option<T> {
        let value = self.table.remove(key)?;
        let taken = read(&value);
        if taken.is_none() {
            self.faults.push((format!("{}{key}", self.prefix), format!("{value} is not {wanted}")));
        }
        taken
    }

    fn text(&mut self, key: &str) -> Option<String> {
        let filled = |value: &Value| value.as_str().filter(|text| !text.trim().is_empty()).map(ToOwned::to_owned);
        self.take(key, "a text", filled)
    }

    fn flag(&mut self, key: &str) -> Option<bool> {
        self.take(key, "true or false", Value::as_bool)
    }

    fn count(&mut self, key: &str) -> Option<u32> {
        self.count_from(1, key)
    }

    fn count_from(&mut self, least: u32, key: &str) -> Option<u32> {
        let count = |value: &Value| value.as_integer().and_then(|n| u32::try_from(n).ok()).filter(|n| *n >= least);
        self.take(key, &format!("a whole number from {least} to 4294967295"), count)
    }

    fn number(&mut self, key: &str, most: f64) -> Option<f64> {
        let number = |value: &Value| value.as_float().or_else(|| value.as_integer().map(|n| n as f64));
        self.take(key, &format!("a number from 0 to {most}"), |value| {
            number(value).filter(|n| (0.0..=most).contains(n))
        })
    }

    fn word(&mut self, key: &str, words: &[&str]) -> Option<String> {
        let known = |value: &Value| value.as_str().filter(|text| words.contains(text)).map(ToOwned::to_owned);
        self.take(key, &format!("one of {}", words.join(", ")), known)
    }

    fn named<T: Copy>(&mut self, key: &str, all: &[T], name: impl Fn(T) -> &'static str) -> Option<T> {
        let wanted = format!("one of {}", all.iter().map(|each| name(*each)).collect::<Vec<_>>().join(", "));
        let known = |value: &Value| all.iter().copied().find(|each| value.as_str() == Some(name(*each)));
        self.take(key, &wanted, known)
    }

    fn table(&mut self, key: &str) -> Table {
        self.take(key, "a table", |value| value.as_table().cloned()).unwrap_or_default()
    }

    fn finish(mut self) -> Vec<(String, String)> {
        let unknown = self.table.keys().map(|key| (format!("{}{key}", self.prefix), "is no key of a model".to_owned()));
        self.faults.extend(unknown);
        self.faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ModelFile, Vec<Fault>> {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("my-model.toml"), text).expect("written");
        ModelFile::read(&folder.path().join("my-model.toml"))
    }

    /// The example of config/models/README.md.
    fn example() -> &'static str {
        let readme = include_str!("../../config/models/README.md");
        readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example")
    }

    #[test]
    fn the_example_says_every_key() {
        let file = read(example()).expect("valid");
        assert_eq!(file.id, "my-model");
        let all: serde_json::Value = serde_json::to_value(&file.card).expect("JSON");
        for key in ["description", "min_side", "max_side", "size_multiple", "defaults"] {
            assert!(!all[key].is_null(), "{key}");
        }
        for key in
            ["width", "height", "steps", "guidance_scale", "sampler", "sigma_schedule", "guidance_rescale", "noise"]
        {
            assert!(!all["defaults"][key].is_null(), "{key}");
        }
        for key in ["prompt_syntax", "clip_skip"] {
            assert!(!all["defaults"][key].is_null(), "{key}");
        }
        let schedule: serde_json::Value = serde_json::to_value(&file.schedule).expect("JSON");
        assert_eq!(schedule.as_object().expect("an object").len(), 3);
        assert!(
            [file.path, file.variant].iter().all(Option::is_some)
                && file.config.is_some()
                && file.vae.is_some()
                && file.embeddings.is_some()
                && file.load.is_some()
        );
    }

    #[test]
    fn every_fault_is_told_with_its_key_and_its_file() {
        let text = "id = \"a b\\n\"\npath = 3\nprediction_type = \"eps\"\nmax_side = 0\nvea = \"x\"\n\
                    [defaults]\nsteps = -1\nsampler = \"eulr\"\nguidance_scale = 101\nsize = 1\n";
        let faults = read(text).expect_err("faulty");
        let keys: Vec<&str> = faults.iter().map(|fault| fault.key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "path",
                "prediction_type",
                "max_side",
                "vea",
                "defaults.steps",
                "defaults.guidance_scale",
                "defaults.sampler",
                "defaults.size",
                "id"
            ]
        );
        assert!(faults.iter().all(|fault| fault.to_string().contains("my-model.toml")));
        assert!(faults[1].message.contains("\"eps\" is not one of epsilon, v_prediction"), "{}", faults[1]);
        assert!(read("path = ").expect_err("no TOML")[0].to_string().contains("my-model.toml"));
    }

    #[test]
    fn a_folder_tells_the_faults_of_all_its_files() {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in [("a.toml", "steps = 1\n"), ("b.toml", "path = \"x\"\n"), ("c.toml", "vae = 1\n")] {
            std::fs::write(folder.path().join(name), text).expect("written");
        }
        let faults = ModelFile::read_all(folder.path()).expect_err("two are faulty");
        assert_eq!(faults.iter().map(|fault| fault.key.as_str()).collect::<Vec<_>>(), ["steps", "vae"]);
        assert_eq!(ModelFile::read_all(&folder.path().join("absent")), Ok(Vec::new()));
    }
}
