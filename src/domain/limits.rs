//! What operators bound.

use serde::{Deserialize, Serialize};

/// What the operator allows, beyond what a model can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Most sampler steps.
    pub max_steps: u32,
    /// Most pictures a job.
    pub max_num_images: u32,
    /// Most pixels of one picture.
    pub max_pixels: u64,
    /// Most characters of a prompt.
    pub max_prompt_chars: usize,
    /// Most bytes of `metadata`, as JSON.
    pub max_metadata_bytes: usize,
    /// Most bytes of a picture's file that comes with a request.
    pub max_input_bytes: usize,
    /// Most pixels of a picture that comes with a request.
    pub max_input_pixels: u64,
    /// Most controls of a request; 0: none are taken.
    pub max_controls: u32,
    /// Longest `start_within` and `expires_in`, in seconds.
    pub max_deadline_s: u32,
    /// Most LoRAs a job.
    pub max_loras: u32,
    /// The names of the LoRAs that there are; nobody configures them.
    #[serde(skip)]
    pub loras: Vec<String>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_steps: 150,
            max_num_images: 16,
            max_pixels: 1 << 22,
            max_prompt_chars: 4_000,
            max_metadata_bytes: 4_096,
            max_input_bytes: 16 << 20,
            max_input_pixels: 1 << 24,
            max_controls: 4,
            max_deadline_s: 7 * 24 * 3600,
            max_loras: 8,
            loras: Vec::new(),
        }
    }
}
