//! `darkroom health`

use clap::Args;

/// Flags of `health`.
#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    /// Where the server listens.
    #[arg(long, default_value = "http://127.0.0.1:7860")]
    url: String,
}

pub(super) async fn health(args: HealthArgs) -> Result<(), String> {
    let url = format!("{}/readyz", args.url.trim_end_matches('/'));
    let response = reqwest::get(&url).await.map_err(|error| format!("{url}: {error}"))?;
    if response.status().is_success() { Ok(()) } else { Err(format!("{url}: {}", response.status())) }
}
