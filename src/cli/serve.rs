//! `darkroom serve`

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::say;
use crate::app::{App, Seams, Storage};
use crate::config::Settings;

pub(super) async fn serve(settings: Settings) -> Result<(), String> {
    let listen = settings.server.listen.clone();
    // Taken before the models load: a port in use is told at once.
    let listener = TcpListener::bind(&listen).await.map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    let app = App::build(&settings, Storage::Durable, Seams::default()).await?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    say(format!("darkroom listens on http://{address}"))?;
    app.serve(listener, asked_to_stop()?).await.map_err(|error| error.to_string())
}

/// Resolves at SIGTERM or SIGINT.
fn asked_to_stop() -> Result<impl Future<Output = ()>, String> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
