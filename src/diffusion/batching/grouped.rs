//! Policy `grouped`: same model, resolution and step count, together from start to end; the oldest group first.

use std::collections::BTreeMap;

use super::{BatchCaps, CostModel, SampleId, SampleMeta, StepBatch, StopReason};

/// Keeps who is here, and which samples travel together.
#[derive(Debug)]
pub struct Grouped {
    pub(super) cost: CostModel,
    samples: BTreeMap<SampleId, SampleMeta>,
    group: Vec<SampleId>,
    stop: StopReason,
}

impl Grouped {
    pub(super) fn new(caps: BatchCaps) -> Self {
        Self {
            cost: CostModel::new(caps),
            samples: BTreeMap::new(),
            group: Vec::new(),
            stop: StopReason::NoMoreCompatible,
        }
    }

    pub(super) fn add(&mut self, sample: SampleMeta) {
        self.samples.insert(sample.id, sample);
    }

    /// Who travels together stays so, however far.
    pub(super) fn advanced(&mut self, sample: &SampleMeta) {
        if let Some(known) = self.samples.get_mut(&sample.id) {
            known.clone_from(sample);
        }
    }

    pub(super) fn remove(&mut self, id: SampleId) {
        self.samples.remove(&id);
        self.group.retain(|travels| *travels != id);
    }

    /// The group is made up anew under other bounds.
    pub(super) fn dissolve(&mut self) {
        self.group.clear();
    }

    /// The present group while any of it is there, then the oldest sample's.
    pub(super) fn next_batch(&mut self) -> Option<StepBatch> {
        if self.group.is_empty() {
            self.form();
        }
        let key = self.samples[self.group.first()?].key.clone();
        Some(StepBatch::of(key, self.group.iter().map(|id| &self.samples[id]), self.stop))
    }

    fn form(&mut self) {
        self.stop = StopReason::NoMoreCompatible;
        let Some(oldest) = self.samples.values().next() else { return };
        let (key, steps) = (&oldest.key, oldest.steps);
        let (most, bound) = self.cost.bound(key);
        let mut rows = 0;
        for sample in self.samples.values().filter(|sample| sample.steps == steps && sample.is_of(key)) {
            rows += sample.rows;
            if !self.group.is_empty() && rows > most {
                self.stop = bound;
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

    fn grouped(samples: impl IntoIterator<Item = SampleMeta>) -> Batcher {
        let mut batcher = Batcher::new(BatchingPolicy::Grouped, CAPS);
        samples.into_iter().for_each(|sample| batcher.add(sample));
        batcher
    }

    #[test]
    fn groups_share_resolution_and_step_count() {
        let mut batcher =
            grouped([sample(1, 8, 20, 2), sample(2, 16, 20, 2), sample(3, 8, 30, 2), sample(4, 8, 20, 1)]);
        let batch = batcher.next_batch().expect("a batch");
        assert_eq!(aboard(&batch), [1, 4]);
        assert_eq!(batch.rows.len(), 3);
        assert_eq!(batch.stop, StopReason::NoMoreCompatible);
    }

    #[test]
    fn a_group_travels_to_its_end_then_the_oldest_is_next() {
        let mut batcher = grouped([sample(1, 16, 20, 2), sample(2, 8, 20, 2)]);
        assert_eq!(aboard(&batcher.next_batch().expect("a batch")), [1]);
        // A newcomer of the same group does not join in the middle.
        batcher.add(sample(3, 16, 20, 2));
        assert_eq!(aboard(&batcher.next_batch().expect("a batch")), [1]);
        batcher.remove(SampleId(1));
        assert_eq!(aboard(&batcher.next_batch().expect("a batch")), [2]);
        batcher.remove(SampleId(2));
        assert_eq!(aboard(&batcher.next_batch().expect("a batch")), [3]);
        batcher.remove(SampleId(3));
        assert_eq!(batcher.next_batch(), None);
    }

    #[test]
    fn caps_bound_rows_and_pixels_and_say_so() {
        let batch = grouped((0..9).map(|id| sample(id, 8, 20, 2))).next_batch().expect("a batch");
        assert_eq!((batch.rows.len(), batch.stop), (8, StopReason::MaxRows));
        let batch = grouped((0..3).map(|id| sample(id, 50, 20, 2))).next_batch().expect("a batch");
        assert_eq!((aboard(&batch), batch.stop), (vec![0], StopReason::MaxRowPixels));
        let batch = grouped([sample(0, 400, 20, 2)]).next_batch().expect("taken though it exceeds the bound");
        assert_eq!(aboard(&batch), [0]);
    }

    #[test]
    fn memory_that_ran_out_bounds_the_next_group() {
        let mut batcher = grouped((0..9).map(|id| sample(id, 8, 20, 2)));
        let batch = batcher.next_batch().expect("a batch");
        batcher.ran_out(&batch.key, 4);
        let batch = batcher.next_batch().expect("a batch");
        assert_eq!((batch.rows.len(), batch.stop), (4, StopReason::Memory));
    }
}
