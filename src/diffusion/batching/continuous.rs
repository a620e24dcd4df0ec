//! Policy `continuous`: samples of one [`BatchKey`] share the forward whatever their steps, join at any step, leave when
//! they are done, and their places are taken at once.
//!
//! **Order.** Who stands first in the queue is first ([`QueuePlace`]: by time of acceptance, moved by priority). Three rules
//! bend this, none by more than [`ALIKE_WITHIN_MS`]: of the samples of a key, those with as many steps as the batch has are
//! taken aboard before the others; a sample aboard gives up its place only to one that stands so much before it; and a key
//! gives up the device only to one whose oldest sample stands so much before its own.
//!
//! **Turns.** So between keys the device goes by turns: the oldest sample's key has it until that sample is done and what
//! is left of the key is younger than what another has; others of the key join meanwhile. What is unfinished at the
//! turn's end is parked and goes on later where it was. A key's turn begins at once when one of its samples comes late
//! to a place before all others, and such a sample gets the place of a younger one of its own key: an interactive job
//! parks normal ones at the next step, a normal one bulk ones.
//!
//! **Nobody waits for ever.** While a sample x waits, every forward has a sample aboard that stands before x or less than
//! twice [`ALIKE_WITHIN_MS`] after it. For the oldest sample o of the key that has the turn stands before x or less than
//! once that after it, by the third rule. Either o is aboard, or it waits for a place; then by the second rule one of
//! those aboard stands before o or less than once that after it. (The property test below holds this to be so.) So x
//! waits for no more forwards than such samples have evaluations left. These were accepted before x or, since an
//! interactive job stands 30 s before its acceptance and a bulk one 300 s after it, at most so much later: 2 s where x is
//! interactive, 32 s where it is normal and 332 s where it is bulk. Nothing that is accepted later delays x. (Where owners have
//! shares, places are turns of a clock of their own: all this holds with "has its turn" for "is accepted", and how much
//! of others' can have theirs before x is bounded where turns are given out.)

use std::collections::HashMap;
use std::sync::Arc;

use super::waiting::{Place, Waiting, place};
use super::{BatchCaps, BatchKey, CostModel, Demand, SampleId, SampleMeta, StepBatch, StopReason};
use crate::domain::{ALIKE_WITHIN_MS, QueuePlace};

/// Keeps who is here, who is aboard and whose turn it is; the samples' own state is the engine's.
#[derive(Debug)]
pub struct Continuous {
    pub(super) cost: CostModel,
    /// Rows that wait for this device, beyond those here.
    pub(super) waiting_rows: u32,
    samples: HashMap<SampleId, SampleMeta>,
    /// Of all samples.
    rows: u32,
    /// Those that are not aboard.
    waiting: Waiting,
    turn: Option<Turn>,
}

#[derive(Debug)]
struct Turn {
    key: Arc<BatchKey>,
    /// In the order of their coming aboard.
    aboard: Vec<SampleId>,
    rows: u32,
    stop: StopReason,
}

impl Turn {
    fn of(key: Arc<BatchKey>) -> Self {
        Self { key, aboard: Vec::new(), rows: 0, stop: StopReason::NoMoreCompatible }
    }
}

/// Whether the first stands so far before the second that the rules that bend the order don't.
fn is_well_before(first: QueuePlace, second: QueuePlace) -> bool {
    first.rank_ms.saturating_add(ALIKE_WITHIN_MS) < second.rank_ms
}

impl Continuous {
    pub(super) fn new(caps: BatchCaps) -> Self {
        Self {
            cost: CostModel::new(caps),
            waiting_rows: 0,
            samples: HashMap::new(),
            rows: 0,
            waiting: Waiting::default(),
            turn: None,
        }
    }

    // Who is here ------------------------------------------------------------------------------------------------

    pub(super) fn add(&mut self, sample: SampleMeta) {
        self.rows += sample.rows;
        self.waiting.add(&sample);
        self.samples.insert(sample.id, sample);
    }

