//! The hash by which people know a checkpoint: "Model hash" of A1111 and Civitai is its first ten digits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use sha2::{Digest, Sha256};

use super::checkpoint::Checkpoint;
use crate::domain::hex;

/// Bytes that are hashed between two looks at whether anybody still wants the hash.
const PIECE: usize = 1 << 20;

/// A checkpoint's hash, in the making on a thread of its own: a file of 7 GB takes some seconds, about as long as reading its
/// tensors beside. Dropped, it stops: nobody may be reading a mapped file when whoever gave up on it replaces the file.
#[derive(Debug)]
pub struct Hashing {
    thread: Option<JoinHandle<Option<String>>>,
    is_given_up: Arc<AtomicBool>,
}

impl Hashing {
    /// Lower-case hex; none of a checkpoint whose weights cannot be read.
    pub fn finish(mut self) -> Option<String> {
        self.thread.take()?.join().ok().flatten()
    }
}

impl Drop for Hashing {
    fn drop(&mut self) {
        self.is_given_up.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there would have been told by the thread itself.
            let _ = thread.join();
        }
    }
}

impl Checkpoint {
    /// Begins to compute [`Checkpoint::sha256`].
    pub fn hashing(&self) -> Hashing {
        let (checkpoint, is_given_up) = (self.clone(), Arc::new(AtomicBool::new(false)));
        let seen = is_given_up.clone();
        let compute = move || checkpoint.hashed(&seen);
        let thread = std::thread::Builder::new().name("darkroom-hash".to_owned()).spawn(compute).ok();
        Hashing { thread, is_given_up }
    }

    /// SHA-256 of a checkpoint in one file. A folder has no hash of its own elsewhere: its U-Net's weights are taken, and where
    /// they lie in several files, the SHA-256 of those files' hashes in hex, one after the other in the order of their names.
    /// What an operator says of a checkpoint besides is not in it.
    pub fn sha256(&self) -> Option<String> {
        self.hashed(&AtomicBool::new(false))
    }

    fn hashed(&self, is_given_up: &AtomicBool) -> Option<String> {
        let shards = match self {
            Self::Changed(changed) => match (&changed.base, &changed.variant) {
                (base @ Self::Folder(_), Some(variant)) => base.shards("unet", Some(variant)).ok()?,
                (base, _) => return base.hashed(is_given_up),
            },
            Self::File(file) => vec![file.shard.clone()],
            Self::Folder(_) | Self::Embedded { .. } => self.shards("unet", None).ok()?,
            Self::Component(..) | Self::VaeFile(_) | Self::TinyFile(_) | Self::ControlNetFile(_) => return None,
        };
        let hash = |bytes: &[u8]| {
            let mut hash = Sha256::new();
            for piece in bytes.chunks(PIECE) {
                if is_given_up.load(Ordering::Relaxed) {
                    return None;
                }
                hash.update(piece);
            }
            Some(hex(hash.finalize()))
        };
        let each = shards.iter().map(|shard| hash(shard.bytes())).collect::<Option<Vec<_>>>()?;
        match &each[..] {
            [one] => Some(one.clone()),
            several => Some(hex(Sha256::digest(several.concat()))),
        }
    }
}
