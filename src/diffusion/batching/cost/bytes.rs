//! Memory that the forwards of one key take above what was there before, on the careful side.
//!
//! Where memory is the most of what parts of a network take, each `a + b n` bytes for n rows, it never grows faster than the
//! rows: what n rows take, scaled to more rows, is never too little. So more rows than were ever measured are believed to take
//! that much, and a bound is approached from below, in a few forwards, and stays unreached where another row might be too much.
//! Fewer are believed to take what a fitted line says.

use super::sums::{FORGET, Sums};
use crate::domain::MemoryCost;

#[derive(Debug, Default)]
pub(super) struct BytesFit {
    line: MemoryCost,
    sums: Sums,
    /// How far above the line forwards were lately.
    excess: f64,
    /// Rows and bytes of the largest forward.
    widest: (u32, f64),
}

impl BytesFit {
    pub(super) fn line(&self) -> MemoryCost {
        self.line
    }

    pub(super) fn observe(&mut self, rows: u32, bytes: u64) {
        let bytes = bytes as f64;
        self.sums.add(rows, bytes);
        let (mean_rows, mean) = self.sums.means();
        // Of one size only: all is each row's, as long as nothing says otherwise.
        let per_row = self.sums.slope().unwrap_or(mean / mean_rows).clamp(0.0, mean / mean_rows);
        self.line = MemoryCost { fixed: (mean - per_row * mean_rows).max(0.0), per_row };
        let above = bytes - self.line.of(rows);
        self.excess = above.max(FORGET * self.excess);
        let (widest, before) = self.widest;
        if rows >= widest {
            let before = if rows == widest { FORGET * before } else { 0.0 };
            self.widest = (rows, bytes.max(before));
        }
    }

    /// Most rows that are believed to take no more than `bytes`, each `scale` times as much as here; 0 where one takes more.
    pub(super) fn rows_within(&self, bytes: u64, scale: f64) -> u32 {
        let (widest, most) = self.widest;
        let bytes = bytes as f64 / scale;
        let rows = if most <= bytes {
            f64::from(widest) * bytes / most.max(1.0)
        } else {
            let below = f64::from(widest.saturating_sub(1));
            ((bytes - self.line.fixed - self.excess) / self.line.per_row.max(1.0)).min(below)
        };
        // Saturates at the ends.
        rows as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The most of two parts of a network, in bytes.
    fn taken(rows: u32) -> u64 {
        let rows = u64::from(rows);
        (900_000 + 10_000 * rows).max(100_000 * rows)
    }

    #[test]
    fn a_bound_is_approached_from_below_until_another_row_might_be_too_much() {
        for (most, first) in [(1_000_000, 1), (2_000_000, 2), (10_000_000, 1)] {
            let mut fit = BytesFit::default();
            fit.observe(first, taken(first));
            for _ in 0..20 {
                let rows = fit.rows_within(most, 1.0);
                assert!(taken(rows) <= most, "{rows} rows take {} of {most}", taken(rows));
                fit.observe(rows, taken(rows));
            }
            let rows = fit.rows_within(most, 1.0);
            assert!(taken(rows) * u64::from(rows + 1) / u64::from(rows) > most, "{rows} rows of {most}");
        }
    }

    #[test]
    fn after_a_forward_that_took_too_much_fewer_rows_are_worked_out_from_the_line() {
        let mut fit = BytesFit::default();
        for rows in [8, 32, 8, 32] {
            fit.observe(rows, 1_000_000 + 50_000 * u64::from(rows));
        }
        let MemoryCost { fixed, per_row } = fit.line();
        assert!((fixed - 1_000_000.0).abs() < 1.0 && (per_row - 50_000.0).abs() < 1.0, "{fit:?}");
        assert_eq!(fit.rows_within(2_020_000, 1.0), 20);
        assert_eq!(fit.rows_within(2_020_000, 1.5), 6);
        assert_eq!((fit.rows_within(1_000_000, 1.0), fit.rows_within(0, 1.0)), (0, 0));
    }

    #[test]
    fn what_took_more_than_the_line_says_is_not_forgotten_at_once() {
        let mut fit = BytesFit::default();
        let bytes = |rows: u32| 1_000 * u64::from(rows);
        for count in 0..100 {
            let rows = [2, 6, 10][count % 3];
            fit.observe(rows, bytes(rows) + if count == 90 { 5_000 } else { 0 });
        }
        assert!(fit.rows_within(9_000, 1.0) < 6, "{fit:?}");
    }
}
