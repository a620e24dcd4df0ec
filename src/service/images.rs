//! Finished pictures, in the encoding asked for.

use bytes::Bytes;

use super::{Caller, Error, GenerationService, Result};
use crate::dispatch::artifacts::Stored;
use crate::domain::{Artifact, ImageFormat, Job, JobId, JobStatus, OutputOptions};
use crate::images;

/// Quality of a picture encoded again for a client that asked for another format.
const TRANSCODED_QUALITY: u8 = 90;

/// A picture's bytes.
#[derive(Clone, Debug)]
pub struct StoredImage {
    /// What is known of it.
    pub artifact: Artifact,
    /// The encoding of `bytes`.
    pub format: ImageFormat,
    /// The file.
    pub bytes: Bytes,
}

impl GenerationService {
    /// What is known of one picture.
    ///
    /// # Errors
    /// No such job or picture (yet); a store that failed.
    pub async fn artifact(&self, caller: &Caller, id: JobId, index: u32) -> Result<Artifact> {
        let job = self.job(caller, id).await?;
        if job.status == JobStatus::Running && index < job.request.num_images() {
            return self.early(&job, index).await;
        }
        let found = job.images.into_iter().find(|artifact| artifact.index == index);
        found.ok_or(Error::ImageNotFound { job: id, index, ended: job.status.is_terminal() })
    }

    /// A picture of a job whose others are still drawn: its event has told of it, the row will when the job ends.
    async fn early(&self, job: &Job, index: u32) -> Result<Artifact> {
        let (request, format) = (&job.request, job.request.output().format);
        let (width, height) = request.output_size();
        let missing = Error::ImageNotFound { job: job.id, index, ended: false };
        let bytes = self.parts.artifacts.get(job.id, index, format).await?.ok_or(missing)?;
        let Stored { size_bytes, sha256 } = Stored::of(&bytes);
        Ok(Artifact { index, seed: request.image_seed(index), width, height, format, size_bytes, sha256 })
    }

    /// One picture, encoded again when `format` is not what is stored.
    ///
    /// # Errors
    /// No such job or picture (yet); a store that failed.
    pub async fn image(
        &self,
        caller: &Caller,
        id: JobId,
        index: u32,
        format: Option<ImageFormat>,
    ) -> Result<StoredImage> {
        let artifact = self.artifact(caller, id, index).await?;
        let missing = || Error::ImageNotFound { job: id, index, ended: true };
        let bytes = self.parts.artifacts.get(id, index, artifact.format).await?.ok_or_else(missing)?;
        let format = format.unwrap_or(artifact.format);
        if format == artifact.format {
            return Ok(StoredImage { artifact, format, bytes });
        }
        let (stored, output) = (artifact.format, OutputOptions { format, quality: TRANSCODED_QUALITY });
        let transcode = move || images::encode(&images::decode(&bytes, stored)?, output, None);
        let failed = |error: &dyn std::fmt::Display| {
            tracing::error!(job.id = %id, %error, "cannot encode a picture again");
            Error::Internal
        };
        let bytes = tokio::task::spawn_blocking(transcode).await.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
        Ok(StoredImage { artifact, format, bytes: bytes.into() })
    }
}
