//! What a queue in memory holds, and where claims look.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::record::{Record, pixel_steps};
use super::shares::{Account, Pace, Settled, Weight};
use super::{Error, Lease, Result};
use crate::domain::{GroupKey, JobId, JobStatus, OwnerId, QueuePlace, Timestamp};

/// Records, and where each stands.
#[derive(Default)]
pub(super) struct State {
    pub(super) records: BTreeMap<JobId, Record>,
    pub(super) waiting: BTreeSet<QueuePlace>,
    pub(super) groups: BTreeMap<GroupKey, BTreeSet<QueuePlace>>,
    pub(super) running: BTreeSet<JobId>,
    /// By owner and idempotency key.
    pub(super) keys: HashMap<(Option<OwnerId>, String), JobId>,
    pub(super) identities: HashMap<String, Identical>,
    /// Of jobs that wait or run.
    pub(super) deadlines: BTreeSet<(Timestamp, JobId)>,
    pub(super) pixel_steps: u64,
    pub(super) waiting_rows: u64,
    pub(super) accounts: BTreeMap<Option<OwnerId>, Account>,
    pub(super) pace: Option<Pace>,
}

/// Jobs of one identity.
#[derive(Default)]
pub(super) struct Identical {
    pub(super) waiting: BTreeSet<QueuePlace>,
    pub(super) running: BTreeSet<JobId>,
    /// By when they ended.
    pub(super) succeeded: BTreeSet<(Option<Timestamp>, JobId)>,
}

impl Identical {
    fn put(&mut self, Record { job, place, .. }: &Record) {
        match job.status {
            JobStatus::Queued => drop(self.waiting.insert(*place)),
            JobStatus::Running => drop(self.running.insert(job.id)),
            JobStatus::Succeeded => drop(self.succeeded.insert((job.ended_at, job.id))),
            JobStatus::Failed | JobStatus::Cancelled => {}
        }
    }

    /// Whether none is left.
    fn take(&mut self, Record { job, place, .. }: &Record) -> bool {
        self.waiting.remove(place);
        self.running.remove(&job.id);
        self.succeeded.remove(&(job.ended_at, job.id));
        self.waiting.is_empty() && self.running.is_empty() && self.succeeded.is_empty()
    }
}

impl State {
    /// Puts a record in its place, and takes its former self out of where it stood.
    pub(super) fn put(&mut self, record: Record) {
        if let Some(before) = self.take(record.job.id) {
            self.settle(before.job.status, &record);
        }
        let place = record.place;
        match record.job.status {
            JobStatus::Queued => {
                self.waiting.insert(place);
                self.waiting_rows += u64::from(record.job.request.rows());
                self.groups.entry(GroupKey::of(&record.job.request)).or_default().insert(place);
            }
            JobStatus::Running => {
                self.running.insert(record.job.id);
            }
            JobStatus::Succeeded | JobStatus::Failed | JobStatus::Cancelled => {}
        }
        if !record.job.status.is_terminal() {
            self.pixel_steps += pixel_steps(&record.job.request);
        }
        if let Some(identity) = &record.job.identity {
            self.identities.entry(identity.clone()).or_default().put(&record);
        }
        if let Some(deadline) = record.job.deadline() {
            self.deadlines.insert((deadline, record.job.id));
        }
        if let Some(idempotency) = &record.idempotency {
            self.keys.insert((record.job.owner.clone(), idempotency.key.clone()), record.job.id);
        }
        self.records.insert(record.job.id, record);
    }

    pub(super) fn take(&mut self, id: JobId) -> Option<Record> {
        let record = self.records.remove(&id)?;
        let place = record.place;
        if self.waiting.remove(&place) {
            self.waiting_rows -= u64::from(record.job.request.rows());
        }
        self.running.remove(&id);
        let key = GroupKey::of(&record.job.request);
        if let Some(group) = self.groups.get_mut(&key) {
            group.remove(&place);
            if group.is_empty() {
                self.groups.remove(&key);
            }
        }
        if !record.job.status.is_terminal() {
            self.pixel_steps -= pixel_steps(&record.job.request);
        }
        if let Some(identity) = &record.job.identity
            && let Some(known) = self.identities.get_mut(identity)
            && known.take(&record)
        {
            self.identities.remove(identity);
        }
        if let Some(deadline) = record.job.deadline() {
            self.deadlines.remove(&(deadline, id));
        }
        if let Some(idempotency) = &record.idempotency {
            self.keys.remove(&(record.job.owner.clone(), idempotency.key.clone()));
        }
        Some(record)
    }

    pub(super) fn overdue(&self, now: Timestamp) -> Vec<JobId> {
        self.deadlines.iter().take_while(|(deadline, _)| *deadline <= now).map(|(_, id)| *id).collect()
    }

    /// Takes waiting jobs whose deadline is over from where claims look. They end by [`super::JobStore::expire_overdue`], or are
    /// cancelled before; none of them is put back.
    pub(super) fn hide_overdue(&mut self, now: Timestamp) {
        for id in self.overdue(now) {
            let Record { job, place, .. } = &self.records[&id];
            let key = GroupKey::of(&job.request);
            if let Some(group) = self.groups.get_mut(&key) {
                group.remove(place);
                if group.is_empty() {
                    self.groups.remove(&key);
                }
            }
        }
    }

    /// Works on a copy, so that a refused change leaves the record as it was.
    pub(super) fn held(&self, lease: &Lease) -> Result<Record> {
        self.records.get(&lease.job_id).cloned().ok_or(Error::LeaseLost(lease.job_id))
    }

    /// Gives a new record its owner's turn.
    pub(super) fn give_turn(
        &mut self,
        record: &mut Record,
        weights: &BTreeMap<OwnerId, u32>,
        (now, speed): (Timestamp, Option<f64>),
    ) {
        let (owner, request) = (&record.job.owner, &record.job.request);
        let weight = Weight::of(weights, owner.as_ref());
        let pace = match self.pace {
            Some(pace) if !self.waiting.is_empty() => pace,
            known => {
                let latest = self.accounts.values().map(Account::latest).fold(0.0, f64::max);
                Pace::anew(known, latest, now, speed, weight)
            }
        };
        self.pace = Some(pace);
        let first = self.oldest_rank(|key| key.model == *request.model());
        let account = self.accounts.entry(owner.clone()).or_default();
        let turn = account.turn(&pace, first, (request.priority(), pixel_steps(request)), weight);
        record.take(turn, weight);
    }

    /// Of the jobs of these groups that wait.
    pub(super) fn oldest_rank(&self, of: impl Fn(&GroupKey) -> bool) -> Option<i64> {
        let groups = self.groups.iter().filter(|(key, _)| of(key)).map(|(_, group)| group);
        groups.filter_map(|group| group.first()).map(|place| place.rank_ms).min()
    }

    /// What a job's new state means for its turn.
    fn settle(&mut self, before: JobStatus, record: &Record) {
        let (Some(turn), Some(pace), request) = (record.turn, &self.pace, &record.job.request) else { return };
        let account = self.accounts.entry(record.job.owner.clone()).or_default();
        match Settled::of(before, &record.job) {
            Settled::GivenBack => account.give_back(turn, request.priority(), pace),
            Settled::Drawn => account.pixel_steps += pixel_steps(request),
            Settled::Not => {}
        }
    }
}
