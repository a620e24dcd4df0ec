//! Pictures that come with a request: found, looked at, and stored with the job before it is.

use std::fmt;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{Caller, Error, GenerationService, Result};
use crate::domain::{FieldError, InputImage, InputName, JobId, RequestDraft, hex};
use crate::images::{self, InputFault, InputLimits};

/// Pictures that are decoded at once: each may take some hundred megabytes for a moment.
pub(super) const LOOKS: usize = 4;

/// A picture that a request gives, before anything was checked.
#[derive(Clone, Debug)]
pub struct GivenPicture {
    /// What it is for.
    pub input: InputName,
    /// Where it is.
    pub source: PictureSource,
}

/// Where a picture is. Nothing is ever fetched from elsewhere.
#[derive(Clone)]
pub enum PictureSource {
    /// A file's bytes.
    File(Bytes),
    /// A job drew it.
    Drawn {
        /// Which job.
        job: JobId,
        /// Which of its pictures, from 0.
        index: u32,
    },
    /// It came with another job's request.
    Sent {
        /// Which job.
        job: JobId,
        /// What it was for.
        input: InputName,
        /// It must be this file, by the lower-case hex SHA-256.
        sha256: Option<String>,
    },
}

impl fmt::Debug for PictureSource {
    /// Tells two sources apart, so that a repeated idempotency key is held to its pictures too.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(bytes) => write!(f, "File({})", hex(Sha256::digest(bytes))),
            Self::Drawn { job, index } => write!(f, "Drawn({job}, {index})"),
            Self::Sent { job, input, sha256 } => write!(f, "Sent({job}, {input}, {sha256:?})"),
        }
    }
}

/// A picture's file, to be stored.
pub(super) struct Looked {
    pub input: InputName,
    pub bytes: Bytes,
}

/// Why a picture is not to be had.
enum Missing {
    Told(String),
    Failed(Error),
}

impl GenerationService {
    /// The file of a picture that came with a job's request.
    ///
    /// # Errors
    /// No such job, or it came without one; a store that failed.
    pub async fn input(&self, caller: &Caller, id: JobId, input: InputName) -> Result<Bytes> {
        self.job(caller, id).await?;
        self.parts.artifacts.get_input(id, input).await?.ok_or(Error::InputNotFound { job: id, input })
    }

    /// Finds the pictures, looks at each, and writes what they are into the draft, as those of job `id`. What is wrong with
    /// them is added to `faults`.
    pub(super) async fn look_at(
        &self,
        caller: &Caller,
        id: JobId,
        pictures: Vec<GivenPicture>,
        draft: &mut RequestDraft,
        faults: &mut Vec<FieldError>,
    ) -> Result<Vec<Looked>> {
        let mut looked = Vec::new();
        let most = self.options.limits.max_controls;
        for GivenPicture { input, source } in pictures {
            if let InputName::Control(at) = input {
                let count = draft.controls.len();
                if usize::from(at) >= count {
                    let message = format!("belongs to no control: `controls` has {count}");
                    faults.push(FieldError::new(input.field(), serde_json::Value::Null, message));
                }
                // Those beyond the limit are refused, not looked at.
                if u32::from(at) >= most {
                    draft.controls.iter_mut().skip(at.into()).for_each(|control| control.is_faulty = true);
                }
                if usize::from(at) >= count || u32::from(at) >= most {
                    continue;
                }
            }
            let found = match self.find(caller, source).await {
                Ok(bytes) => self.measured(input, bytes).await.map_err(|fault| fault.to_string()),
                Err(Missing::Told(message)) => Err(message),
                Err(Missing::Failed(error)) => return Err(error),
            };
            match found {
                Ok((bytes, width, height)) => {
                    let image = InputImage { job: Some(id), input, sha256: hex(Sha256::digest(&bytes)), width, height };
                    match input {
                        InputName::InitImage => draft.image_inputs.init_image = Some(image),
                        InputName::MaskImage => draft.image_inputs.mask_image = Some(image),
                        InputName::Control(at) => {
                            if let Some(control) = draft.controls.get_mut(usize::from(at)) {
                                control.image = Some(image);
                            }
                        }
                    }
                    looked.push(Looked { input, bytes });
                }
                Err(message) => {
                    draft.image_inputs.is_faulty |= !matches!(input, InputName::Control(_));
                    faults.push(FieldError::new(input.field(), serde_json::Value::Null, message));
                }
            }
        }
        Ok(looked)
    }

    async fn find(&self, caller: &Caller, source: PictureSource) -> std::result::Result<Bytes, Missing> {
        let told = |error: Error| match error {
            Error::JobNotFound(_) | Error::ImageNotFound { .. } => {
                Missing::Told(format!("names a picture that is not here: {error}"))
            }
            other => Missing::Failed(other),
        };
        match source {
            PictureSource::File(bytes) => Ok(bytes),
            PictureSource::Drawn { job, index } => Ok(self.image(caller, job, index, None).await.map_err(told)?.bytes),
            PictureSource::Sent { job, input, sha256: expected } => {
                let stored = self.input(caller, job, input).await.map_err(|error| match error {
                    Error::JobNotFound(_) | Error::InputNotFound { .. } => Missing::Told(format!(
                        "names the `{input}` of job {job}, which is not here; it may have expired"
                    )),
                    other => Missing::Failed(other),
                })?;
                if expected.is_some_and(|expected| !expected.eq_ignore_ascii_case(&hex(Sha256::digest(&stored)))) {
                    let message = format!("names the `{input}` of job {job}, which has another `sha256`");
                    return Err(Missing::Told(message));
                }
                Ok(stored)
            }
        }
    }

    /// Decodes a picture to see that it can be, off the threads that answer.
    async fn measured(&self, input: InputName, bytes: Bytes) -> std::result::Result<(Bytes, u32, u32), InputFault> {
        let limits = InputLimits::of(&self.options.limits);
        let permit = self.looks.clone().acquire_owned().await;
        let look = move || {
            let _permit = permit;
            let size = match input {
                InputName::InitImage | InputName::Control(_) => images::read_rgb(&bytes, limits)?.size(),
                InputName::MaskImage => images::read_mask(&bytes, limits)?.size(),
            };
            Ok((bytes, size.0, size.1))
        };
        let looked = tokio::task::spawn_blocking(look).await;
        looked.unwrap_or_else(|error| {
            tracing::error!(%error, "looking at a picture failed");
            Err(InputFault::Broken { format: "picture", reason: "its decoder failed".to_owned() })
        })
    }

    /// Stores what came with a job's request.
    pub(super) async fn store_inputs(&self, id: JobId, looked: Vec<Looked>) -> Result<()> {
        for Looked { input, bytes } in looked {
            self.parts.artifacts.put_input(id, input, bytes).await?;
        }
        Ok(())
    }

    /// Forgets what came with a request that did not become a job.
    pub(super) async fn drop_inputs(&self, id: JobId) {
        if let Err(error) = self.parts.artifacts.remove(id).await {
            tracing::warn!(job.id = %id, %error, "cannot remove the pictures of a request that was refused");
        }
    }
}
