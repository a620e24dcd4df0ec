//! Stores pictures by job: those that were drawn by index, those that came with the request by what they are for; and where a
//! job stands that was taken off its engine. Over the `object_store` crate: memory or filesystem.
//!
//! Does not know which pictures a job has: that is its row in the job store.
//!
//! **The first put of a picture wins**, and a later one is answered with what is stored. A worker that lost its lease may
//! still be writing while another draws the same job; on a GPU their bytes may differ in the last bit. Since neither can
//! replace the other's, whoever finishes the job records the size and hash of the bytes that are there, and nothing
//! written afterwards changes them.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use sha2::{Digest, Sha256};

use crate::domain::{Artifact, ImageFormat, InputName, JobId, hex};

/// Pictures by `jobs/<id>/<index>.<ext>` and `jobs/<id>/inputs/<name>`, a parked job's state by `jobs/<id>/parked`. Clones share
/// the store.
#[derive(Clone)]
pub struct ArtifactStore {
    store: Arc<dyn ObjectStore>,
}

/// What lies in the store for one picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Size of the encoding.
    pub size_bytes: u64,
    /// Lower-case hex SHA-256 of the encoding.
    pub sha256: String,
}

/// Why a picture could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder cannot be made or opened.
    #[error("cannot use the artifact folder {path}: {reason}")]
    Folder {
        /// As given.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// What is stored is larger than whoever asks for it would take.
    #[error("it has {size_bytes} bytes; at most {most} are taken")]
    TooLarge {
        /// Of what is stored.
        size_bytes: u64,
        /// Asked for.
        most: u64,
    },
    /// The store did not do its part.
    #[error("the artifact store failed: {0}")]
    Storage(#[from] object_store::Error),
}

/// Of this room.
pub type Result<T> = std::result::Result<T, Error>;

impl ArtifactStore {
    /// In a folder, made when it is missing. What is put is on the disk before `put` answers, and appears whole or not
    /// at all (a staged file, linked into place: the file system must know hard links).
    ///
    /// # Errors
    /// [`Error::Folder`] when it cannot be made or opened.
    pub fn filesystem(folder: &Path) -> Result<Self> {
        let told = |reason: String| Error::Folder { path: folder.to_owned(), reason };
        std::fs::create_dir_all(folder).map_err(|error: io::Error| told(error.to_string()))?;
        let store = LocalFileSystem::new_with_prefix(folder).map_err(|error| told(error.to_string()))?;
        Ok(Self { store: Arc::new(store.with_fsync(true).with_automatic_cleanup(true)) })
    }

    /// In memory, until the last clone is dropped.
    pub fn memory() -> Self {
        Self { store: Arc::new(InMemory::new()) }
    }

    /// Stores picture `index` of a job, or finds that it is stored; tells what lies there now, which is not `bytes` when
    /// another worker was first.
    ///
    /// # Errors
    /// [`Error::Storage`]; what was stored of it cannot be seen, and the put may be tried again.
    pub async fn put(&self, job: JobId, index: u32, format: ImageFormat, bytes: Bytes) -> Result<Stored> {
        let key = key(job, index, format);
        let options = PutOptions::from(PutMode::Create);
        match self.store.put_opts(&key, bytes.clone().into(), options).await {
            Ok(_) => Ok(Stored::of(&bytes)),
            Err(object_store::Error::AlreadyExists { .. }) => {
                Ok(Stored::of(&self.store.get(&key).await?.bytes().await?))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The stored encoding; `None` when there is none (yet, or any more).
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub async fn get(&self, job: JobId, index: u32, format: ImageFormat) -> Result<Option<Bytes>> {
        match self.store.get(&key(job, index, format)).await {
            Ok(found) => Ok(Some(found.bytes().await?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Stores copies of a job's pictures as another's, so that neither's removal takes the other's. `false` where one of them is
    /// gone, is not what `images` says of it, or is there already and differs: what was copied before it stays.
    ///
    /// # Errors
    /// [`Error::Storage`]; the copy may be tried again.
    pub async fn copy(&self, from: JobId, to: JobId, images: &[Artifact]) -> Result<bool> {
        for Artifact { index, format, size_bytes, sha256, .. } in images {
            let Some(bytes) = self.get(from, *index, *format).await? else { return Ok(false) };
            let told = Stored { size_bytes: *size_bytes, sha256: sha256.clone() };
            if Stored::of(&bytes) != told || self.put(to, *index, *format, bytes).await? != told {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Stores the file of a picture that came with a job's request, before the job is.
    ///
    /// # Errors
    /// [`Error::Storage`]; the put may be tried again.
    pub async fn put_input(&self, job: JobId, input: InputName, bytes: Bytes) -> Result<()> {
        self.store.put(&input_key(job, input), bytes.into()).await?;
        Ok(())
    }

    /// The file as it came; `None` when there is none (any more).
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub async fn get_input(&self, job: JobId, input: InputName) -> Result<Option<Bytes>> {
        match self.store.get(&input_key(job, input)).await {
            Ok(found) => Ok(Some(found.bytes().await?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Stores where a job stands that was taken off its engine. The last put wins: the same pictures come of each.
    ///
    /// # Errors
    /// [`Error::Storage`]; what was stored before is still there.
    pub async fn put_parked(&self, job: JobId, state: Bytes) -> Result<()> {
        self.store.put(&parked_key(job), state.into()).await?;
        Ok(())
    }

    /// Where a job stands; `None` when nothing is stored of it.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for more than `most` bytes, none of which are read; [`Error::Storage`].
    pub async fn get_parked(&self, job: JobId, most: u64) -> Result<Option<Bytes>> {
        let found = match self.store.get(&parked_key(job)).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match found.meta.size {
            size_bytes if size_bytes > most => Err(Error::TooLarge { size_bytes, most }),
            _ => Ok(Some(found.bytes().await?)),
        }
    }

    /// Removes what [`ArtifactStore::put_parked`] stored; without any, nothing happens.
    ///
    /// # Errors
    /// [`Error::Storage`]; the removal may be tried again.
    pub async fn remove_parked(&self, job: JobId) -> Result<()> {
        match self.store.delete(&parked_key(job)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes all that was drawn of a job and where it stands, not what came with its request; without any, nothing happens.
    ///
    /// # Errors
    /// [`Error::Storage`]; some may be left, and the removal may be tried again.
    pub async fn remove_drawn(&self, job: JobId) -> Result<()> {
        let inputs = inputs(job);
        self.remove_all(job, |key| !key.prefix_matches(&inputs)).await
    }

    /// Removes all pictures of a job; without any, nothing happens.
    ///
    /// # Errors
    /// [`Error::Storage`]; some may be left, and the removal may be tried again.
    pub async fn remove(&self, job: JobId) -> Result<()> {
        self.remove_all(job, |_| true).await
    }

    async fn remove_all(&self, job: JobId, is_meant: impl Fn(&Key) -> bool) -> Result<()> {
        let folder = Key::from(format!("jobs/{job}"));
        let found: Vec<Key> = self.store.list(Some(&folder)).map_ok(|object| object.location).try_collect().await?;
        for key in found.into_iter().filter(|key| is_meant(key)) {
            match self.store.delete(&key).await {
                // Somebody else removes the same job.
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl Stored {
    /// As these bytes lie there.
    pub fn of(bytes: &[u8]) -> Self {
        let sha256 = hex(Sha256::digest(bytes));
        Self { size_bytes: bytes.len() as u64, sha256 }
    }
}

impl fmt::Debug for ArtifactStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ArtifactStore({})", self.store)
    }
}

fn inputs(job: JobId) -> Key {
    Key::from(format!("jobs/{job}/inputs"))
}

fn input_key(job: JobId, input: InputName) -> Key {
    inputs(job).join(input.to_string())
}

fn parked_key(job: JobId) -> Key {
    Key::from(format!("jobs/{job}/parked"))
}

fn key(job: JobId, index: u32, format: ImageFormat) -> Key {
    let extension = match format {
        ImageFormat::Png => "png",
        ImageFormat::Jpeg => "jpg",
        ImageFormat::Webp => "webp",
    };
    Key::from(format!("jobs/{job}/{index}.{extension}"))
}
