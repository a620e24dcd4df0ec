//! Between the workers of one process: an idle one asks for what waits with a busy one, whose engine parks it; it goes by way
//! of the queue, so that a lease is never in two hands.

use tokio::sync::broadcast;

use super::Worker;
use crate::dispatch::hub::Ask;
use crate::domain::ModelId;

impl Worker {
    /// Nothing is in the queue that it could draw with these models. Once a look: its own ask is heard by itself too.
    pub(super) fn ask(&mut self, models: Vec<ModelId>) {
        if std::mem::take(&mut self.may_ask) && self.parts.hub.is_anyone_busy() {
            self.parts.hub.ask(Ask::new(self.models.device(), models));
        }
    }

    /// Has its engine give away a job, where more are aboard than its batch has. Asks that are missed come again.
    pub(super) fn heed_ask(&self, ask: Result<Ask, broadcast::error::RecvError>) {
        let Ok(ask) = ask else { return };
        let with_engine = self.aboard.values().filter(|run| !run.is_preparing).count() as u32;
        let is_one_waiting = self.batch_jobs > 0 && with_engine > self.batch_jobs;
        if is_one_waiting && self.stop.borrow().is_none() && ask.device.is_like(self.models.device()) && ask.answer() {
            self.engine.give_away(ask.models);
        }
    }
}
