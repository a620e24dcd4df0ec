//! Which waiting jobs a claim takes from memory, and whose turn it is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::memory_state::State;
use super::record::{Record, fill_order, pixel_steps, row_pixels};
use super::shares::{Candidate, Line, Share, Turn, Waiting, ahead, in_turn, is_first, weight};
use super::{ClaimRequest, Select, WaitingWork};
use crate::domain::{GroupKey, JobStatus, OwnerId, QueuePlace, SizeKey};

impl State {
    /// The selected jobs, in order; all that the caps let in are among them.
    pub(super) fn selected(&mut self, request: &ClaimRequest) -> Vec<Turn> {
        let mut lines = self.lines();
        self.scale.follow(&lines, request.speed);
        // Each job has a row at least.
        let most = request.max_rows.max(1) as usize;
        let before = match &request.select {
            Select::Identical(identity) => return self.identical(identity),
            Select::Group | Select::Other { .. } => {
                let Some(group) = self.oldest_group(&lines, request) else { return Vec::new() };
                for line in &mut lines {
                    line.jobs = self.candidates(self.first(&line.owner(), &group, most));
                }
                None
            }
            Select::Fill { size, .. } if !request.models.contains(&size.model) => return Vec::new(),
            Select::Fill { size, steps, before } => {
                for line in &mut lines {
                    line.jobs = self.candidates(self.fill(&line.owner(), size, *steps, most));
                }
                *before
            }
        };
        in_turn(lines, before, &self.scale)
    }

    /// A line for each owner with waiting jobs, still empty; without weights one for everybody.
    fn lines(&self) -> Vec<Line> {
        if self.weights.is_empty() {
            return vec![Line::default()];
        }
        let line = |owner: Option<OwnerId>| {
            let (weight, tag) = (weight(&self.weights, owner.as_ref()), self.account(&owner).tag);
            Line { share: Some(Share { owner, weight, tag }), jobs: VecDeque::new() }
        };
        self.owners_waiting().into_iter().map(line).collect()
    }

    fn identical(&self, identity: &str) -> Vec<Turn> {
        let waiting = self.identities.get(identity).map(|identical| &identical.waiting);
        let in_time = waiting.into_iter().flatten().filter(|place| self.is_in_time(place));
        in_time.map(|place| Turn { job: self.candidate(*place), place: *place }).collect()
    }

    /// The oldest jobs of one line's group.
    fn first(&self, owner: &Option<OwnerId>, group: &GroupKey, most: usize) -> Vec<QueuePlace> {
        let group = self.groups.get(&(owner.clone(), group.clone()));
        group.map_or_else(Vec::new, |group| self.firsts(group).take(most).copied().collect())
    }

    /// The order of [`Select::Fill`] in one line.
    fn fill(&self, owner: &Option<OwnerId>, size: &SizeKey, steps: u32, most: usize) -> Vec<QueuePlace> {
        let of = |steps| {
            let SizeKey { model, width, height } = size.clone();
            GroupKey { model, width, height, steps }
        };
        let of_size = self.groups.range((owner.clone(), of(0))..=(owner.clone(), of(u32::MAX)));
        let mut by_age: Vec<QueuePlace> =
            of_size.flat_map(|(_, group)| self.firsts(group).take(most)).copied().collect();
        by_age.sort_unstable();
        by_age.truncate(most);
        fill_order(&by_age, &self.first(owner, &of(steps), most))
    }

    /// The group of the job whose turn it is.
    fn oldest_group(&self, lines: &[Line], request: &ClaimRequest) -> Option<GroupKey> {
        let (except, before) = match &request.select {
            Select::Other { except, before } => (Some(except), *before),
            _ => (None, None),
        };
        let wanted = |key: &GroupKey| request.models.contains(&key.model) && except != Some(&key.size());
        let head = |line: &Line| {
            let owner = line.owner();
            let groups = self.groups.iter().filter(|((of, key), _)| *of == owner && wanted(key));
            let oldest = groups.filter_map(|((_, key), group)| Some((*self.firsts(group).next()?, key)));
            let (place, key) = oldest.min_by_key(|(place, _)| *place)?;
            let job = self.candidate(place);
            let stands_before = before.is_none_or(|before| line.place_of(&job, &self.scale) < before);
            stands_before.then_some((job, key))
        };
        let heads: Vec<_> = lines.iter().filter_map(|line| Some((line, head(line)?))).collect();
        let first = is_first(heads.iter().map(|(line, (job, _))| (*line, job)))?;
        Some(heads[first].1.1.clone())
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
        let group = self.groups.get(&self.line_of(&self.records[&place.id].job));
        group.is_some_and(|group| group.contains(place))
    }

    fn candidates(&self, places: Vec<QueuePlace>) -> VecDeque<Candidate> {
        places.into_iter().map(|place| self.candidate(place)).collect()
    }

    fn candidate(&self, place: QueuePlace) -> Candidate {
        let job = &self.records[&place.id].job;
        let moved_ms = place.rank_ms - job.created_at.unix_ms();
        let (rows, row_pixels) = (u64::from(job.request.rows()), row_pixels(&job.request));
        Candidate { place, moved_ms, rows, row_pixels, pixel_steps: pixel_steps(&job.request) }
    }

    /// What stands before a job; `None` when it does not wait.
    pub(super) fn ahead(&self, record: &Record) -> Option<Vec<WaitingWork>> {
        let me = (record.job.status == JobStatus::Queued).then_some(record.place)?;
        if self.weights.is_empty() {
            return Some(self.work(self.waiting.range(..me)));
        }
        let own = &record.job.owner;
        let mut lines: BTreeMap<&Option<OwnerId>, Vec<&QueuePlace>> = BTreeMap::from([(own, Vec::new())]);
        for place in &self.waiting {
            let owner = &self.records[&place.id].job.owner;
            if owner != own || *place < me {
                lines.entry(owner).or_default().push(place);
            }
        }
        let waiting = |(owner, places): (&Option<OwnerId>, Vec<&QueuePlace>)| {
            let (weight, tag) = (weight(&self.weights, owner.as_ref()), self.account(owner).tag);
            self.summed(Waiting::of(weight, tag), places.into_iter())
        };
        let mine = waiting(lines.remove_entry(own)?);
        Some(ahead(mine, lines.into_iter().map(waiting)))
    }

    /// Sums over waiting jobs.
    pub(super) fn work<'a>(&self, places: impl Iterator<Item = &'a QueuePlace>) -> Vec<WaitingWork> {
        self.summed(Waiting::default(), places).total()
    }

    fn summed<'a>(&self, mut waiting: Waiting, places: impl Iterator<Item = &'a QueuePlace>) -> Waiting {
        for place in places {
            let request = &self.records[&place.id].job.request;
            let rows = u64::from(request.rows());
            let row_steps = rows * u64::from(request.steps_taken());
            let work = WaitingWork { size: GroupKey::of(request).size(), jobs: 1, rows, row_steps };
            waiting.add(work, pixel_steps(request));
        }
        waiting
    }
}
