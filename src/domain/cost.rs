//! What forwards cost: as believed, and as it was.

use super::{BatchingPolicy, SizeKey};

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

/// What a forward of n rows takes: `fixed + per_row n`, by least squares.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MemoryCost {
    /// Whatever its rows, in bytes; at least 0.
    pub fixed: f64,
    /// Each row, in bytes; at least 0.
    pub per_row: f64,
}

impl MemoryCost {
    /// Bytes of a forward of so many rows.
    pub fn of(self, rows: u32) -> f64 {
        self.fixed + self.per_row * f64::from(rows)
    }
}

/// One forward, as it was expected and as it was.
#[derive(Clone, Debug, PartialEq)]
pub struct ForwardReport {
    /// The model and the pictures' size.
    pub size: SizeKey,
    /// What it was expected to take, in seconds; `None` where nothing of the model was measured before.
    pub expected: Option<f64>,
    /// What it took, in seconds, ControlNets left out.
    pub took: f64,
    /// Seconds from the end of the forward before to the beginning of this one, where the engine had something to do all that
    /// time; else 0.
    pub between: f64,
    /// What such forwards are believed to cost now.
    pub cost: Cost,
    /// What such forwards are believed to take; `None` where it is not measured.
    pub memory: Option<MemoryCost>,
    /// Most rows that such a forward may have.
    pub most_rows: u32,
    /// By which its batch was made up.
    pub policy: BatchingPolicy,
}
