//! API keys: who may ask. The keys themselves are nowhere.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::domain::hex;

/// Longest name.
const MAX_NAME: usize = 64;
const MAX_WEIGHT: u32 = 1000;

/// One key, by its hash.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySettings {
    /// Whose the jobs are that come with it.
    pub name: String,
    /// Lower-case or upper-case hex of the key's SHA-256.
    pub sha256: String,
    /// Its share of the devices, in pixel-steps, next to the weights of others who have jobs waiting; 1 to 1000.
    #[serde(default = "one")]
    pub weight: u32,
    /// Sees everybody's jobs.
    #[serde(default)]
    pub admin: bool,
}

fn one() -> u32 {
    1
}

impl fmt::Debug for KeySettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, weight, admin, .. } = self;
        write!(f, "KeySettings {{ name: {name:?}, weight: {weight}, admin: {admin}, .. }}")
    }
}

impl KeySettings {
    /// The settings of a key.
    pub fn of(key: &str, name: String, weight: u32, admin: bool) -> Self {
        let sha256 = hex(Sha256::digest(key));
        Self { name, sha256, weight, admin }
    }

    /// The hash; `None` where `sha256` is none.
    pub fn digest(&self) -> Option<[u8; 32]> {
        let mut digest = [0; 32];
        let (pairs, rest) = self.sha256.as_bytes().as_chunks::<2>();
        if pairs.len() != digest.len() || !rest.is_empty() {
            return None;
        }
        for (byte, pair) in digest.iter_mut().zip(pairs) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16);
            *byte = u8::try_from(digit(0)? * 16 + digit(1)?).ok()?;
        }
        Some(digest)
    }

    /// What is wrong with it by itself. What stands in `sha256` is not repeated: it may be a key.
    pub fn faults(&self) -> Vec<String> {
        let Self { name, weight, .. } = self;
        let mut faults = Vec::new();
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(is_plain) {
            let told: String = name.chars().take(MAX_NAME).collect();
            faults.push(format!(
                "`name` is `{told}`; it must be 1 to {MAX_NAME} letters, digits, `-`, `_` or `.` (ASCII)"
            ));
        }
        if self.digest().is_none() {
            let count = self.sha256.chars().count();
            faults.push(format!(
                "`sha256` of `{name}` must be the key's SHA-256, 64 hex digits, not these {count} characters; \
                 `darkroom keys new` prints one"
            ));
        }
        if !(1..=MAX_WEIGHT).contains(weight) {
            faults.push(format!("`weight` of `{name}` is {weight}; it must be 1 to {MAX_WEIGHT}"));
        }
        faults
    }
}

/// What is wrong with them, each by itself and next to the others.
pub(super) fn faults(keys: &[KeySettings]) -> Vec<String> {
    let mut faults = Vec::new();
    for (at, key) in keys.iter().enumerate() {
        faults.extend(key.faults());
        let before = &keys[..at];
        if before.iter().any(|other| other.name == key.name) {
            faults.push(format!("two keys have the name `{}`", key.name));
        }
        let same = before.iter().find(|other| other.digest().is_some() && other.digest() == key.digest());
        if let Some(other) = same {
            faults.push(format!("`{}` and `{}` have the same `sha256`: two names for one key", other.name, key.name));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_of_every_key_is_told_and_no_hash_is() {
        let good = KeySettings::of("dk_a", "alice".to_owned(), 1, false);
        assert_eq!(faults(std::slice::from_ref(&good)), [""; 0]);
        let upper = KeySettings { sha256: good.sha256.to_uppercase(), name: "upper".to_owned(), ..good.clone() };
        assert_eq!(upper.digest(), good.digest());
        let pasted = KeySettings { sha256: "dk_secret".to_owned(), ..good.clone() };
        let odd = KeySettings { name: "a b".to_owned(), weight: 0, ..KeySettings::of("dk_b", String::new(), 1, true) };
        let heavy = KeySettings { weight: 1001, ..KeySettings::of("dk_c", "é".to_owned(), 1, true) };
        let told = faults(&[good, pasted, odd, heavy, upper]).join("\n");
        let expected = [
            "`sha256` of `alice` must be",
            "these 9 characters",
            "two keys have the name `alice`",
            "`name` is `a b`",
            "`weight` of `a b` is 0",
            "`name` is `é`",
            "`weight` of `é` is 1001",
            "`alice` and `upper` have the same",
        ];
        for part in expected {
            assert!(told.contains(part), "{part} in {told}");
        }
        assert!(!told.contains("dk_secret"), "{told}");
        assert_eq!(told.lines().count(), 7, "{told}");
    }

    #[test]
    fn a_key_is_known_by_its_sha256() {
        let key = KeySettings::of("dk_test", "bob".to_owned(), 3, false);
        // printf dk_test | sha256sum
        assert_eq!(key.sha256, "c7227eeed0fef371f9acff96fbd4943211a10a4f41642d172f133acc9963c96b");
        assert!(!format!("{key:?}").contains(&key.sha256));
        for broken in ["", "0", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"é".repeat(32)] {
            assert_eq!(KeySettings { sha256: broken.to_owned(), ..key.clone() }.digest(), None, "{broken}");
        }
    }
}
