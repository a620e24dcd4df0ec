//! Policy `grouped`.

use super::{BatchCaps, Branch, Row, SampleId, SampleMeta, StepBatch, StopReason};

/// Chooses the next forward. Keeps only which samples travel together.
#[derive(Debug)]
pub struct Batcher {
    caps: BatchCaps,
    group: Vec<SampleId>,
    stop: StopReason,
}

impl Batcher {
    /// A batcher for the policy `grouped`.
    pub fn grouped(caps: BatchCaps) -> Self {
        Self { caps, group: Vec::new(), stop: StopReason::NoMoreCompatible }
    }

    /// The bounds in force.
    pub fn caps(&self) -> BatchCaps {
        self.caps
    }

    /// Halves the most rows, down to what one guided sample needs: what the device could not hold, it will not hold
    /// next time either. The present group is dissolved and regrouped under the new bound.
    pub fn halve(&mut self) {
        self.caps.max_rows = (self.caps.max_rows / 2).max(2);
        self.group.clear();
    }

    /// The rows of the next forward: the present group while any of it is there, then the oldest sample's. `samples`
    /// are those with steps left, in order of arrival. `None` when there are none.
    ///
    /// The first sample of a group is taken even when it alone exceeds a bound: otherwise it would wait for ever.
    pub fn next(&mut self, samples: &[SampleMeta]) -> Option<StepBatch> {
        self.group.retain(|id| samples.iter().any(|sample| sample.id == *id));
        if self.group.is_empty() {
            self.form(samples);
        }
        let aboard: Vec<&SampleMeta> = samples.iter().filter(|sample| self.group.contains(&sample.id)).collect();
        let key = aboard.first()?.key.clone();
        let rows = aboard.iter().flat_map(|sample| {
            let branches: &[Branch] = if sample.rows > 1 { &[Branch::Cond, Branch::Uncond] } else { &[Branch::Cond] };
            branches.iter().map(|branch| Row { sample: sample.id, branch: *branch })
        });
        Some(StepBatch { key, rows: rows.collect(), stop: self.stop })
    }

    fn form(&mut self, samples: &[SampleMeta]) {
        self.stop = StopReason::NoMoreCompatible;
        let Some(oldest) = samples.first() else { return };
        let (mut rows, mut row_pixels) = (0, 0);
        for sample in samples.iter().filter(|sample| sample.key == oldest.key && sample.steps == oldest.steps) {
            rows += sample.rows;
            row_pixels += u64::from(sample.rows) * sample.pixels;
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
    use super::super::BatchKey;
    use super::*;
    use crate::domain::ModelId;

    const CAPS: BatchCaps = BatchCaps { max_rows: 8, max_row_pixels: 100_000 };

    fn sample(id: u64, side: usize, steps: u32, rows: u32) -> SampleMeta {
        let key = BatchKey { model: ModelId::new("m"), latent_shape: (4, side, side), tokens: 7 };
        SampleMeta { id: SampleId(id), key, steps, rows, pixels: (side * side * 16) as u64 }
    }

    fn aboard(batch: &StepBatch) -> Vec<u64> {
        batch.samples().map(|id| id.0).collect()
    }

    #[test]
    fn groups_share_resolution_and_step_count() {
        let mut batcher = Batcher::grouped(CAPS);
        let all = [sample(1, 8, 20, 2), sample(2, 16, 20, 2), sample(3, 8, 30, 2), sample(4, 8, 20, 1)];
        let batch = batcher.next(&all).expect("a batch");
        assert_eq!(aboard(&batch), [1, 4]);
        assert_eq!(batch.rows.len(), 3);
        assert_eq!(batch.stop, StopReason::NoMoreCompatible);
    }

    #[test]
    fn a_group_travels_to_its_end_then_the_oldest_is_next() {
        let mut batcher = Batcher::grouped(CAPS);
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
        let mut batcher = Batcher::grouped(CAPS);
        let many: Vec<_> = (0..9).map(|id| sample(id, 8, 20, 2)).collect();
        let batch = batcher.next(&many).expect("a batch");
        assert_eq!((batch.rows.len(), batch.stop), (8, StopReason::MaxRows));
        let mut batcher = Batcher::grouped(CAPS);
        let large: Vec<_> = (0..3).map(|id| sample(id, 50, 20, 2)).collect();
        let batch = batcher.next(&large).expect("a batch");
        assert_eq!((aboard(&batch), batch.stop), (vec![0], StopReason::MaxRowPixels));
        let huge = [sample(0, 400, 20, 2)];
        assert_eq!(aboard(&Batcher::grouped(CAPS).next(&huge).expect("taken though it exceeds the bound")), [0]);
    }

    #[test]
    fn memory_that_ran_out_halves_the_rows() {
        let mut batcher = Batcher::grouped(CAPS);
        let many: Vec<_> = (0..9).map(|id| sample(id, 8, 20, 2)).collect();
        batcher.next(&many);
        batcher.halve();
        assert_eq!(batcher.next(&many).expect("a batch").rows.len(), 4);
    }
}
