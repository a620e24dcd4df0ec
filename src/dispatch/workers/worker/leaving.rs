//! A worker's last deed: what is still aboard goes back to the queue with where it stands.

use tokio::time::interval;

use super::{Worker, watchdog};

impl Worker {
    /// Takes off the engine what is aboard, stops it, waits for what is being stored, and hands back the rest.
    pub(super) async fn leave(mut self) {
        for job in self.aboard.keys() {
            // An engine that is gone parks nothing; its jobs are handed back below.
            let _ = self.engine.park(*job);
        }
        self.engine.give_up();
        let (mut watch, mut heartbeats) = (interval(watchdog::period(&self.options)), interval(self.options.lease / 3));
        // Its thread lets go of the channel when it ends; a watchdog that gives it up, for it.
        while !self.engine_is_gone {
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => self.heed(event).await,
                    None => break,
                },
                _ = watch.tick() => self.watch().await,
                // A forward may take longer than a lease.
                _ = heartbeats.tick() => self.heartbeat().await,
            }
        }
        while !self.ending.is_empty() {
            tokio::select! {
                ended = self.ending.join_next_with_id() => self.heed_ended(ended),
                _ = heartbeats.tick() => self.heartbeat().await,
            }
        }
        for run in self.aboard.into_values() {
            run.hand_back(&self.parts).await;
        }
    }
}
