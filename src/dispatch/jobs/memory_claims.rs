//! Which waiting jobs a claim takes from memory, and what stands before one.

use std::collections::{BTreeMap, BTreeSet};

use super::memory_state::State;
use super::record::{Record, Room, fill_order, row_pixels};
use super::{Ahead, ClaimRequest, Select, WaitingWork};
use crate::domain::{GroupKey, JobId, JobStatus, QueuePlace, SizeKey};

impl State {
    /// The selected jobs that fit, in order.
    pub(super) fn fitting(&self, request: &ClaimRequest) -> Vec<JobId> {
        let mut room = Room::of(request);
        let fits = |id: &JobId| {
            let asked = &self.records[id].job.request;
            room.take(u64::from(asked.rows()), row_pixels(asked))
        };
        self.selected(request).into_iter().map(|place| place.id).take_while(fits).collect()
    }

    /// The places of the selected jobs, in order; all that the caps let in are among them.
    fn selected(&self, request: &ClaimRequest) -> Vec<QueuePlace> {
        // Each job has a row at least.
        let most = request.max_rows.max(1) as usize;
        let drawn = |key: &GroupKey| request.models.contains(&key.model);
        match &request.select {
            Select::Identical(identity) => self.identities.get(identity).map_or_else(Vec::new, |identical| {
                let is_in_time = |place: &&QueuePlace| self.is_in_time(place);
                identical.waiting.iter().filter(is_in_time).take(most).copied().collect()
            }),
            Select::Group => self.oldest_group(drawn).map_or_else(Vec::new, |group| self.first(group, most)),
            Select::Other { except, before } => {
                let group = self.oldest_group(|key| drawn(key) && key.size() != *except);
                let is_before = |oldest: &QueuePlace| before.is_none_or(|before| *oldest < before);
                let group = group.filter(|group| self.firsts(group).next().is_some_and(is_before));
                group.map_or_else(Vec::new, |group| self.first(group, most))
            }
            Select::Fill { size, .. } if !request.models.contains(&size.model) => Vec::new(),
            Select::Fill { size, steps, before } => {
                let of = |steps| {
                    let SizeKey { model, width, height } = size.clone();
                    GroupKey { model, width, height, steps }
                };
                let of_size = self.groups.range(of(0)..=of(u32::MAX));
                let first = |group: &BTreeSet<QueuePlace>| {
                    let is_before = |place: &&QueuePlace| before.is_none_or(|before| **place < before);
                    self.firsts(group).take(most).take_while(is_before).copied().collect::<Vec<_>>()
                };
                let mut by_age: Vec<QueuePlace> = of_size.flat_map(|(_, group)| first(group)).collect();
                by_age.sort_unstable();
                by_age.truncate(most);
                let alike = self.groups.get(&of(*steps)).map_or_else(Vec::new, first);
                fill_order(&by_age, &alike)
            }
        }
    }

    fn oldest_group(&self, wanted: impl Fn(&GroupKey) -> bool) -> Option<&BTreeSet<QueuePlace>> {
        let groups = self.groups.iter().filter(|(key, _)| wanted(key)).map(|(_, group)| group);
        let oldest = |group| Some((self.firsts(group).next().copied()?, group));
        groups.filter_map(oldest).min_by_key(|(oldest, _)| *oldest).map(|(_, group)| group)
    }

    fn first(&self, group: &BTreeSet<QueuePlace>, most: usize) -> Vec<QueuePlace> {
        self.firsts(group).take(most).copied().collect()
    }

    /// Without those that another of their identity is, or will be, drawn for.
    fn firsts<'a>(&'a self, group: &'a BTreeSet<QueuePlace>) -> impl Iterator<Item = &'a QueuePlace> {
        group.iter().filter(|place| {
            let identity = self.records[&place.id].job.identity.as_ref();
            let known = identity.and_then(|identity| self.identities.get(identity));
            known.is_none_or(|known| known.running.is_empty() && known.waiting.first() == Some(*place))
        })
    }

    /// Whether claims look at it: see [`State::hide_overdue`].
    fn is_in_time(&self, place: &QueuePlace) -> bool {
        let group = self.groups.get(&GroupKey::of(&self.records[&place.id].job.request));
        group.is_some_and(|group| group.contains(place))
    }

    /// What stands before a job; `None` when it does not wait.
    pub(super) fn ahead(&self, record: &Record) -> Option<Ahead> {
        let place = (record.job.status == JobStatus::Queued).then_some(record.place)?;
        Some(Ahead { place, work: self.work(self.waiting.range(..place)) })
    }

    /// By size.
    pub(super) fn work<'a>(&self, places: impl Iterator<Item = &'a QueuePlace>) -> Vec<WaitingWork> {
        let mut work: BTreeMap<SizeKey, WaitingWork> = BTreeMap::new();
        for place in places {
            let request = &self.records[&place.id].job.request;
            let size = GroupKey::of(request).size();
            let none = WaitingWork { size: size.clone(), jobs: 0, rows: 0, row_steps: 0 };
            let sum = work.entry(size).or_insert(none);
            sum.jobs += 1;
            sum.rows += u64::from(request.rows());
            sum.row_steps += u64::from(request.rows()) * u64::from(request.steps_taken());
        }
        work.into_values().collect()
    }
}
