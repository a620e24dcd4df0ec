//! The waiting jobs, selected as the job stores select them (`dispatch::jobs::Select`).

use std::collections::{BTreeMap, BTreeSet};

use darkroom::domain::{ALIKE_WITHIN_MS, QueuePlace};
use uuid::Uuid;

use super::traffic::Job;

/// A job's number, and its place before it: the smaller, the older.
pub(super) type Waiting = (QueuePlace, usize);

/// What a device asks of the jobs that wait.
pub(super) trait Waits {
    fn len(&self) -> usize;
    fn push(&mut self, job: &Job, number: usize);
    /// The oldest, then others of its size and steps.
    fn group(&mut self, most: usize) -> Vec<Waiting>;
    /// As `group`, of another size than this, and only if its oldest stands before `before`.
    fn other(&mut self, except: usize, before: Option<QueuePlace>, most: usize) -> Vec<Waiting>;
    /// Of one size, and only what stands before `before`: the oldest, those with as many steps that came soon after it,
    /// the rest.
    fn fill(&mut self, size: usize, steps: u32, before: Option<QueuePlace>, most: usize) -> Vec<Waiting>;
    /// In strict order: the oldest, and those after it until one differs in size or steps.
    fn in_order(&mut self, most: usize) -> Vec<Waiting>;
    /// The time on the virtual clock, in seconds.
    fn at(&mut self, _now: f64) {}
    /// A forward did so many pixel-steps a second.
    fn measured(&mut self, _speed: f64) {}
    fn ended(&mut self, _number: usize) {}
}

#[derive(Default)]
pub(super) struct Queue {
    /// By size and steps.
    groups: BTreeMap<(usize, u32), BTreeSet<Waiting>>,
    waiting: usize,
}

impl Queue {
    fn oldest(&self, wanted: impl Fn(usize) -> bool) -> Option<(QueuePlace, (usize, u32))> {
        let fronts = self.groups.iter().filter(|((size, _), _)| wanted(*size));
        fronts.filter_map(|(key, group)| group.first().map(|(place, _)| (*place, *key))).min()
    }

    fn pop(&mut self, key: (usize, u32)) -> Option<Waiting> {
        let job = self.groups.get_mut(&key)?.pop_first()?;
        self.waiting -= 1;
        Some(job)
    }
}

impl Waits for Queue {
    fn len(&self) -> usize {
        self.waiting
    }

    fn push(&mut self, job: &Job, number: usize) {
        self.groups.entry((job.size, job.steps)).or_default().insert((place(job, number), number));
        self.waiting += 1;
    }

    fn group(&mut self, most: usize) -> Vec<Waiting> {
        let Some((_, key)) = self.oldest(|_| true) else { return Vec::new() };
        (0..most.max(1)).map_while(|_| self.pop(key)).collect()
    }

    fn other(&mut self, except: usize, before: Option<QueuePlace>, most: usize) -> Vec<Waiting> {
        match self.oldest(|size| size != except) {
            Some((place, key)) if before.is_none_or(|before| place < before) => {
                (0..most.max(1)).map_while(|_| self.pop(key)).collect()
            }
            _ => Vec::new(),
        }
    }

    fn fill(&mut self, size: usize, steps: u32, before: Option<QueuePlace>, most: usize) -> Vec<Waiting> {
        let mut taken = Vec::new();
        let Some((oldest, _)) = self.oldest(|other| other == size) else { return taken };
        let is_before = |place: QueuePlace| before.is_none_or(|before| place < before);
        while taken.len() < most {
            let alike = self.groups.get(&(size, steps)).and_then(BTreeSet::first);
            let alike = alike.filter(|(place, _)| is_before(*place));
            let is_due = alike.is_some_and(|(place, _)| place.rank_ms <= oldest.rank_ms + ALIKE_WITHIN_MS);
            let alike = if is_due && !taken.is_empty() { self.pop((size, steps)) } else { None };
            let next = alike.or_else(|| {
                let (place, key) = self.oldest(|other| other == size)?;
                if is_before(place) { self.pop(key) } else { None }
            });
            match next {
                Some(job) => taken.push(job),
                None => break,
            }
        }
        taken
    }

    fn in_order(&mut self, most: usize) -> Vec<Waiting> {
        let mut taken = Vec::new();
        let Some((_, first)) = self.oldest(|_| true) else { return taken };
        while taken.len() < most.max(1) && self.oldest(|_| true).is_some_and(|(_, key)| key == first) {
            taken.extend(self.pop(first));
        }
        taken
    }
}

/// As `domain::Job::place`, for jobs of one priority.
fn place(job: &Job, number: usize) -> QueuePlace {
    QueuePlace { rank_ms: (job.stands * 1e3) as i64, id: Uuid::from_u128(number as u128).into() }
}
