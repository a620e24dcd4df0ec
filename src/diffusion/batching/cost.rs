//! What a forward costs, learnt from the forwards that ran, and how many rows are worth it.
//!
//! A forward of n rows takes about `a + b n` seconds: `a` whatever the rows (launching kernels, reading the weights), `b`
//! for each row. Both are fitted for every [`BatchKey`] by least squares, in which older forwards count for less and less
//! and one that took far longer than expected (a page fault, a neighbour on the processor) is pulled back to the edge of
//! what is usual.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::BatchKey;

/// `a / b` before anything was measured: 4 rows double the time of an empty forward. Batches are then neither one row nor
/// all there is, so that soon there is something to fit.
const PRIOR_RATIO: f64 = 4.0;
/// `a / b` at least: enough for a second row to be tried when a long queue waits.
const LEAST_RATIO: f64 = 0.02;
/// An earlier forward counts this much of a later one.
const FORGET: f64 = 0.98;
/// The spread of rows (their sum of squared deviations, the latest forward counting 1) from which a slope can be told.
const SPREAD: f64 = 4.0;
/// Forwards further from what is expected than so many usual deviations are outliers.
const OUTLIER: f64 = 4.0;
/// Forwards before there is a usual deviation.
const SETTLED: u32 = 8;
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

/// The costs of every key seen so far.
#[derive(Debug, Default)]
pub struct CostModel {
    fits: HashMap<Arc<BatchKey>, Fit>,
    observed: u64,
}

impl CostModel {
    /// What a forward of this key is thought to cost: as fitted, else as for the nearest size of the same model, scaled.
    pub fn of(&self, key: &BatchKey) -> Cost {
        if let Some(fit) = self.fits.get(key) {
            return fit.cost;
        }
        let same_model = self.fits.iter().filter(|(known, _)| known.model == key.model);
        let nearest = same_model.min_by_key(|(known, _)| known.pixels().abs_diff(key.pixels()));
        nearest.map_or(Cost { fixed: PRIOR_RATIO, per_row: 1.0 }, |(known, fit)| {
            let scale = key.pixels() as f64 / known.pixels().max(1) as f64;
            Cost { fixed: fit.cost.fixed, per_row: fit.cost.per_row * scale }
        })
    }

    /// A forward of so many rows took so long.
    pub fn observe(&mut self, key: &Arc<BatchKey>, rows: u32, seconds: f64) {
        if rows == 0 || !seconds.is_finite() || seconds <= 0.0 {
            return;
        }
        self.observed += 1;
        if !self.fits.contains_key(key) {
            let cost = self.of(key);
            self.forget_one();
            self.fits.insert(key.clone(), Fit::from(cost));
        }
        if let Some(fit) = self.fits.get_mut(key) {
            fit.last = self.observed;
            fit.observe(rows, seconds);
        }
    }

    /// Makes room for one more.
    fn forget_one(&mut self) {
        if self.fits.len() < MAX_KEYS {
            return;
        }
        let oldest = self.fits.iter().min_by_key(|(_, fit)| fit.last).map(|(key, _)| key.clone());
        oldest.map(|key| self.fits.remove(&key));
    }
}

/// Weighted sums over the forwards of one key.
#[derive(Debug)]
struct Fit {
    cost: Cost,
    weight: f64,
    rows: f64,
    seconds: f64,
    rows_rows: f64,
    rows_seconds: f64,
    /// The usual deviation, in seconds.
    deviation: f64,
    /// Forwards in the sums.
    count: u32,
    /// Row counts that have been seen: the first forward of each also pays for choosing kernels and making room.
    seen: HashSet<u32>,
    /// When it was last observed, in forwards of the whole model.
    last: u64,
}

impl Fit {
    fn from(cost: Cost) -> Self {
        Self {
            cost,
            weight: 0.0,
            rows: 0.0,
            seconds: 0.0,
            rows_rows: 0.0,
            rows_seconds: 0.0,
            deviation: 0.0,
            count: 0,
            seen: HashSet::new(),
            last: 0,
        }
    }

    fn observe(&mut self, rows: u32, seconds: f64) {
        if self.seen.insert(rows) {
            return;
        }
        let seconds = self.without_outliers(rows, seconds);
        let n = f64::from(rows);
        for (sum, term) in [
            (&mut self.weight, 1.0),
            (&mut self.rows, n),
            (&mut self.seconds, seconds),
            (&mut self.rows_rows, n * n),
            (&mut self.rows_seconds, n * seconds),
        ] {
            *sum = FORGET * *sum + term;
        }
        self.count = self.count.saturating_add(1);
        self.refit();
    }

    /// The deviation itself follows, so that a device that has become slower for good is believed after some forwards.
    fn without_outliers(&mut self, rows: u32, seconds: f64) -> f64 {
        let expected = self.cost.seconds(rows);
        if self.count < SETTLED {
            if self.count > 0 {
                self.deviation += ((seconds - expected).abs() - self.deviation) / f64::from(self.count);
            }
            return seconds;
        }
        // A clock without noise would otherwise call everything an outlier.
        let usual = OUTLIER * self.deviation.max(0.01 * expected);
        let seconds = seconds.clamp(expected - usual, expected + usual);
        self.deviation += (1.0 - FORGET) * ((seconds - expected).abs() - self.deviation);
        seconds
    }

