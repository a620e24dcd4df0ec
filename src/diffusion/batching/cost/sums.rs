//! Weighted sums for a line through measured points, older ones counting for less and less.

/// An earlier forward counts this much of a later one.
pub(super) const FORGET: f64 = 0.98;
/// The spread of rows (their sum of squared deviations, the latest forward counting 1) from which a slope can be told.
const SPREAD: f64 = 4.0;

/// Of what forwards took, by their rows.
#[derive(Debug, Default)]
pub(super) struct Sums {
    weight: f64,
    rows: f64,
    taken: f64,
    rows_rows: f64,
    rows_taken: f64,
}

impl Sums {
    pub(super) fn add(&mut self, rows: u32, taken: f64) {
        let n = f64::from(rows);
        for (sum, term) in [
            (&mut self.weight, 1.0),
            (&mut self.rows, n),
            (&mut self.taken, taken),
            (&mut self.rows_rows, n * n),
            (&mut self.rows_taken, n * taken),
        ] {
            *sum = FORGET * *sum + term;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.weight == 0.0
    }

    /// Rows, and what they took, on average; not of an empty one.
    pub(super) fn means(&self) -> (f64, f64) {
        (self.rows / self.weight, self.taken / self.weight)
    }

    /// What each row takes, by least squares; `None` where the forwards were of much the same size.
    pub(super) fn slope(&self) -> Option<f64> {
        let (rows, taken) = self.means();
        let spread = self.rows_rows - self.weight * rows * rows;
        (spread >= SPREAD).then(|| (self.rows_taken - self.weight * rows * taken) / spread)
    }
}
