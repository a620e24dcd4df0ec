//! Seconds of the forwards of one key, fitted by weighted least squares.

use std::collections::HashSet;

use super::sums::{FORGET, Sums};
use crate::domain::Cost;

/// `a / b` at least: enough for a second row to be tried when a long queue waits.
pub(super) const LEAST_RATIO: f64 = 0.02;
/// Forwards further from what is expected than so many usual deviations are outliers.
const OUTLIER: f64 = 4.0;
/// Forwards before there is a usual deviation.
const SETTLED: u32 = 8;

/// What the forwards of one key took.
#[derive(Debug)]
pub(super) struct Fit {
    pub(super) cost: Cost,
    sums: Sums,
    /// The usual deviation, in seconds.
    deviation: f64,
    /// Forwards in the sums.
    count: u32,
    /// Row counts that have been seen: the first forward of each also pays for choosing kernels and making room.
    seen: HashSet<u32>,
}

impl Fit {
    pub(super) fn from(cost: Cost) -> Self {
        Self { cost, sums: Sums::default(), deviation: 0.0, count: 0, seen: HashSet::new() }
    }

    pub(super) fn observe(&mut self, rows: u32, seconds: f64) {
        if self.seen.insert(rows) {
            // Better than a guess all the same.
            if self.sums.is_empty() {
                self.scale(f64::from(rows), seconds);
            }
            return;
        }
        let seconds = self.without_outliers(rows, seconds);
        self.sums.add(rows, seconds);
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
        let (rows, seconds) = self.sums.means();
        let Some(slope) = self.sums.slope() else {
            // Forwards of one size tell how fast the device is, not how rows share the cost.
            self.scale(rows, seconds);
            return;
        };
        // Neither part can be below nothing, whatever the noise says. And a forward is never taken for free: one at a time
        // would be best then for ever, and nothing would ever be learnt to the contrary.
        let per_row = slope.clamp(1e-3 * seconds / rows, seconds / (rows + LEAST_RATIO));
        self.cost = Cost { fixed: seconds - per_row * rows, per_row };
    }
}
