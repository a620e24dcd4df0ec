//! What a queue in memory holds, and where claims look.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::record::{Record, is_undrawn, pixel_steps};
use super::shares::{Account, Scale, joining, weight};
use super::{Error, Lease, Result};
use crate::domain::{GroupKey, Job, JobId, JobStatus, OwnerId, QueuePlace, Timestamp};

/// Records, and where each stands.
pub(super) struct State {
    pub(super) records: BTreeMap<JobId, Record>,
    pub(super) waiting: BTreeSet<QueuePlace>,
    /// By line ([`State::line_of`]) and group.
    pub(super) groups: BTreeMap<(Option<OwnerId>, GroupKey), BTreeSet<QueuePlace>>,
    pub(super) running: BTreeSet<JobId>,
    /// By owner and idempotency key.
    pub(super) keys: HashMap<(Option<OwnerId>, String), JobId>,
    pub(super) identities: HashMap<String, Identical>,
    /// Of jobs that wait or run.
    pub(super) deadlines: BTreeSet<(Timestamp, JobId)>,
    pub(super) pixel_steps: u64,
    pub(super) waiting_rows: u64,
    pub(super) weights: BTreeMap<OwnerId, u32>,
    pub(super) accounts: BTreeMap<Option<OwnerId>, Account>,
    pub(super) scale: Scale,
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
    pub(super) fn new(weights: BTreeMap<OwnerId, u32>, now: Timestamp) -> Self {
        Self {
            records: BTreeMap::new(),
            waiting: BTreeSet::new(),
            groups: BTreeMap::new(),
            running: BTreeSet::new(),
            keys: HashMap::new(),
            identities: HashMap::new(),
            deadlines: BTreeSet::new(),
            pixel_steps: 0,
            waiting_rows: 0,
            weights,
            accounts: BTreeMap::new(),
            scale: Scale::starting(now.unix_ms()),
        }
    }

    /// Puts a record in its place, and takes its former self out of where it stood.
    pub(super) fn put(&mut self, record: Record) {
        let before = self.take(record.job.id);
        if !self.weights.is_empty() {
            self.account_for(before.map(|before| before.job.status), &record.job);
        }
        let place = record.place;
        match record.job.status {
            JobStatus::Queued => {
                self.waiting.insert(place);
                self.waiting_rows += u64::from(record.job.request.rows());
                self.groups.entry(self.line_of(&record.job)).or_default().insert(place);
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
        let key = self.line_of(&record.job);
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

    /// Takes waiting jobs whose deadline is over from where claims look. They end by [`JobStore::expire_overdue`], or are
    /// cancelled before; none of them is put back.
    pub(super) fn hide_overdue(&mut self, now: Timestamp) {
        for id in self.overdue(now) {
            let Record { job, place, .. } = &self.records[&id];
            let key = self.line_of(job);
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

    /// Where a job waits: without weights, everybody's jobs stand in one line.
    pub(super) fn line_of(&self, job: &Job) -> (Option<OwnerId>, GroupKey) {
        let owner = if self.weights.is_empty() { None } else { job.owner.clone() };
        (owner, GroupKey::of(&job.request))
    }

    /// Whose jobs wait; without weights, one line.
    pub(super) fn owners_waiting(&self) -> BTreeSet<Option<OwnerId>> {
        self.groups.keys().map(|(owner, _)| owner.clone()).collect()
    }

    pub(super) fn account(&self, owner: &Option<OwnerId>) -> Account {
        self.accounts.get(owner).copied().unwrap_or_default()
    }

    /// What a change of a job's state means for its owner's share.
    fn account_for(&mut self, before: Option<JobStatus>, job: &Job) {
        let (owner, work) = (&job.owner, pixel_steps(&job.request));
        let weight = weight(&self.weights, owner.as_ref());
        let mut account = self.account(owner);
        match (before, job.status) {
            (None, JobStatus::Queued) if !self.owners_waiting().contains(owner) => {
                let waiting = self.owners_waiting().into_iter().map(|owner| self.account(&owner).tag);
                account.tag = joining(account.tag, waiting, self.accounts.values().map(|account| account.tag));
            }
            (Some(JobStatus::Queued), JobStatus::Running) => account.charge(work, weight),
            (Some(JobStatus::Running), _) if is_undrawn(job) => account.refund(work, weight),
            _ => return,
        }
        self.accounts.insert(owner.clone(), account);
    }
}
