//! Every setting and its default; `config/default.toml` says the same, with a comment for each.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{KeySettings, keys};
use crate::domain::{BatchingPolicy, DeviceSpec, DtypeSpec, Limits, ModelLoad};
use crate::telemetry::LogFormat;

/// All settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where the database and the pictures are kept.
    pub data_dir: PathBuf,
    /// `server.*`
    pub server: ServerSettings,
    /// `models.*`
    pub models: ModelSettings,
    /// `queue.*`
    pub queue: QueueSettings,
    /// `workers.*`
    pub workers: WorkerSettings,
    /// `limits.*`
    pub limits: Limits,
    /// `log.*`
    pub log: LogSettings,
    /// `[[keys]]`: who may ask; none: anybody.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<KeySettings>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("data"),
            server: ServerSettings::default(),
            models: ModelSettings::default(),
            queue: QueueSettings::default(),
            workers: WorkerSettings::default(),
            limits: Limits::default(),
            log: LogSettings::default(),
            keys: Vec::new(),
        }
    }
}

/// The HTTP server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerSettings {
    /// Address and port.
    pub listen: String,
    /// Origins of web pages that may call the API; `["*"]`: any. Empty: same origin only.
    pub cors_origins: Vec<String>,
    /// Largest request body, in bytes.
    pub max_body_bytes: usize,
    /// Longest time a request waits for its job, in seconds.
    pub max_wait_s: u64,
    /// A comment line on silent event streams every so many seconds.
    pub heartbeat_s: u64,
    /// How long jobs aboard may finish after SIGTERM, in seconds.
    pub drain_s: u64,
    /// Most open event streams and waiting requests.
    pub max_watchers: usize,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7860".to_owned(),
            cors_origins: Vec::new(),
            max_body_bytes: 48 << 20,
            max_wait_s: 600,
            heartbeat_s: 15,
            drain_s: 30,
            max_watchers: 1024,
        }
    }
}

/// Which models are served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSettings {
    /// Built-in ids, ids of described or found models, diffusers folders or safetensors files; `*`: all described and
    /// found ones. The first is the default model.
    pub serve: Vec<String>,
    /// A folder with a TOML file a model.
    pub descriptions: PathBuf,
    /// A folder that is searched for models; empty: `models` within `data_dir`, where there is one.
    pub dir: PathBuf,
    /// A folder of textual inversion embeddings for every model they fit; empty: none.
    pub embeddings: PathBuf,
    /// A folder of ControlNets for every model they fit; empty: none.
    pub controlnets: PathBuf,
    /// ControlNets that stay in a device's memory.
    pub max_controlnets: usize,
    /// A folder of LoRAs for every model; empty: none.
    pub loras: PathBuf,
    /// When models are loaded: `start` or `first_use`. Models found in `dir`: always at first use, but for those named in
    /// `serve` and those whose description says otherwise.
    pub load: ModelLoad,
    /// Most memory for weights on each device, in MiB; 0: four fifths of the machine's on a CPU, no bound on a GPU.
    pub memory_budget_mb: u64,
}

impl Default for ModelSettings {
    fn default() -> Self {
        let serve = ["pinhole", "*"].map(ToOwned::to_owned).to_vec();
        Self {
            serve,
            descriptions: PathBuf::from("config/models"),
            dir: PathBuf::new(),
            embeddings: PathBuf::new(),
            controlnets: PathBuf::new(),
            max_controlnets: 4,
            loras: PathBuf::new(),
            load: ModelLoad::Start,
            memory_budget_mb: 0,
        }
    }
}

/// The job queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueSettings {
    /// Most jobs waiting.
    pub max_queued: u64,
    /// Attempts before a job that keeps losing its worker fails.
    pub max_attempts: u32,
    /// A lease lasts so long without a heartbeat, in seconds.
    pub lease_s: u64,
    /// Ended jobs and their pictures are kept so long, in seconds.
    pub retention_s: u64,
    /// Whether identical requests are drawn once.
    pub reuse: bool,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self { max_queued: 1000, max_attempts: 3, lease_s: 30, retention_s: 7 * 24 * 3600, reuse: true }
    }
}

