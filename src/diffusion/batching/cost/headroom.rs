//! How many rows of a key the device has been found to have memory for.

/// Full forwards that must go well before more rows are tried; twice as many after each time that was too many.
const PATIENCE: u32 = 64;
const MOST_PATIENCE: u32 = 4096;
/// What one guided sample needs.
const LEAST: u32 = 2;

/// The bound of one key after memory ran out: down at once, up again by a quarter at a time.
#[derive(Debug)]
pub(super) struct Headroom {
    rows: u32,
    /// Forwards that filled it since it was last changed.
    went_well: u32,
    patience: u32,
}

impl Headroom {
    /// So many rows are known to fit. A sample of more rows goes alone all the same.
    pub(super) fn of(fitted: u32) -> Self {
        Self { rows: fitted.max(1), went_well: 0, patience: PATIENCE }
    }

    pub(super) fn rows(&self) -> u32 {
        self.rows
    }

    /// Even that was too much: so many rows are known to fit.
    pub(super) fn ran_out(&mut self, fitted: u32) {
        self.rows = fitted.clamp(1, self.rows);
        self.went_well = 0;
        self.patience = (2 * self.patience).min(MOST_PATIENCE);
    }

    /// A forward of so many rows fitted. One that left room for another guided sample says nothing of more rows.
    pub(super) fn went_well(&mut self, rows: u32) {
        if rows + LEAST <= self.rows {
            return;
        }
        self.went_well += 1;
        if self.went_well >= self.patience {
            self.rows = self.rows.saturating_add((self.rows / 4).max(1));
            self.went_well = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Full forwards until the bound is changed.
    fn until_more(headroom: &mut Headroom) -> u32 {
        let rows = headroom.rows();
        (1..)
            .find(|_| {
                headroom.went_well(rows);
                headroom.rows() > rows
            })
            .expect("it grows")
    }

    #[test]
    fn more_rows_are_tried_after_many_full_forwards_and_later_each_time_they_were_too_many() {
        let mut headroom = Headroom::of(8);
        assert_eq!((until_more(&mut headroom), headroom.rows()), (PATIENCE, 10));
        headroom.ran_out(8);
        assert_eq!((until_more(&mut headroom), headroom.rows()), (2 * PATIENCE, 10));
        (0..20).for_each(|_| headroom.ran_out(4));
        assert_eq!((until_more(&mut headroom), headroom.rows()), (MOST_PATIENCE, 5));
    }

    #[test]
    fn forwards_that_left_room_do_not_count_and_one_row_always_may() {
        let mut headroom = Headroom::of(0);
        assert_eq!(headroom.rows(), 1);
        headroom = Headroom::of(8);
        (0..10 * PATIENCE).for_each(|_| headroom.went_well(6));
        assert_eq!(headroom.rows(), 8);
    }
}
