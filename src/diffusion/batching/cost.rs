//! What a forward costs, learnt from the forwards that ran, and how many rows are worth it.
//!
//! A forward of n rows takes about `a + b n` seconds: `a` whatever the rows (launching kernels, reading the weights), `b`
//! for each row. Both are fitted for every [`BatchKey`] by least squares, in which older forwards count for less and less
//! and one that took far longer than expected (a page fault, a neighbour on the processor) is pulled back to the edge of
//! what is usual.

mod fit;
mod headroom;

use std::collections::HashMap;
use std::sync::Arc;

use fit::Fit;
use headroom::Headroom;

use super::{BatchCaps, BatchKey, StopReason};

/// `a / b` before anything was measured: 4 rows double the time of an empty forward. Batches are then neither one row nor
/// all there is, so that soon there is something to fit.
const PRIOR_RATIO: f64 = 4.0;
/// Clients choose sizes: without a bound they could fill the memory.
const MAX_KEYS: usize = 256;

/// What one forward costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Whatever its rows, in seconds; at least 0.
    pub fixed: f64,
    /// Each row, in seconds; above 0.
    pub per_row: f64,
}

impl Cost {
    /// Seconds of a forward of so many rows.
    pub fn seconds(self, rows: u32) -> f64 {
        self.fixed + self.per_row * f64::from(rows)
    }

    /// How many rows a forward should have when so many are in the system: `2 sqrt(k (1 + k / 30) a / b)`.
    ///
    /// With n of k rows aboard, all are done after `(k / n) (a + b n)` an evaluation. On average a row waits half of that
    /// for its turn, and aboard it waits in proportion to n for those beside it; `k a / n` and `b n` are in balance when n
    /// goes with `sqrt(k a / b)`. The factors are what simulated traffic wants (`benches/simulate`): 2, since places are
    /// taken at once, so that rows wait for each other less than whole batches would; and `1 + k / 30`, since a long queue
    /// means a busy device, on which those yet to come wait less too. Where rows cost all and the forward nothing, that is
    /// one at a time; where the forward costs all, it is whatever there is.
    pub fn rows(self, in_system: u32) -> u32 {
        let k = f64::from(in_system);
        let rows = 2.0 * (k * (1.0 + k / 30.0) * self.fixed / self.per_row).sqrt();
        // Down: a row that is only half worth it makes those aboard wait. Saturates at the ends; NaN cannot come of two
        // finite costs, of which one is above 0.
        rows as u32
    }
}

/// The costs of every key seen so far, and how many rows its forwards may have.
#[derive(Debug)]
pub struct CostModel {
    caps: BatchCaps,
    keys: HashMap<Arc<BatchKey>, Known>,
    observed: u64,
}

/// What is known of one key.
#[derive(Debug, Default)]
struct Known {
    seconds: Option<Fit>,
    /// Where memory ran out.
    headroom: Option<Headroom>,
    /// When it was last heard of, in forwards of the whole model.
    last: u64,
}

impl CostModel {
    /// Nothing is known but the operator's bounds.
    pub fn new(caps: BatchCaps) -> Self {
        Self { caps, keys: HashMap::new(), observed: 0 }
    }

    /// What a forward of this key is thought to cost: as fitted, else as for the nearest size of the same model, scaled.
    pub fn of(&self, key: &BatchKey) -> Cost {
        if let Some(fit) = self.keys.get(key).and_then(|known| known.seconds.as_ref()) {
            return fit.cost;
        }
        let fits = self.keys.iter().filter_map(|(known, of)| Some((known, of.seconds.as_ref()?)));
        let same_model = fits.filter(|(known, _)| known.model == key.model);
        let nearest = same_model.min_by_key(|(known, _)| known.pixels().abs_diff(key.pixels()));
        nearest.map_or(Cost { fixed: PRIOR_RATIO, per_row: 1.0 }, |(known, fit)| {
            let scale = key.pixels() as f64 / known.pixels().max(1) as f64;
            Cost { fixed: fit.cost.fixed, per_row: fit.cost.per_row * scale }
        })
    }

    /// Most rows of a forward of this key, and what says so.
    pub fn bound(&self, key: &BatchKey) -> (u32, StopReason) {
        let caps = self.caps.rows_of(key);
        let fitted = self.keys.get(key).and_then(|known| known.headroom.as_ref()).map(Headroom::rows);
        match fitted {
            Some(rows) if rows < caps => (rows, StopReason::Memory),
            _ if caps < self.caps.max_rows => (caps, StopReason::MaxRowPixels),
            _ => (caps, StopReason::MaxRows),
        }
    }

    /// A forward of so many rows took so long.
    pub fn observe(&mut self, key: &Arc<BatchKey>, rows: u32, seconds: f64) {
        if rows == 0 || !seconds.is_finite() || seconds <= 0.0 {
            return;
        }
        let (cost, caps) = (self.of(key), self.caps.rows_of(key));
        let known = self.heard_of(key);
        known.seconds.get_or_insert_with(|| Fit::from(cost)).observe(rows, seconds);
        if let Some(headroom) = &mut known.headroom {
            headroom.went_well(rows);
        }
        known.headroom.take_if(|headroom| headroom.rows() >= caps);
    }

    /// A forward of this key ran out of memory; of those tried after it the largest that did not had so many rows.
    pub fn ran_out(&mut self, key: &Arc<BatchKey>, fitted: u32) {
        let known = self.heard_of(key);
        match &mut known.headroom {
            Some(headroom) => headroom.ran_out(fitted),
            none => *none = Some(Headroom::of(fitted)),
        }
    }

    /// What is known of this key, of which there is news.
    fn heard_of(&mut self, key: &Arc<BatchKey>) -> &mut Known {
        self.observed += 1;
        if !self.keys.contains_key(key) {
            self.forget_one();
        }
        let known = self.keys.entry(key.clone()).or_default();
        known.last = self.observed;
        known
    }

    /// Makes room for one more.
    fn forget_one(&mut self) {
        if self.keys.len() < MAX_KEYS {
            return;
        }
        let oldest = self.keys.iter().min_by_key(|(_, known)| known.last).map(|(key, _)| key.clone());
        oldest.map(|key| self.keys.remove(&key));
    }
}

#[cfg(test)]
mod tests;
