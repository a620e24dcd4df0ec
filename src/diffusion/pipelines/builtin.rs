//! The built-in model, embedded in the binary by the feature `pinhole`.

use crate::diffusion::weights::Checkpoint;

/// Its id.
pub(super) const PINHOLE: &str = "pinhole";

#[cfg(feature = "pinhole")]
#[derive(rust_embed::RustEmbed)]
#[folder = "models/pinhole"]
struct Files;

/// The embedded checkpoint of that id; `None` when this binary has none.
pub(super) fn checkpoint(id: &str) -> Option<Checkpoint> {
    #[cfg(feature = "pinhole")]
    if id == PINHOLE {
        let files = |path: &str| <Files as rust_embed::RustEmbed>::get(path).map(|file| file.data);
        return Some(Checkpoint::Embedded { name: id.to_owned(), files });
    }
    let _ = id;
    None
}
