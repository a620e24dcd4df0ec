//! What the forwards of one key cost, fitted by weighted least squares.

use std::collections::HashSet;

use super::Cost;

/// `a / b` at least: enough for a second row to be tried when a long queue waits.
pub(super) const LEAST_RATIO: f64 = 0.02;
/// An earlier forward counts this much of a later one.
const FORGET: f64 = 0.98;
/// The spread of rows (their sum of squared deviations, the latest forward counting 1) from which a slope can be told.
const SPREAD: f64 = 4.0;
/// Forwards further from what is expected than so many usual deviations are outliers.
const OUTLIER: f64 = 4.0;
/// Forwards before there is a usual deviation.
const SETTLED: u32 = 8;

/// Weighted sums over the forwards of one key.
#[derive(Debug)]
pub(super) struct Fit {
    pub(super) cost: Cost,
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
}

impl Fit {
    pub(super) fn from(cost: Cost) -> Self {
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
        }
    }

    pub(super) fn observe(&mut self, rows: u32, seconds: f64) {
        if self.seen.insert(rows) {
            // Better than a guess all the same.
            if self.weight == 0.0 {
                self.scale(f64::from(rows), seconds);
            }
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

    /// Forwards of so many rows take so long, and rows share the cost as before.
    fn scale(&mut self, rows: f64, seconds: f64) {
        let scale = seconds / (self.cost.fixed + self.cost.per_row * rows);
        self.cost = Cost { fixed: self.cost.fixed * scale, per_row: self.cost.per_row * scale };
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
            self.scale(rows, seconds);
            return;
        }
        let slope = (self.rows_seconds - self.weight * rows * seconds) / spread;
        // Neither part can be below nothing, whatever the noise says. And a forward is never taken for free: one at a time
        // would be best then for ever, and nothing would ever be learnt to the contrary.
        let per_row = slope.clamp(1e-3 * seconds / rows, seconds / (rows + LEAST_RATIO));
        self.cost = Cost { fixed: seconds - per_row * rows, per_row };
    }
}
