//! When jobs were promised to end, against when they did.

use std::collections::{BTreeMap, VecDeque};

use crate::domain::JobId;

/// Promises that are remembered at one time; the oldest go first, and with them those of jobs that failed or were cancelled.
const MAX_OPEN: usize = 8192;
/// Jobs whose ends are told of.
const LATEST: usize = 512;

/// How promises were kept, by the latest jobs that succeeded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PromisesKept {
    /// How many jobs.
    pub jobs: u64,
    /// The median of the real time over the promised: 1 is as promised, 2 is twice as long.
    pub median_ratio: Option<f64>,
    /// Nine of ten jobs took at most so many times as long as promised.
    pub p90_ratio: Option<f64>,
}

#[derive(Debug, Default)]
pub(super) struct Promises {
    /// In milliseconds from acceptance.
    open: BTreeMap<JobId, u64>,
    ratios: VecDeque<f64>,
}

impl Promises {
    pub(super) fn promise(&mut self, job: JobId, eta_ms: u64) {
        self.open.insert(job, eta_ms);
        if self.open.len() > MAX_OPEN {
            self.open.pop_first();
        }
    }

    /// The job succeeded so long after it was accepted; how many times as long that was as promised.
    pub(super) fn kept(&mut self, job: JobId, total_ms: u64) -> Option<f64> {
        let ratio = total_ms as f64 / self.open.remove(&job)?.max(1) as f64;
        if self.ratios.len() == LATEST {
            self.ratios.pop_front();
        }
        self.ratios.push_back(ratio);
        Some(ratio)
    }

    pub(super) fn record(&self) -> PromisesKept {
        let mut sorted: Vec<f64> = self.ratios.iter().copied().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        // The smallest that so many of a hundred do not exceed.
        let at = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied();
        PromisesKept { jobs: sorted.len() as u64, median_ratio: at(50), p90_ratio: at(90) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_are_held_against_what_became_of_them() {
        let mut promises = Promises::default();
        assert_eq!(promises.record(), PromisesKept::default());
        for percent in 1..=20 {
            let job = JobId::generate();
            promises.promise(job, 100);
            assert_eq!(promises.kept(job, 10 * percent), Some(percent as f64 / 10.0));
            assert_eq!(promises.kept(job, 10), None, "once");
        }
        let record = PromisesKept { jobs: 20, median_ratio: Some(1.0), p90_ratio: Some(1.8) };
        assert_eq!(promises.record(), record);
    }

    #[test]
    fn neither_promises_nor_their_ends_fill_the_memory() {
        let mut promises = Promises::default();
        for _ in 0..2 * MAX_OPEN {
            promises.promise(JobId::generate(), 1);
        }
        assert_eq!(promises.open.len(), MAX_OPEN);
        for _ in 0..2 * LATEST {
            let job = JobId::generate();
            promises.promise(job, 1);
            promises.kept(job, 1);
        }
        assert_eq!(promises.record().jobs, LATEST as u64);
    }
}
