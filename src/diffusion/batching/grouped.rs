//! Policy `grouped`: same model, resolution and step count, together from start to end; the oldest group first.

use super::{BatchCaps, SampleId, SampleMeta, StepBatch, StopReason};

/// Keeps only which samples travel together.
#[derive(Debug)]
pub struct Grouped {
    pub(super) caps: BatchCaps,
    group: Vec<SampleId>,
    stop: StopReason,
}

impl Grouped {
    pub(super) fn new(caps: BatchCaps) -> Self {
        Self { caps, group: Vec::new(), stop: StopReason::NoMoreCompatible }
    }

    /// The present group while any of it is there, then the oldest sample's.
    pub(super) fn next(&mut self, samples: &[SampleMeta]) -> Option<StepBatch> {
        self.group.retain(|id| samples.binary_search_by_key(id, |sample| sample.id).is_ok());
        if self.group.is_empty() {
            self.form(samples);
        }
        let of = |id: &SampleId| samples.binary_search_by_key(id, |sample| sample.id).ok().map(|at| &samples[at]);
        let key = of(self.group.first()?)?.key.clone();
        Some(StepBatch::of(key, self.group.iter().filter_map(of), self.stop))
    }

    fn form(&mut self, samples: &[SampleMeta]) {
        self.stop = StopReason::NoMoreCompatible;
        let Some(oldest) = samples.first() else { return };
        let (mut rows, mut row_pixels) = (0, 0);
        for sample in samples.iter().filter(|sample| sample.steps == oldest.steps && sample.is_of(&oldest.key)) {
            rows += sample.rows;
            row_pixels += u64::from(sample.rows) * sample.key.pixels();
            if !self.group.is_empty() && rows > self.caps.max_rows {
                self.stop = StopReason::MaxRows;
                return;
            }
            if !self.group.is_empty() && row_pixels > self.caps.max_row_pixels {
                self.stop = StopReason::MaxRowPixels;
                return;
            }
            self.group.push(sample.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Batcher;
    use super::super::tests::{aboard, sample};
    use super::*;
    use crate::domain::BatchingPolicy;

    const CAPS: BatchCaps = BatchCaps { max_rows: 8, max_row_pixels: 100_000 };

    fn grouped() -> Batcher {
        Batcher::new(BatchingPolicy::Grouped, CAPS)
    }

    #[test]
    fn groups_share_resolution_and_step_count() {
        let mut batcher = grouped();
        let all = [sample(1, 8, 20, 2), sample(2, 16, 20, 2), sample(3, 8, 30, 2), sample(4, 8, 20, 1)];
        let batch = batcher.next(&all).expect("a batch");
        assert_eq!(aboard(&batch), [1, 4]);
        assert_eq!(batch.rows.len(), 3);
        assert_eq!(batch.stop, StopReason::NoMoreCompatible);
    }

    #[test]
    fn a_group_travels_to_its_end_then_the_oldest_is_next() {
        let mut batcher = grouped();
        let (a, b, c) = (sample(1, 16, 20, 2), sample(2, 8, 20, 2), sample(3, 16, 20, 2));
        assert_eq!(aboard(&batcher.next(&[a.clone(), b.clone()]).expect("a batch")), [1]);
        // A newcomer of the same group does not join in the middle.
        assert_eq!(aboard(&batcher.next(&[a, b.clone(), c.clone()]).expect("a batch")), [1]);
        assert_eq!(aboard(&batcher.next(&[b, c.clone()]).expect("a batch")), [2]);
        assert_eq!(aboard(&batcher.next(&[c]).expect("a batch")), [3]);
        assert_eq!(batcher.next(&[]), None);
    }

    #[test]
    fn caps_bound_rows_and_pixels_and_say_so() {
        let mut batcher = grouped();
        let many: Vec<_> = (0..9).map(|id| sample(id, 8, 20, 2)).collect();
        let batch = batcher.next(&many).expect("a batch");
        assert_eq!((batch.rows.len(), batch.stop), (8, StopReason::MaxRows));
        let mut batcher = grouped();
        let large: Vec<_> = (0..3).map(|id| sample(id, 50, 20, 2)).collect();
        let batch = batcher.next(&large).expect("a batch");
        assert_eq!((aboard(&batch), batch.stop), (vec![0], StopReason::MaxRowPixels));
        let huge = [sample(0, 400, 20, 2)];
        assert_eq!(aboard(&grouped().next(&huge).expect("taken though it exceeds the bound")), [0]);
    }

    #[test]
    fn memory_that_ran_out_halves_the_rows() {
        let mut batcher = grouped();
        let many: Vec<_> = (0..9).map(|id| sample(id, 8, 20, 2)).collect();
        batcher.next(&many);
        batcher.halve();
        assert_eq!(batcher.next(&many).expect("a batch").rows.len(), 4);
    }
}
