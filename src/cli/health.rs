//! `darkroom health`

use std::net::SocketAddr;

use clap::Args;

use super::ServeArgs;

/// Flags of `health`.
#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    /// Where the server listens; when absent, this machine, at the port of the settings (server.listen).
    #[arg(long)]
    url: Option<String>,
    #[command(flatten)]
    settings: ServeArgs,
}

pub(super) async fn health(args: HealthArgs) -> Result<(), String> {
    let base = match args.url {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => local(&args.settings.settings()?.server.listen)?,
    };
    let url = format!("{base}/readyz");
    let response = reqwest::get(&url).await.map_err(|error| format!("{url}: {error}"))?;
    if response.status().is_success() { Ok(()) } else { Err(format!("{url}: {}", response.status())) }
}

/// Where a server that listens on `listen` can be asked from this machine: an unspecified address listens on all of its own.
fn local(listen: &str) -> Result<String, String> {
    let mut address: SocketAddr = listen.parse().map_err(|error| format!("server.listen `{listen}`: {error}"))?;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    Ok(format!("http://{address}"))
}

#[cfg(test)]
mod tests {
    use super::local;

    #[test]
    fn an_unspecified_address_is_asked_on_the_loopback() {
        let cases = [
            ("0.0.0.0:7860", "http://127.0.0.1:7860"),
            ("[::]:7860", "http://[::1]:7860"),
            ("10.0.0.7:80", "http://10.0.0.7:80"),
        ];
        for (listen, url) in cases {
            assert_eq!(local(listen).as_deref(), Ok(url));
        }
    }
}