    pub(super) fn remove(&mut self, id: SampleId) {
        let Some(meta) = self.samples.remove(&id) else { return };
        self.rows -= meta.rows;
        self.waiting.remove(&meta);
        if let Some(turn) = self.turn_with(id) {
            turn.aboard.retain(|aboard| *aboard != id);
            turn.rows -= meta.rows;
        }
    }

    /// The turn, if this sample is aboard.
    fn turn_with(&mut self, id: SampleId) -> Option<&mut Turn> {
        self.turn.as_mut().filter(|turn| turn.aboard.contains(&id))
    }

    pub(super) fn advanced(&mut self, sample: &SampleMeta) {
        let Some(known) = self.samples.get_mut(&sample.id) else { return };
        let before = std::mem::replace(known, sample.clone());
        // Behind its last guided step a sample needs one row less.
        if before.rows == sample.rows {
            return;
        }
        self.rows = self.rows - before.rows + sample.rows;
        match self.turn_with(sample.id) {
            Some(turn) => turn.rows = turn.rows - before.rows + sample.rows,
            None => {
                self.waiting.remove(&before);
                self.waiting.add(sample);
            }
        }
    }

    /// Everybody leaves, to come aboard anew under other bounds.
    pub(super) fn dissolve(&mut self) {
        if let Some(turn) = self.turn.take() {
            self.park(&turn);
        }
    }

    fn park(&mut self, turn: &Turn) {
        for id in &turn.aboard {
            self.waiting.add(&self.samples[id]);
        }
    }

    fn aboard<'a>(&'a self, turn: &'a Turn) -> impl Iterator<Item = &'a SampleMeta> {
        turn.aboard.iter().map(|id| &self.samples[id])
    }

    // The next batch ---------------------------------------------------------------------------------------------

    pub(super) fn next_batch(&mut self) -> Option<StepBatch> {
        let mut turn = self.whose_turn()?;
        self.fill(&mut turn);
        let batch = StepBatch::of(turn.key.clone(), self.aboard(&turn), turn.stop);
        self.turn = Some(turn);
        Some(batch)
    }

    /// The present turn, unless a sample of another key stands well before all of its own.
    fn whose_turn(&mut self) -> Option<Turn> {
        let turn = self.turn.take();
        let oldest_here = turn.as_ref().and_then(|turn| self.oldest_of(turn));
        let oldest = self.waiting.oldest();
        match (turn, oldest_here, oldest) {
            (Some(turn), Some(_), None) => Some(turn),
            (Some(turn), Some(here), Some(oldest)) if !is_well_before(oldest.0, here.0) => Some(turn),
            (turn, _, Some((_, id))) => {
                if let Some(turn) = turn {
                    self.park(&turn);
                }
                Some(Turn::of(self.samples[&id].key.clone()))
            }
            (_, None, None) => None,
            (None, Some(_), None) => unreachable!("nobody is aboard without a turn. This is a bug in batching."),
        }
    }

    /// The oldest sample of a turn's key.
    fn oldest_of(&self, turn: &Turn) -> Option<Place> {
        let aboard = self.aboard(turn).map(place).min();
        aboard.into_iter().chain(self.waiting.oldest_of(&turn.key)).min()
    }

    /// Takes aboard what there is room for, and who stands well before somebody aboard in that one's place.
    fn fill(&mut self, turn: &mut Turn) {
        let (target, bound) = self.target(&turn.key, self.rows);
        let oldest = self.waiting.oldest_of(&turn.key);
        let mut next = oldest;
        let mut is_full = false;
        while let Some((_, id)) = next {
            let rows = self.samples[&id].rows;
            is_full = !turn.aboard.is_empty() && turn.rows + rows > target && !self.displace(turn, id, target);
            if is_full {
                break;
            }
            self.waiting.remove(&self.samples[&id]);
            turn.aboard.push(id);
            turn.rows += rows;
            next = self.next_aboard(turn, oldest);
        }
        turn.stop = if is_full || turn.rows >= target { bound } else { StopReason::NoMoreCompatible };
    }

