//! The hash by which people know a checkpoint: "Model hash" of A1111 and Civitai is its first ten digits.

use std::thread::JoinHandle;

use sha2::{Digest, Sha256};

use super::checkpoint::Checkpoint;
use super::inspect::hex;

/// A checkpoint's hash, in the making on a thread of its own: a file of 7 GB takes some seconds, about as long as reading its
/// tensors beside.
#[derive(Debug)]
pub struct Hashing(Option<JoinHandle<Option<String>>>);

impl Hashing {
    /// Lower-case hex; none of a checkpoint whose weights cannot be read.
    pub fn finish(self) -> Option<String> {
        self.0?.join().ok().flatten()
    }
}

impl Checkpoint {
    /// Begins to compute [`Checkpoint::sha256`].
    pub fn hashing(&self) -> Hashing {
        let checkpoint = self.clone();
        let compute = move || checkpoint.sha256();
        Hashing(std::thread::Builder::new().name("darkroom-hash".to_owned()).spawn(compute).ok())
    }

    /// SHA-256 of a checkpoint in one file. A folder has no hash of its own elsewhere: its U-Net's weights are taken, and where
    /// they lie in several files, the SHA-256 of those files' hashes in hex, one after the other in the order of their names.
    /// What an operator says of a checkpoint besides is not in it.
    pub fn sha256(&self) -> Option<String> {
        let shards = match self {
            Self::Changed(changed) => match (&changed.base, &changed.variant) {
                (base @ Self::Folder(_), Some(variant)) => base.shards("unet", Some(variant)).ok()?,
                (base, _) => return base.sha256(),
            },
            Self::File(file) => vec![file.shard.clone()],
            Self::Folder(_) | Self::Embedded { .. } => self.shards("unet", None).ok()?,
            Self::Component(..) | Self::VaeFile(_) | Self::TinyFile(_) | Self::ControlNetFile(_) => return None,
        };
        let each: Vec<String> = shards.iter().map(|shard| hex(&Sha256::digest(shard.bytes()))).collect();
        match &each[..] {
            [one] => Some(one.clone()),
            several => Some(hex(&Sha256::digest(several.concat()))),
        }
    }
}
