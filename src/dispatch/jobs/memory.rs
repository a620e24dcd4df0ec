//! A queue in memory: for `generate`, for tests, and for servers whose jobs may die with them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::record::{Record, Room, fill_order, pixel_steps, row_pixels};
use super::{
    Cancelled, ClaimRequest, ClaimedJob, Error, Inserted, JobFilter, JobStore, Lease, LeaseState, NewJob, Outcome,
    Overdue, QueueStats, Rescued, Result, Select, StoreOptions, WaitingModels, WaitingWork,
};
use crate::domain::{Clock, GroupKey, Job, JobId, JobStatus, ModelId, OwnerId, QueuePlace, SizeKey, Timestamp};

/// [`JobStore`] in one process's memory; every method holds one lock and never waits for anything else.
pub struct MemoryStore {
    options: StoreOptions,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    records: BTreeMap<JobId, Record>,
    waiting: BTreeSet<QueuePlace>,
    groups: BTreeMap<GroupKey, BTreeSet<QueuePlace>>,
    running: BTreeSet<JobId>,
    /// By owner and idempotency key.
    keys: HashMap<(Option<OwnerId>, String), JobId>,
    identities: HashMap<String, Identical>,
    /// Of jobs that wait or run.
    deadlines: BTreeSet<(Timestamp, JobId)>,
    pixel_steps: u64,
    waiting_rows: u64,
}