    /// After the oldest: those that came soon after it and have as many steps as the first aboard; then the others by age.
    fn next_aboard(&self, turn: &Turn, oldest: Option<Place>) -> Option<Place> {
        let like = turn.aboard.first().map_or(0, |id| self.samples[id].steps);
        let alike = self.waiting.oldest_alike(&turn.key, like);
        let is_due = |alike: &Place| oldest.is_some_and(|oldest| !is_well_before(oldest.0, alike.0));
        alike.filter(is_due).or_else(|| self.waiting.oldest_of(&turn.key))
    }

    /// Parks the youngest aboard until there is room for this one; nobody, when those it stands well before don't have
    /// enough.
    fn displace(&mut self, turn: &mut Turn, id: SampleId, target: u32) -> bool {
        let meta = &self.samples[&id];
        let mut younger: Vec<&SampleMeta> = self.aboard(turn).collect();
        younger.retain(|aboard| is_well_before(meta.place, aboard.place));
        younger.sort_unstable_by_key(|aboard| std::cmp::Reverse(place(aboard)));
        let mut rows = turn.rows;
        let is_alone = younger.len() == turn.aboard.len();
        let enough = younger.iter().position(|aboard| {
            rows -= aboard.rows;
            rows + meta.rows <= target
        });
        let parked = match enough {
            Some(last) => last + 1,
            None if is_alone => younger.len(),
            None => return false,
        };
        let parked: Vec<SampleId> = younger[..parked].iter().map(|aboard| aboard.id).collect();
        for id in parked {
            let meta = &self.samples[&id];
            turn.rows -= meta.rows;
            turn.aboard.retain(|aboard| *aboard != id);
            self.waiting.add(meta);
        }
        true
    }

    /// Rows a batch of this key should have when so many are here, and what says so.
    fn target(&self, key: &BatchKey, here: u32) -> (u32, StopReason) {
        let (most, bound) = self.cost.bound(key);
        let wanted = self.cost.of(key).rows(here.saturating_add(self.waiting_rows));
        if wanted < most { (wanted, StopReason::Cost) } else { (most, bound) }
    }

    // What else it could use -------------------------------------------------------------------------------------

    pub(super) fn demand(&self) -> Option<Demand> {
        let turn = self.turn.as_ref()?;
        let stays = || self.aboard(turn).filter(|sample| sample.left > 1);
        let leaving: u32 = self.aboard(turn).filter(|sample| sample.left <= 1).map(|sample| sample.rows).sum();
        let (target, _) = self.target(&turn.key, self.rows - leaving);
        let here = stays().map(place).chain(self.waiting.oldest_of(&turn.key)).min();
        let oldest = self.waiting.oldest();
        let is_lost = match (here, oldest) {
            (Some(here), Some(oldest)) => is_well_before(oldest.0, here.0),
            (here, oldest) => here.is_none() && oldest.is_some(),
        };
        let of_key = turn.rows - leaving + self.waiting.rows_of(&turn.key);
        let rows = if is_lost { 0 } else { target.max(1).saturating_sub(of_key) };
        let before = |place: QueuePlace| QueuePlace { rank_ms: place.rank_ms.saturating_sub(ALIKE_WITHIN_MS), ..place };
        let youngest = stays().map(|meta| meta.place).max();
        Some(Demand {
            key: turn.key.clone(),
            steps: self.aboard(turn).next().map_or(0, |sample| sample.steps),
            rows,
            displaces: if rows == 0 && !is_lost { youngest.map(before) } else { None },
            target,
            before: if is_lost { oldest.map(|oldest| oldest.0) } else { here.map(|here| before(here.0)) },
        })
    }
}

#[cfg(test)]
mod tests;