    fn refit(&mut self) {
        let (rows, seconds) = (self.rows / self.weight, self.seconds / self.weight);
        let spread = self.rows_rows - self.weight * rows * rows;
        if spread < SPREAD {
            // Forwards of one size tell how fast the device is, not how rows share the cost.
            let scale = seconds / (self.cost.fixed + self.cost.per_row * rows);
            self.cost = Cost { fixed: self.cost.fixed * scale, per_row: self.cost.per_row * scale };
            return;
        }
        let slope = (self.rows_seconds - self.weight * rows * seconds) / spread;
        // Neither part can be below nothing, whatever the noise says. And a forward is never taken for free: one at a time
        // would be best then for ever, and nothing would ever be learnt to the contrary.
        let per_row = slope.clamp(1e-3 * seconds / rows, seconds / (rows + LEAST_RATIO));
        self.cost = Cost { fixed: seconds - per_row * rows, per_row };
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    /// A device's clock: fixed, per row, and noise of a few percent that repeats after 7 and 11 forwards.
    fn seconds(fixed: f64, per_row: f64, rows: u32, count: usize) -> f64 {
        let noise = ((count % 7) as f64 / 7.0 - 0.43) * 0.03 + ((count % 11) as f64 / 11.0 - 0.45) * 0.02;
        (fixed + per_row * f64::from(rows)) * (1.0 + noise)
    }

    fn trained(fixed: f64, per_row: f64, outlier: f64) -> CostModel {
        let (mut model, key) = (CostModel::default(), sample(0, 8, 1, 1).key);
        for count in 0..400 {
            let rows = [2, 4, 6, 10, 16][count % 5];
            let slow = if count % 50 == 49 { outlier } else { 1.0 };
            model.observe(&key, rows, seconds(fixed, per_row, rows, count) * slow);
        }
        model
    }

    #[test]
    fn both_parts_are_found_among_noise_and_outliers() {
        for (fixed, per_row) in [(0.020, 0.004), (0.001, 0.020), (0.1, 0.001)] {
            for outlier in [1.0, 20.0] {
                let found = trained(fixed, per_row, outlier).of(&sample(0, 8, 1, 1).key);
                let of_ten = found.seconds(10) / (fixed + 10.0 * per_row);
                assert!((0.95..1.05).contains(&of_ten), "{found:?} {outlier}");
                // The ratio decides; noise of 2 % on the smallest part's forwards bounds how well it can be known.
                let rows = Cost { fixed, per_row }.rows(16).abs_diff(found.rows(16));
                assert!(rows <= 2 || found.fixed > 10.0 * found.per_row, "{found:?} {outlier}: {rows} rows off");
            }
        }
    }

    #[test]
    fn forwards_of_one_size_keep_the_ratio() {
        let (mut model, key) = (trained(0.020, 0.004, 1.0), sample(0, 8, 1, 1).key);
        for count in 0..2000 {
            model.observe(&key, 4, seconds(0.020, 0.004, 4, count));
        }
        let after = model.of(&key);
        assert!((after.seconds(4) / 0.036 - 1.0).abs() < 0.02, "{after:?}");
        assert!((4.0..6.0).contains(&(after.fixed / after.per_row)), "{after:?}");
    }

    #[test]
    fn a_forward_is_never_taken_for_free() {
        let found = trained(0.0, 0.020, 1.0).of(&sample(0, 8, 1, 1).key);
        assert!(found.fixed >= 0.99 * LEAST_RATIO * found.per_row && found.rows(40) >= 2, "{found:?}");
    }

    #[test]
    fn a_device_that_becomes_slower_for_good_is_believed() {
        let (mut model, key) = (trained(0.020, 0.004, 1.0), sample(0, 8, 1, 1).key);
        for count in 0..400 {
            let rows = [2, 4, 6, 10, 16][count % 5];
            model.observe(&key, rows, seconds(0.010, 0.030, rows, count));
        }
        let after = model.of(&key);
        assert!((after.seconds(10) / 0.310 - 1.0).abs() < 0.05, "{after:?}");
        assert!(after.rows(16) <= 6, "{after:?}");
    }

    #[test]
    fn a_size_never_seen_is_guessed_from_the_nearest_of_its_model() {
        let model = trained(0.020, 0.004, 1.0);
        let known = model.of(&sample(0, 8, 1, 1).key);
        let guessed = model.of(&sample(0, 16, 1, 1).key);
        assert_eq!((guessed.fixed, guessed.per_row), (known.fixed, 4.0 * known.per_row));
        let other = BatchKey { model: crate::domain::ModelId::new("other"), ..(*sample(0, 8, 1, 1).key).clone() };
        assert_eq!(model.of(&other), Cost { fixed: PRIOR_RATIO, per_row: 1.0 });
    }

    #[test]
    fn the_best_number_of_rows_follows_the_costs() {
        let saturated = Cost { fixed: 0.001, per_row: 0.020 };
        assert_eq!((saturated.rows(2), saturated.rows(13), saturated.rows(20)), (0, 1, 2));
        let idle = Cost { fixed: 0.020, per_row: 0.004 };
        assert_eq!((idle.rows(1), idle.rows(16)), (4, 22));
        assert_eq!(Cost { fixed: 1.0, per_row: 1e-300 }.rows(u32::MAX), u32::MAX);
    }

    #[test]
    fn what_clients_choose_does_not_fill_the_memory() {
        let mut model = CostModel::default();
        for side in 1..=2 * MAX_KEYS {
            model.observe(&sample(0, side, 1, 1).key, 2, 0.01);
        }
        assert_eq!(model.fits.len(), MAX_KEYS);
        assert!(model.fits.contains_key(&sample(0, 2 * MAX_KEYS, 1, 1).key));
    }
}