/// Jobs of one identity.
#[derive(Default)]
struct Identical {
    waiting: BTreeSet<QueuePlace>,
    running: BTreeSet<JobId>,
    /// By when they ended.
    succeeded: BTreeSet<(Option<Timestamp>, JobId)>,
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

impl MemoryStore {
    /// An empty store.
    pub fn new(options: StoreOptions, clock: Arc<dyn Clock>) -> Self {
        Self { options, clock, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held leaves whole records behind: each is replaced in one go.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Puts a record in its place, and takes its former self out of where it stood.
    fn put(&mut self, record: Record) {
        self.take(record.job.id);
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

    fn take(&mut self, id: JobId) -> Option<Record> {
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

    fn overdue(&self, now: Timestamp) -> Vec<JobId> {
        self.deadlines.iter().take_while(|(deadline, _)| *deadline <= now).map(|(_, id)| *id).collect()
    }

    /// Takes waiting jobs whose deadline is over from where claims look. They end by [`JobStore::expire_overdue`], or are
    /// cancelled before; none of them is put back.
    fn hide_overdue(&mut self, now: Timestamp) {
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
    fn held(&self, lease: &Lease) -> Result<Record> {
        self.records.get(&lease.job_id).cloned().ok_or(Error::LeaseLost(lease.job_id))
    }

    /// The places of the selected jobs, in order; all that the caps let in are among them.
    fn selected(&self, request: &ClaimRequest) -> Vec<QueuePlace> {
        // Each job has a row at least.
        let most = request.max_rows.max(1) as usize;
        let drawn = |key: &GroupKey| request.models.contains(&key.model);
        match &request.select {
            Select::Identical(identity) => self.identities.get(identity).map_or_else(Vec::new, |identical| {
                let is_in_time = |place: &&QueuePlace| self.is_in_time(place);
                identical.waiting.iter().filter(is_in_time).copied().collect()
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

    fn fitting(&self, request: &ClaimRequest) -> Vec<JobId> {
        let mut room = Room::of(request);
        let fits = |id: &JobId| {
            let asked = &self.records[id].job.request;
            room.take(u64::from(asked.rows()), row_pixels(asked))
        };
        self.selected(request).into_iter().map(|place| place.id).take_while(fits).collect()
    }
}

fn is_past(moment: Option<Timestamp>, now: Timestamp) -> bool {
    moment.is_some_and(|moment| moment <= now)
}

#[async_trait]
impl JobStore for MemoryStore {
    async fn insert(&self, new: NewJob) -> Result<Inserted> {
        let mut state = self.state();
        if let Some(idempotency) = &new.idempotency
            && let Some(id) = state.keys.get(&(new.owner.clone(), idempotency.key.clone()))
            && let Some(known) = state.records.get(id)
        {
            return match known.idempotency.as_ref() == Some(idempotency) {
                true => Ok(Inserted::Existing(known.job.clone())),
                false => Err(Error::IdempotencyMismatch),
            };
        }
        if state.records.contains_key(&new.id) {
            return Err(Error::Storage(format!("job {} exists already", new.id)));
        }
        if new.answer.is_none() && state.waiting.len() as u64 >= self.options.max_queued {
            return Err(Error::QueueFull { limit: self.options.max_queued });
        }
        let record = Record::new(new, &self.options, self.clock.now())?;
        let job = record.job.clone();
        state.put(record);
        Ok(Inserted::New(job))
    }

    async fn get(&self, id: JobId) -> Result<Option<Job>> {
        Ok(self.state().records.get(&id).map(|record| record.job.clone()))
    }

    async fn list(&self, filter: JobFilter) -> Result<Vec<Job>> {
        let state = self.state();
        let older = |id: &JobId| filter.before.is_none_or(|before| *id < before);
        let is_owned = |job: &Job| filter.owner.is_none() || filter.owner == job.owner;
        let wanted = |job: &&Job| filter.status.is_none_or(|status| job.status == status) && is_owned(job);
        let jobs = state.records.iter().rev().filter(|(id, _)| older(id)).map(|(_, record)| &record.job);
        Ok(jobs.filter(wanted).take(filter.limit as usize).cloned().collect())
    }

    async fn position(&self, id: JobId) -> Result<Option<u64>> {
        let state = self.state();
        let Some(record) = state.records.get(&id).filter(|record| record.job.status == JobStatus::Queued) else {
            return Ok(None);
        };
        Ok(Some(state.waiting.range(..record.place).count() as u64))
    }

    async fn waiting_work(&self, before: Option<QueuePlace>) -> Result<Vec<WaitingWork>> {
        let state = self.state();
        let is_before = |place: &&QueuePlace| before.is_none_or(|before| **place < before);
        let mut work: BTreeMap<SizeKey, WaitingWork> = BTreeMap::new();
        for place in state.waiting.iter().take_while(is_before) {
            let request = &state.records[&place.id].job.request;
            let size = GroupKey::of(request).size();
            let none = WaitingWork { size: size.clone(), jobs: 0, rows: 0, row_steps: 0 };
            let sum = work.entry(size).or_insert(none);
            sum.jobs += 1;
            sum.rows += u64::from(request.rows());
            sum.row_steps += u64::from(request.rows()) * u64::from(request.steps_taken());
        }
        Ok(work.into_values().collect())
    }

    async fn identical(&self, identity: &str) -> Result<Option<Job>> {
        let (state, now) = (self.state(), self.clock.now());
        let known = state.identities.get(identity).into_iter().flat_map(|known| known.succeeded.iter().rev());
        let jobs = known.map(|(_, id)| &state.records[id].job);
        Ok(jobs.into_iter().find(|job| !is_past(job.expires_at, now)).cloned())
    }

    async fn waiting_models(&self) -> Result<Vec<WaitingModels>> {
        let state = self.state();
        let mut oldest: BTreeMap<&ModelId, i64> = BTreeMap::new();
        for (key, group) in &state.groups {
            if let Some(place) = group.first() {
                let rank = oldest.entry(&key.model).or_insert(place.rank_ms);
                *rank = place.rank_ms.min(*rank);
            }
        }
        let of_model = |(model, rank_ms): (&ModelId, i64)| WaitingModels { models: vec![model.clone()], rank_ms };
        Ok(oldest.into_iter().map(of_model).collect())
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Vec<ClaimedJob>> {
        let mut state = self.state();
        let now = self.clock.now();
        state.hide_overdue(now);
        let mut claimed = Vec::new();
        for id in state.fitting(&request) {
            let mut record = state.records[&id].clone();
            let lease = record.claim(&request, now)?;
            claimed.push(ClaimedJob { job: record.job.clone(), lease });
            state.put(record);
        }
        Ok(claimed)
    }

    async fn heartbeat(&self, leases: &[Lease], lease_ms: u64) -> Result<Vec<LeaseState>> {
        let mut state = self.state();
        let now = self.clock.now();
        let renew = |lease: &Lease| match state.records.get_mut(&lease.job_id) {
            Some(record) => record.renew(lease, lease_ms, now),
            None => LeaseState::Lost,
        };
        Ok(leases.iter().map(renew).collect())
    }

    async fn finish(&self, lease: &Lease, outcome: Outcome) -> Result<Job> {
        let mut state = self.state();
        let mut record = state.held(lease)?;
        record.finish(lease, outcome, &self.options, self.clock.now())?;
        let job = record.job.clone();
        state.put(record);
        Ok(job)
    }

    async fn release(&self, lease: &Lease) -> Result<Job> {
        let mut state = self.state();
        let mut record = state.held(lease)?;
        record.release(lease, &self.options, self.clock.now())?;
        let job = record.job.clone();
        state.put(record);
        Ok(job)
    }

    async fn lose(&self, lease: &Lease, reason: &str) -> Result<Rescued> {
        let mut state = self.state();
        let mut record = state.held(lease)?;
        let rescued = record.lose(lease, reason, &self.options, self.clock.now())?;
        state.put(record);
        Ok(rescued)
    }

    async fn cancel(&self, id: JobId) -> Result<Option<Cancelled>> {
        let mut state = self.state();
        let Some(mut record) = state.records.get(&id).cloned() else { return Ok(None) };
        let cancelled = record.cancel(&self.options, self.clock.now())?;
        state.put(record);
        Ok(Some(cancelled))
    }

    async fn rescue_expired(&self) -> Result<Vec<Rescued>> {
        let mut state = self.state();
        let now = self.clock.now();
        let is_expired = |record: &&Record| is_past(record.lease.as_ref().map(|lease| lease.expires_at), now);
        let running = state.running.iter().filter_map(|id| state.records.get(id));
        let expired: Vec<Record> = running.filter(is_expired).cloned().collect();
        let mut rescued = Vec::with_capacity(expired.len());
        for mut record in expired {
            rescued.push(record.rescue(None, &self.options, now)?);
            state.put(record);
        }
        Ok(rescued)
    }

    async fn expire_overdue(&self) -> Result<Vec<Overdue>> {
        let mut state = self.state();
        let now = self.clock.now();
        let mut overdue = Vec::new();
        for id in state.overdue(now) {
            let mut record = state.records[&id].clone();
            overdue.extend(record.overdue(&self.options, now)?);
            state.put(record);
        }
        Ok(overdue)
    }

    async fn remove(&self, id: JobId) -> Result<Option<Job>> {
        let mut state = self.state();
        match state.records.get(&id) {
            Some(record) if !record.job.status.is_terminal() => Err(Error::NotEnded(id)),
            _ => Ok(state.take(id).map(|record| record.job)),
        }
    }

    async fn remove_expired(&self, limit: u32) -> Result<Vec<Job>> {
        let mut state = self.state();
        let now = self.clock.now();
        let expired = state.records.values().filter(|record| is_past(record.job.expires_at, now));
        let mut ids: Vec<(Option<Timestamp>, JobId)> =
            expired.map(|record| (record.job.expires_at, record.job.id)).collect();
        ids.sort_unstable();
        ids.truncate(limit as usize);
        Ok(ids.into_iter().filter_map(|(_, id)| state.take(id)).map(|record| record.job).collect())
    }

    async fn stats(&self) -> Result<QueueStats> {
        let state = self.state();
        let (queued, running) = (state.waiting.len() as u64, state.running.len() as u64);
        Ok(QueueStats { queued, running, pixel_steps: state.pixel_steps, waiting_rows: state.waiting_rows })
    }

    async fn ping(&self) -> Result<()> {
        Ok(())
    }
}
