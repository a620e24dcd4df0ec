//! A worker's last deed: what is still aboard goes back to the queue with where it stands.

use super::Worker;

impl Worker {
    /// Takes off the engine what is aboard, stops it, waits for what is being stored, and hands back the rest.
    pub(super) async fn leave(mut self) {
        for job in self.aboard.keys() {
            // An engine that is gone parks nothing; its jobs are handed back below.
            let _ = self.engine.park(*job);
        }
        // The engine may be waiting for room in the channel: heeding its events lets it see the stop.
        let engine = self.engine.clone();
        let stopped = tokio::task::spawn_blocking(move || engine.stop());
        while let Some(event) = self.events.recv().await {
            self.heed(event).await;
        }
        if let Err(error) = stopped.await {
            tracing::warn!(%error, "the engine's stop failed");
        }
        while self.ending.join_next().await.is_some() {}
        for run in self.aboard.into_values() {
            run.hand_back(&self.parts).await;
        }
    }
}
