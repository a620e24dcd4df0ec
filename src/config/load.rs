//! Putting the layers together: defaults < file < environment < flags.

use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};

use super::Settings;

/// What the command line says; absent flags leave the layers below.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--listen`
    pub listen: Option<String>,
    /// `--data-dir`
    pub data_dir: Option<PathBuf>,
    /// `--model`, each
    pub models: Vec<String>,
}

/// One fault of the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The setting, or the file.
    pub key: String,
    /// Where it was set, when that is known.
    pub source: Option<String>,
    /// What is wrong.
    pub message: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.key, self.message)?;
        self.source.as_ref().map_or(Ok(()), |source| write!(f, " (set in {source})"))
    }
}

/// The settings in force. Variables are named `DARKROOM_` and the setting, two underscores for a dot:
/// `DARKROOM_SERVER__LISTEN=0.0.0.0:7860`.
///
/// # Errors
/// Every fault at once: unreadable file, unknown keys, wrong types, values out of range.
pub fn load(file: Option<&Path>, flags: &Overrides) -> Result<Settings, Vec<Fault>> {
    let mut figment = Figment::from(Serialized::defaults(Settings::default()));
    if let Some(file) = file {
        if !file.is_file() {
            let message = "no such file".to_owned();
            return Err(vec![Fault { key: file.display().to_string(), source: None, message }]);
        }
        figment = figment.merge(Toml::file_exact(file));
    }
    // DARKROOM_CONFIG names the file and DARKROOM_FORBID_SKIPS speaks to the tests; neither is a setting.
    let environment = Env::prefixed("DARKROOM_").ignore(&["config", "forbid_skips"]).split("__");
    figment = figment.merge(environment);
    if let Some(listen) = &flags.listen {
        figment = figment.merge(Serialized::global("server.listen", listen).key("server.listen"));
    }
    if let Some(dir) = &flags.data_dir {
        figment = figment.merge(Serialized::default("data_dir", dir));
    }
    if !flags.models.is_empty() {
        figment = figment.merge(Serialized::default("models.serve", &flags.models));
    }
    let settings: Settings = figment.extract().map_err(|errors| errors.into_iter().map(fault).collect::<Vec<_>>())?;
    let faults: Vec<Fault> = settings
        .faults()
        .into_iter()
        .map(|(key, message)| Fault {
            key: key.to_owned(),
            source: figment.find_metadata(key).and_then(|metadata| named(metadata, key)),
            message,
        })
        .collect();
    if faults.is_empty() { Ok(settings) } else { Err(faults) }
}

fn named(metadata: &figment::Metadata, key: &str) -> Option<String> {
    if metadata.name.contains("environment") {
        return Some(format!("the variable DARKROOM_{}", key.replace('.', "__").to_uppercase()));
    }
    metadata.source.as_ref().map(ToString::to_string)
}

fn fault(error: figment::Error) -> Fault {
    let key = if error.path.is_empty() { "settings".to_owned() } else { error.path.join(".") };
    let source = error.metadata.as_ref().and_then(|metadata| named(metadata, &key));
    Fault { key, source, message: error.kind.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_file(text: &str) -> Result<Settings, Vec<Fault>> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        load(Some(file.path()), &Overrides::default())
    }

    #[test]
    fn the_commented_file_says_the_defaults_and_every_key() {
        let text = include_str!("../../config/default.toml");
        let said: Settings = toml::from_str(text).expect("default.toml parses");
        assert_eq!(said, Settings::default());
        let all: toml::Value = toml::Value::try_from(Settings::default()).expect("settings are TOML");
        let said: toml::Value = toml::from_str(text).expect("default.toml parses");
        assert_eq!(all, said, "default.toml lacks a key");
    }

    #[test]
    fn flags_win_over_the_file() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "data_dir = \"a\"\n[server]\nlisten = \"127.0.0.1:1\"\nmax_wait_s = 7\n")
            .expect("written");
        let flags =
            Overrides { listen: Some("127.0.0.1:2".to_owned()), models: vec!["x".to_owned()], ..Overrides::default() };
        let settings = load(Some(file.path()), &flags).expect("valid");
        assert_eq!((settings.server.listen.as_str(), settings.server.max_wait_s), ("127.0.0.1:2", 7));
        assert_eq!((settings.data_dir, settings.models.serve), (PathBuf::from("a"), vec!["x".to_owned()]));
    }

    #[test]
    fn every_fault_is_told_with_its_key() {
        let faults = with_file(
            "[server]\nlisten = \"nowhere\"\n[workers]\ndevices = [\"tpu\"]\ndtype = \"fp8\"\npolicy = \"x\"\n",
        )
        .expect_err("faulty");
        let keys: Vec<&str> = faults.iter().map(|fault| fault.key.as_str()).collect();
        assert_eq!(keys, ["server.listen", "workers.policy", "workers.devices", "workers.dtype"]);
        assert!(faults[3].message.contains("`fp8`") && faults[3].message.contains("`bf16`"), "{}", faults[3]);
        let unknown = with_file("[server]\nlissten = \"x\"\n").expect_err("unknown key");
        assert!(unknown[0].to_string().contains("lissten"), "{}", unknown[0]);
    }
}
