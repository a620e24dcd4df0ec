//! What a forward costs, learnt from the forwards that ran, and how many rows are worth it.
//!
//! A forward of n rows takes about `a + b n` seconds: `a` whatever the rows (launching kernels, reading the weights), `b`
//! for each row. Both are fitted for every [`BatchKey`] by least squares, in which older forwards count for less and less
//! and one that took far longer than expected (a page fault, a neighbour on the processor) is pulled back to the edge of
//! what is usual.
//!
//! Memory is believed likewise ([`MemoryCost`]), where forwards are measured, and bounds the rows of a forward before it runs.

mod bytes;
mod fit;
mod headroom;
mod sums;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::BytesFit;
use fit::Fit;
use headroom::Headroom;

use super::{BatchCaps, BatchKey, StopReason};
use crate::domain::{Cost, MemoryCost};

/// `a / b` before anything was measured: 4 rows double the time of an empty forward. Batches are then neither one row nor
/// all there is, so that soon there is something to fit.
const PRIOR_RATIO: f64 = 4.0;
/// What a size takes that was never measured is taken to be so many times what the nearest says; a smaller one, as much.
const GUESSED: f64 = 1.5;
/// Clients choose sizes: without a bound they could fill the memory.
const MAX_KEYS: usize = 256;

/// The costs of every key seen so far, and how many rows its forwards may have.
#[derive(Debug)]
pub struct CostModel {
    caps: BatchCaps,
    /// Most bytes that a forward may take above what is there.
    most_bytes: Option<u64>,
    keys: HashMap<Arc<BatchKey>, Known>,
    observed: u64,
}

/// What is known of one key.
#[derive(Debug, Default)]
struct Known {
    seconds: Option<Fit>,
    bytes: Option<BytesFit>,
    /// Where memory ran out.
    headroom: Option<Headroom>,
    /// When it was last heard of, in forwards of the whole model.
    last: u64,
}

impl CostModel {
    /// Nothing is known but the operator's bounds.
    pub fn new(caps: BatchCaps) -> Self {
        Self { caps, most_bytes: None, keys: HashMap::new(), observed: 0 }
    }

    /// Bounds what a forward may take above what is there, in bytes; `None`: no bound.
    pub fn bound_memory(&mut self, bytes: Option<u64>) {
        self.most_bytes = bytes;
    }

    /// What a forward of this key is thought to cost: as fitted, else as for the nearest size of the same model, scaled.
    /// Before anything was measured only the ratio of its parts means something.
    pub fn of(&self, key: &BatchKey) -> Cost {
        self.believed(key).unwrap_or(Cost { fixed: PRIOR_RATIO, per_row: 1.0 })
    }

    /// The same; `None` where no forward of the model was measured.
    pub fn believed(&self, key: &BatchKey) -> Option<Cost> {
        let (fit, scale) = self.nearest(key, |known| known.seconds.as_ref())?;
        Some(Cost { fixed: fit.cost.fixed, per_row: fit.cost.per_row * scale })
    }

    /// What forwards of this key take, in bytes; `None` where none was measured.
    pub fn memory(&self, key: &BatchKey) -> Option<MemoryCost> {
        self.keys.get(key)?.bytes.as_ref().map(BytesFit::line)
    }

    /// What is known of this key, else of the nearest size of the same model, and how many times as many pixels this one has.
    fn nearest<'a, T>(&'a self, key: &BatchKey, part: impl Fn(&'a Known) -> Option<&'a T>) -> Option<(&'a T, f64)> {
        if let Some(own) = self.keys.get(key).and_then(&part) {
            return Some((own, 1.0));
        }
        let same_model = self.keys.iter().filter(|(known, _)| known.model == key.model);
        let with_part = same_model.filter_map(|(known, of)| Some((known.pixels(), part(of)?)));
        let (pixels, nearest) = with_part.min_by_key(|(pixels, _)| pixels.abs_diff(key.pixels()))?;
        Some((nearest, key.pixels() as f64 / pixels.max(1) as f64))
    }

    /// Most rows of a forward of this key, and what says so.
    pub fn bound(&self, key: &BatchKey) -> (u32, StopReason) {
        let caps = self.caps.rows_of(key);
        let fitted = self.keys.get(key).and_then(|known| known.headroom.as_ref()).map(Headroom::rows);
        let by_memory = fitted.into_iter().chain(self.rows_in_memory(key)).min();
        match by_memory {
            Some(rows) if rows < caps => (rows, StopReason::Memory),
            _ if caps < self.caps.max_rows => (caps, StopReason::MaxRowPixels),
            _ => (caps, StopReason::MaxRows),
        }
    }

    /// Most rows that are believed to take no more memory than they may. One, where nothing of the model was measured: that
    /// will be soon.
    fn rows_in_memory(&self, key: &BatchKey) -> Option<u32> {
        let most = self.most_bytes?;
        let Some((fit, scale)) = self.nearest(key, |known| known.bytes.as_ref()) else { return Some(1) };
        let is_own = self.keys.get(key).is_some_and(|known| known.bytes.is_some());
        Some(fit.rows_within(most, if is_own { 1.0 } else { GUESSED * scale.max(1.0) }))
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

    /// A forward of so many rows took so many bytes above what was there.
    pub fn observe_bytes(&mut self, key: &Arc<BatchKey>, rows: u32, bytes: u64) {
        if rows > 0 {
            self.heard_of(key).bytes.get_or_insert_default().observe(rows, bytes);
        }
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