/// The devices and what they take at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerSettings {
    /// One worker a device: `cpu`, `cuda:0`, ...
    pub devices: Vec<String>,
    /// What denoising networks compute in: `auto`, `f32`, `f16` or `bf16`.
    pub dtype: String,
    /// How batches are made up: `continuous` or `grouped`.
    pub policy: String,
    /// Most rows of one forward (a guided picture has two).
    pub max_rows: u32,
    /// Most rows times pixels of one forward.
    pub max_row_pixels: u64,
    /// Most memory that one forward may take above what is there, in MiB; 0: no bound. Without it a fifth of the machine's,
    /// shared by the workers on its CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
    /// Whether models that are loaded at the start are evaluated for up to three seconds before the server answers.
    pub warm_up: bool,
    /// A preview every so many steps; 0: none.
    pub preview_every: u32,
    /// An engine that gives no sign for so many seconds is given up; 0: none is.
    pub step_timeout_s: u64,
    /// Most memory for prompts lately encoded, of all devices together, in MiB; 0: none are kept.
    pub prompt_cache_mb: u64,
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self {
            devices: vec!["cpu".to_owned()],
            dtype: DtypeSpec::Auto.to_string(),
            policy: BatchingPolicy::Continuous.name().to_owned(),
            max_rows: 32,
            max_row_pixels: 1 << 23,
            memory_mb: None,
            warm_up: true,
            preview_every: 4,
            step_timeout_s: 1800,
            prompt_cache_mb: 64,
        }
    }
}

/// Log lines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// A tracing filter, such as `info,darkroom=debug`.
    pub filter: String,
    /// `text` or `json`.
    pub format: LogFormat,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: LogFormat::Text }
    }
}

impl Settings {
    /// Where models are found, and where pulled ones go.
    pub fn models_dir(&self) -> PathBuf {
        if self.models.dir.as_os_str().is_empty() { self.data_dir.join("models") } else { self.models.dir.clone() }
    }

    /// What no type can check, all faults at once: (setting, what is wrong).
    pub(super) fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        let mut check = |holds: bool, key, message: String| {
            if !holds {
                faults.push((key, message));
            }
        };
        let listen = &self.server.listen;
        check(
            listen.parse::<std::net::SocketAddr>().is_ok(),
            "server.listen",
            format!("`{listen}` is no address with a port, such as 127.0.0.1:7860"),
        );
        for origin in &self.server.cors_origins {
            let plain = origin == "*" || origin.starts_with("http://") || origin.starts_with("https://");
            check(
                plain,
                "server.cors_origins",
                format!("`{origin}` is no origin such as https://example.org, nor `*`"),
            );
        }
        let policy = &self.workers.policy;
        check(
            policy.parse::<BatchingPolicy>().is_ok(),
            "workers.policy",
            format!("`{policy}` is no policy; use `continuous` or `grouped`"),
        );
        check(
            !self.workers.devices.is_empty(),
            "workers.devices",
            "is empty; name at least one device, such as `cpu`".to_owned(),
        );
        for device in &self.workers.devices {
            if let Err(message) = device.parse::<DeviceSpec>() {
                check(false, "workers.devices", message);
            }
        }
        if let Err(message) = self.workers.dtype.parse::<DtypeSpec>() {
            check(false, "workers.dtype", message);
        }
        check(!self.models.serve.is_empty(), "models.serve", "is empty; name at least one model".to_owned());
        let most = self.limits.max_controls;
        check(most <= 16, "limits.max_controls", format!("is {most}; it must be at most 16"));
        let positive = [
            ("server.max_body_bytes", self.server.max_body_bytes as u64),
            ("server.max_wait_s", self.server.max_wait_s),
            ("server.heartbeat_s", self.server.heartbeat_s),
            ("server.max_watchers", self.server.max_watchers as u64),
            ("models.max_controlnets", self.models.max_controlnets as u64),
            ("queue.max_queued", self.queue.max_queued),
            ("queue.max_attempts", self.queue.max_attempts.into()),
            ("queue.lease_s", self.queue.lease_s),
            ("queue.retention_s", self.queue.retention_s),
            ("workers.max_rows", self.workers.max_rows.into()),
            ("workers.max_row_pixels", self.workers.max_row_pixels),
            ("limits.max_steps", self.limits.max_steps.into()),
            ("limits.max_num_images", self.limits.max_num_images.into()),
            ("limits.max_pixels", self.limits.max_pixels),
            ("limits.max_prompt_chars", self.limits.max_prompt_chars as u64),
            ("limits.max_input_bytes", self.limits.max_input_bytes as u64),
            ("limits.max_input_pixels", self.limits.max_input_pixels),
            ("limits.max_deadline_s", self.limits.max_deadline_s.into()),
        ];
        for (key, value) in positive {
            check(value > 0, key, "is 0; it must be at least 1".to_owned());
        }
        faults.extend(keys::faults(&self.keys).into_iter().map(|message| ("keys", message)));
        faults
    }
}
