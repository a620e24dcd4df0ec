//! A queue in memory: for `generate`, for tests, and for servers whose jobs may die with them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::memory_state::State;
use super::record::Record;
use super::shares::{Account, own_weight};
use super::{
    Ahead, Cancelled, ClaimRequest, ClaimedJob, Error, Inserted, JobFilter, JobStore, Lease, LeaseState, NewJob,
    Outcome, Overdue, OwnerWork, QueueStats, Rescued, Result, StoreOptions, WaitingModels, WaitingWork,
};
use crate::domain::{Clock, Job, JobId, JobStatus, ModelId, OwnerId, Timestamp};

/// [`JobStore`] in one process's memory; every method holds one lock and never waits for anything else.
pub struct MemoryStore {
    options: StoreOptions,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
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
        let (now, speed) = (self.clock.now(), new.speed);
        let mut record = Record::new(new, &self.options, now)?;
        if !self.options.weights.is_empty() && !record.job.status.is_terminal() {
            state.give_turn(&mut record, &self.options.weights, (now, speed));
        }
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

    async fn ahead(&self, id: JobId) -> Result<Option<Ahead>> {
        let state = self.state();
        Ok(state.records.get(&id).and_then(|record| state.ahead(record)))
    }

    async fn waiting_work(&self) -> Result<Vec<WaitingWork>> {
        let state = self.state();
        Ok(state.work(state.waiting.iter()))
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
        let mut first = None;
        for id in state.fitting(&request) {
            let mut record = state.records[&id].clone();
            let lease = record.claim(&request, now)?;
            first = first.or(record.turn.map(|turn| (turn, record.place.rank_ms)));
            claimed.push(ClaimedJob { job: record.job.clone(), lease, place: record.place });
            state.put(record);
        }
        let left = state.oldest_rank(|key| request.models.contains(&key.model));
        if let (Some((turn, rank)), Some(pace), true) = (first, &mut state.pace, request.is_to_draw) {
            pace.took(turn, rank, left);
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

    async fn owners(&self) -> Result<Vec<OwnerWork>> {
        let state = self.state();
        let count = |owner: &Option<OwnerId>, status| {
            state.records.values().filter(|record| record.job.owner == *owner && record.job.status == status).count()
        };
        let work = |(owner, account): (&Option<OwnerId>, &Account)| OwnerWork {
            owner: owner.clone(),
            weight: own_weight(&self.options.weights, owner.as_ref()),
            queued: count(owner, JobStatus::Queued) as u64,
            running: count(owner, JobStatus::Running) as u64,
            pixel_steps: account.pixel_steps,
        };
        Ok(state.accounts.iter().map(work).collect())
    }

    async fn ping(&self) -> Result<()> {
        Ok(())
    }
}
