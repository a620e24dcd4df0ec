//! What forwards are believed to cost, by size, and how far the beliefs were off.

use std::collections::HashMap;

use crate::domain::{BatchingPolicy, Cost, ForwardReport, MemoryCost, SizeKey};

/// Clients choose sizes: without a bound they could fill the memory.
const MAX_SIZES: usize = 256;
/// What one more forward or job weighs in an average: about the last twenty count.
const WEIGHT: f64 = 0.05;

/// What is believed of the forwards of one model and size.
#[derive(Clone, Debug, PartialEq)]
pub struct Belief {
    /// In seconds.
    pub cost: Cost,
    /// In bytes; `None` where it is not measured.
    pub memory: Option<MemoryCost>,
    /// Most rows that a forward may have.
    pub most_rows: u32,
    /// By which batches are made up.
    pub policy: BatchingPolicy,
    /// Forwards learnt from.
    pub forwards: u64,
    /// How far a forward was off what was expected of it, as a share of what it took, on average; `None` before there was
    /// one of which something was expected.
    pub error: Option<f64>,
    /// Seconds from a job's last step to its end, on average: decoding and storing.
    pub after_steps: Option<f64>,
}

/// Those of all sizes.
#[derive(Debug, Default)]
pub(super) struct Beliefs {
    sizes: HashMap<SizeKey, (Belief, u64)>,
    reports: u64,
    /// Seconds of late forwards, and between them.
    took: f64,
    between: f64,
}

impl Beliefs {
    /// Takes in one forward; how far it was off, as a share of what it took.
    pub(super) fn learn(&mut self, report: ForwardReport) -> Option<f64> {
        let ForwardReport { size, expected, took, between, cost, memory, most_rows, policy } = report;
        self.reports += 1;
        self.took += WEIGHT * (took - self.took);
        self.between += WEIGHT * (between - self.between);
        if !self.sizes.contains_key(&size) && self.sizes.len() >= MAX_SIZES {
            let oldest = self.sizes.iter().min_by_key(|(_, (_, last))| *last).map(|(size, _)| size.clone());
            oldest.map(|size| self.sizes.remove(&size));
        }
        let fresh = Belief { cost, memory, most_rows, policy, forwards: 0, error: None, after_steps: None };
        let (belief, last) = self.sizes.entry(size).or_insert((fresh, 0));
        *last = self.reports;
        belief.forwards += 1;
        (belief.cost, belief.memory, belief.most_rows, belief.policy) = (cost, memory, most_rows, policy);
        let off = expected.map(|expected| (expected - took).abs() / took.max(f64::MIN_POSITIVE))?;
        belief.error = Some(averaged(belief.error, off));
        Some(off)
    }

    /// A job of this size ended so many seconds after its last step.
    pub(super) fn ended(&mut self, size: &SizeKey, after_steps: f64) {
        if let Some((belief, _)) = self.sizes.get_mut(size) {
            belief.after_steps = Some(averaged(belief.after_steps, after_steps));
        }
    }

    pub(super) fn all(&self) -> HashMap<SizeKey, Belief> {
        self.sizes.iter().map(|(size, (belief, _))| (size.clone(), belief.clone())).collect()
    }

    /// Seconds that pass between forwards, for each second of a forward.
    pub(super) fn overhead(&self) -> f64 {
        if self.took > 0.0 { self.between / self.took } else { 0.0 }
    }
}

fn averaged(average: Option<f64>, value: f64) -> f64 {
    average.map_or(value, |average| average + WEIGHT * (value - average))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ModelId;

    fn report(width: u32, expected: Option<f64>, took: f64) -> ForwardReport {
        ForwardReport {
            size: SizeKey { model: ModelId::new("m"), width, height: 8 },
            expected,
            took,
            between: 0.5 * took,
            cost: Cost { fixed: 0.5, per_row: 0.25 },
            memory: None,
            most_rows: 32,
            policy: BatchingPolicy::Continuous,
        }
    }

    #[test]
    fn errors_are_shares_of_what_a_forward_took_and_averaged() {
        let mut beliefs = Beliefs::default();
        assert_eq!(beliefs.learn(report(8, None, 2.0)), None);
        assert_eq!(beliefs.learn(report(8, Some(1.5), 2.0)), Some(0.25));
        assert_eq!(beliefs.learn(report(8, Some(4.0), 2.0)), Some(1.0));
        let size = report(8, None, 1.0).size;
        beliefs.ended(&size, 3.0);
        let belief = &beliefs.all()[&size];
        assert_eq!((belief.forwards, belief.error, belief.after_steps), (3, Some(0.25 + 0.05 * 0.75), Some(3.0)));
        assert!((beliefs.overhead() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn what_clients_choose_does_not_fill_the_memory() {
        let mut beliefs = Beliefs::default();
        for width in 1..=1000 {
            beliefs.learn(report(width, None, 1.0));
        }
        let all = beliefs.all();
        assert_eq!(all.len(), MAX_SIZES);
        assert!(all.contains_key(&report(1000, None, 1.0).size));
    }
}
