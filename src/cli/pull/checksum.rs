//! What a hub knows its files by: large ones (Git LFS) by SHA-256, small ones by git's name for their contents.

use std::fmt;

use crate::domain::hex;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// A checksum, in lower-case hex.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Sum {
    /// Of the bytes.
    Sha256(String),
    /// SHA-1 of `blob`, the size and the bytes.
    GitBlob(String),
}

impl Sum {
    /// From an etag or a list; anything else than a hash is none.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.trim().trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
        match text.len() {
            _ if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) => None,
            64 => Some(Self::Sha256(text)),
            40 => Some(Self::GitBlob(text)),
            _ => None,
        }
    }

    pub(super) fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitBlob(hex) => hex,
        }
    }
}

impl fmt::Debug for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(hex) => write!(f, "SHA-256 {hex}"),
            Self::GitBlob(hex) => write!(f, "git blob {hex}"),
        }
    }
}

/// Computes a checksum of the kind that another is of.
pub(super) enum Summing {
    Sha256(Sha256),
    GitBlob(Sha1),
}

impl Summing {
    /// For a file of `size` bytes.
    pub(super) fn like(sum: &Sum, size: u64) -> Self {
        match sum {
            Sum::Sha256(_) => Self::Sha256(Sha256::new()),
            Sum::GitBlob(_) => Self::GitBlob(Sha1::new_with_prefix(format!("blob {size}\0"))),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::GitBlob(hash) => hash.update(bytes),
        }
    }

    pub(super) fn finish(self) -> Sum {
        match self {
            Self::Sha256(hash) => Sum::Sha256(hex(hash.finalize())),
            Self::GitBlob(hash) => Sum::GitBlob(hex(hash.finalize())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_what_git_and_sha256sum_say() {
        // `printf 'hello\n' | git hash-object --stdin`, `printf 'hello\n' | sha256sum`
        let cases = [
            "ce013625030ba8dba906f756967f9e9ca394464a",
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        ];
        for case in cases {
            let told = Sum::parse(&format!("\"{case}\"")).expect("a hash");
            let mut summing = Summing::like(&told, 6);
            summing.update(b"hel");
            summing.update(b"lo\n");
            assert_eq!(summing.finish(), told);
        }
        for none in ["", "\"d41d8cd98f00b204e9800998ecf8427e-5\"", "W/\"abc\"", &"g".repeat(40)] {
            assert_eq!(Sum::parse(none), None, "{none}");
        }
    }
}
