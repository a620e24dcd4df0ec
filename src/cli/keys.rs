//! `darkroom keys`

use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::{Args, Subcommand};
use sha2::{Digest, Sha256};

use super::say;
use crate::config::KeySettings;

/// Begins every key, so that one that went astray is recognised.
const PREFIX: &str = "dk_";

#[derive(Debug, Args)]
pub(super) struct KeysArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key. The key goes to standard error, once; its settings to standard output: `keys new NAME >> FILE`.
    New(NewArgs),
}

#[derive(Debug, Args)]
struct NewArgs {
    /// Whose the jobs will be that come with it.
    name: String,
    /// Its share of the devices next to the weights of others who have jobs waiting, 1 to 1000.
    #[arg(long, default_value_t = 1)]
    weight: u32,
    /// Sees everybody's jobs.
    #[arg(long)]
    admin: bool,
}

pub(super) fn keys(KeysArgs { command: Command::New(args) }: KeysArgs) -> Result<(), String> {
    let key = fresh_key();
    let settings = KeySettings::of(&key, args.name, args.weight, args.admin);
    let faults = settings.faults();
    if !faults.is_empty() {
        return Err(faults.join("; "));
    }
    let KeySettings { name, sha256, weight, admin } = settings;
    say(format!("[[keys]]\nname = \"{name}\"\nsha256 = \"{sha256}\"\nweight = {weight}\nadmin = {admin}"))?;
    writeln!(std::io::stderr(), "The key of {name}, which is kept nowhere and not shown again:\n{key}")
        .map_err(|error| format!("cannot print: {error}"))
}

/// 244 random bits of the system's own generator, which is where version 4 UUIDs come from.
fn fresh_key() -> String {
    let mut digest = Sha256::new();
    for uuid in [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()] {
        digest.update(uuid.as_bytes());
    }
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(digest.finalize()))
}
