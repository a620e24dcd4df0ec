//! Samples that are not aboard, by age and by what they may share a forward with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{BatchKey, SampleId, SampleMeta};
use crate::domain::QueuePlace;

/// Who is older: the smaller. A job's samples are told apart by their ids.
pub(super) type Place = (QueuePlace, SampleId);

pub(super) fn place(sample: &SampleMeta) -> Place {
    (sample.place, sample.id)
}

/// Of one key.
#[derive(Debug, Default)]
struct Line {
    rows: u32,
    by_age: BTreeSet<Place>,
    by_steps: BTreeMap<u32, BTreeSet<Place>>,
}

#[derive(Debug, Default)]
pub(super) struct Waiting {
    by_age: BTreeSet<Place>,
    lines: BTreeMap<Arc<BatchKey>, Line>,
}

impl Waiting {
    pub(super) fn add(&mut self, sample: &SampleMeta) {
        let place = place(sample);
        self.by_age.insert(place);
        let line = self.lines.entry(sample.key.clone()).or_default();
        line.rows += if line.by_age.insert(place) { sample.rows } else { 0 };
        line.by_steps.entry(sample.steps).or_default().insert(place);
    }

    pub(super) fn remove(&mut self, sample: &SampleMeta) {
        let place = place(sample);
        self.by_age.remove(&place);
        if let Some(line) = self.lines.get_mut(&sample.key) {
            line.rows -= if line.by_age.remove(&place) { sample.rows } else { 0 };
            if let Some(alike) = line.by_steps.get_mut(&sample.steps) {
                alike.remove(&place);
                if alike.is_empty() {
                    line.by_steps.remove(&sample.steps);
                }
            }
            if line.by_age.is_empty() {
                self.lines.remove(&sample.key);
            }
        }
    }

    pub(super) fn oldest(&self) -> Option<Place> {
        self.by_age.first().copied()
    }

    pub(super) fn oldest_of(&self, key: &Arc<BatchKey>) -> Option<Place> {
        self.lines.get(key)?.by_age.first().copied()
    }

    pub(super) fn rows_of(&self, key: &Arc<BatchKey>) -> u32 {
        self.lines.get(key).map_or(0, |line| line.rows)
    }

    /// The oldest of this key with so many steps.
    pub(super) fn oldest_alike(&self, key: &Arc<BatchKey>, steps: u32) -> Option<Place> {
        self.lines.get(key)?.by_steps.get(&steps)?.first().copied()
    }
}
