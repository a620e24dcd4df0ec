//! Which models a device holds, which is loaded next and which make room for it: arithmetic alone, without weights, threads
//! or a clock.
//!
//! ```text
//!              wanted, and there is room          done
//!   available --------------------------> loading ----> loaded
//!     ^   ^                                  |             |
//!     |   |  wanted after RETRY_AFTER        | failed      | nobody uses it, and room is wanted
//!     |   +------------------------------- failed          |
//!     +----------------------------------------------------+
//! ```
//!
//! **Order.** The jobs that wait say what they want ([`Want`]). The oldest that lacks a model has it loaded next, one at a time. Room
//! for it is made by models that neither it nor an older one wants: idle ones first, the least recently used of them before the others.
//! Where idle ones are not enough, models in use *leave*: no more jobs are begun with them, and they are dropped when those
//! begun have ended.
//!
//! **LoRAs and ControlNets** that stay in memory are counted as well, and those that no job uses go before any model.
//!
//! **Nobody waits for ever, and loading takes at most about half of the time.** A model that is in use or wanted stays for as
//! long as its loading took at least; then it leaves for an older want. So what an oldest want waits for is bounded: that long, the
//! jobs begun, and its own loading.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::diffusion::pipelines::Extra;
use crate::domain::{ModelId, ModelState, ModelStatus};

/// A model that failed is not tried again before; jobs that want it meanwhile fail for the same reason.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// A model that was loaded in no time stays for so long all the same: the jobs that wanted it must come to it.
const SHORTEST_STAY: Duration = Duration::from_millis(100);

/// What waiting jobs need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Want {
    /// All of them are needed at once.
    pub models: Vec<ModelId>,
    /// The rank of the oldest such job.
    pub rank_ms: i64,
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Load it; it counts as loading from now on.
    Load(ModelId),
    /// Let go of it; it counts as gone from now on.
    Drop(ModelId),
    /// Let go of the LoRAs and ControlNets that no job uses; they count as gone from now on.
    Release,
    /// Nothing before this moment, unless something happens.
    Wait(Instant),
    /// Nothing, unless something happens.
    Rest,
}

/// The models of one device.
#[derive(Debug)]
pub(super) struct Shelf {
    /// Most bytes of weights.
    budget: u64,
    models: BTreeMap<ModelId, Entry>,
    /// LoRAs and ControlNets.
    extras: Extra,
    /// The oldest first.
    wants: Vec<Want>,
    /// Counts uses, for their order.
    uses: u64,
}

#[derive(Debug)]
struct Entry {
    bytes: u64,
    standing: Standing,
}

#[derive(Debug)]
enum Standing {
    Available,
    Loading,
    Loaded(Loaded),
    Failed { reason: String, until: Instant },
}

#[derive(Debug)]
struct Loaded {
    users: u32,
    /// Of [`Shelf::uses`].
    last_use: u64,
    /// Not to be dropped before, when somebody wants it.
    stays_until: Instant,
    leaves: bool,
}

impl Shelf {
    /// Models, and what each would take in bytes; none is loaded.
    pub(super) fn new(budget: u64, models: impl IntoIterator<Item = (ModelId, u64)>) -> Self {
        let entry = |(id, bytes)| (id, Entry { bytes, standing: Standing::Available });
        Self {
            budget,
            models: models.into_iter().map(entry).collect(),
            extras: Extra::default(),
            wants: Vec::new(),
            uses: 0,
        }
    }

    // What happens -----------------------------------------------------------------------------------------------

    /// What waits now, in any order, in place of what was said before. Models of another device's are left out.
    pub(super) fn want(&mut self, mut wants: Vec<Want>) {
        wants.retain(|want| want.models.iter().all(|model| self.models.contains_key(model)));
        wants.sort_by_key(|want| want.rank_ms);
        self.wants = wants;
    }

    /// A model has been loaded and takes so many bytes.
    pub(super) fn loaded(&mut self, model: &ModelId, bytes: u64, took: Duration, now: Instant) {
        self.uses += 1;
        let stays_until = now + took.max(SHORTEST_STAY);
        let loaded = Loaded { users: 0, last_use: self.uses, stays_until, leaves: false };
        if let Some(entry) = self.models.get_mut(model) {
            *entry = Entry { bytes, standing: Standing::Loaded(loaded) };
        }
    }

    /// A model could not be loaded.
    pub(super) fn failed(&mut self, model: &ModelId, reason: String, now: Instant) {
        if let Some(entry) = self.models.get_mut(model) {
            entry.standing = Standing::Failed { reason, until: now + RETRY_AFTER };
        }
    }

    /// What a loaded model takes now.
    pub(super) fn weigh(&mut self, model: &ModelId, bytes: u64) {
        if let Some(entry) = self.models.get_mut(model) {
            entry.bytes = bytes;
        }
    }

    /// What LoRAs and ControlNets take now.
    pub(super) fn extras(&mut self, extras: Extra) {
        self.extras = extras;
    }

    /// Somebody uses a loaded model, and says so again by [`Shelf::let_go`] when it does no longer.
    pub(super) fn hold(&mut self, model: &ModelId) {
        if let Some(loaded) = self.loaded_mut(model) {
            loaded.users += 1;
        }
    }

    /// As told; `has_drawn`: the use counts as one.
    pub(super) fn let_go(&mut self, model: &ModelId, has_drawn: bool) {
        self.uses += u64::from(has_drawn);
        let uses = self.uses;
        if let Some(loaded) = self.loaded_mut(model) {
            loaded.users -= 1;
            if has_drawn {
                loaded.last_use = uses;
            }
        }
    }

    fn loaded_mut(&mut self, model: &ModelId) -> Option<&mut Loaded> {
        match self.models.get_mut(model).map(|entry| &mut entry.standing) {
            Some(Standing::Loaded(loaded)) => Some(loaded),
            _ => None,
        }
    }

    // What is to be done -----------------------------------------------------------------------------------------

    /// What is to be done now; to be asked again when it is done, until there is nothing.
    pub(super) fn next(&mut self, now: Instant) -> Next {
        let mut is_loading = false;
        for entry in self.models.values_mut() {
            match &mut entry.standing {
                Standing::Loaded(loaded) => loaded.leaves = false,
                Standing::Loading => is_loading = true,
                Standing::Available | Standing::Failed { .. } => {}
            }
        }
        if is_loading {
            return Next::Rest;
        }
        match self.oldest_lacking(now) {
            Some((want, model)) => self.make_room(want, &model, now),
            None => Next::Rest,
        }
    }

    /// The oldest want that lacks a model which may be loaded, and that model. One that never finds room fails.
    fn oldest_lacking(&mut self, now: Instant) -> Option<(usize, ModelId)> {
        for at in 0..self.wants.len() {
            let want = &self.wants[at];
            let lacks = |model: &&ModelId| !matches!(self.models[*model].standing, Standing::Loaded(_));
            let Some(model) = want.models.iter().find(lacks).cloned() else { continue };
            if want.models.iter().any(|model| self.failure(model, now).is_some()) {
                continue;
            }
            let needed: u64 = want.models.iter().map(|model| self.models[model].bytes).sum();
            if needed <= self.budget {
                return Some((at, model));
            }
            let reason = too_large(&want.models, needed, self.budget);
            self.failed(&model, reason, now);
        }
        None
    }

    fn make_room(&mut self, want: usize, model: &ModelId, now: Instant) -> Next {
        let lacking = self.lacking(self.models[model].bytes);
        if lacking == 0 {
            if let Some(entry) = self.models.get_mut(model) {
                entry.standing = Standing::Loading;
            }
            return Next::Load(model.clone());
        }
        let unused = self.extras.unused;
        if lacking <= unused {
            return self.release();
        }
        let Some(leaving) = self.leaving(want, lacking - unused) else { return Next::Rest };
        let from = leaving.iter().map(|model| self.stays_until(model, now)).max().unwrap_or(now);
        if from > now {
            return Next::Wait(from);
        }
        let is_idle = |model: &ModelId| matches!(&self.models[model].standing, Standing::Loaded(it) if it.users == 0);
        if leaving.iter().all(is_idle) {
            if unused > 0 {
                return self.release();
            }
            let first = leaving[0].clone();
            if let Some(entry) = self.models.get_mut(&first) {
                entry.standing = Standing::Available;
            }
            return Next::Drop(first);
        }
        for model in &leaving {
            if let Some(loaded) = self.loaded_mut(model) {
                loaded.leaves = true;
            }
        }
        Next::Rest
    }

    fn release(&mut self) -> Next {
        self.extras.unused = 0;
        Next::Release
    }

    /// Bytes that must become free for so many more.
    fn lacking(&self, bytes: u64) -> u64 {
        (self.held() + self.extras.used + self.extras.unused + bytes).saturating_sub(self.budget)
    }

    /// Who makes room for so many bytes, in order; `None` where older wants need too many of the others.
    fn leaving(&self, want: usize, lacking: u64) -> Option<Vec<ModelId>> {
        let is_kept = |model: &ModelId| self.wants[..=want].iter().any(|want| want.models.contains(model));
        let mut candidates: Vec<(bool, u64, &ModelId)> = Vec::new();
        for (id, entry) in &self.models {
            if let Standing::Loaded(loaded) = &entry.standing
                && !is_kept(id)
            {
                candidates.push((loaded.users > 0, loaded.last_use, id));
            }
        }
        candidates.sort_unstable();
        let (mut freed, mut leaving) = (0, Vec::new());
        for (_, _, id) in candidates {
            if freed >= lacking {
                break;
            }
            freed += self.models[id].bytes;
            leaving.push(id.clone());
        }
        // LoRAs and ControlNets in use go with the jobs that use those who leave.
        (freed + self.extras.used >= lacking && !leaving.is_empty()).then_some(leaving)
    }

    /// A model that nobody uses or wants need not stay.
    fn stays_until(&self, model: &ModelId, now: Instant) -> Instant {
        match &self.models[model].standing {
            Standing::Loaded(loaded) if loaded.users > 0 || self.is_wanted(model) => loaded.stays_until,
            _ => now,
        }
    }

    fn is_wanted(&self, model: &ModelId) -> bool {
        self.wants.iter().any(|want| want.models.contains(model))
    }

    // What there is ----------------------------------------------------------------------------------------------

    /// Bytes of all weights that are there or on their way.
    pub(super) fn held(&self) -> u64 {
        let is_held = |entry: &&Entry| matches!(entry.standing, Standing::Loading | Standing::Loaded(_));
        self.models.values().filter(is_held).map(|entry| entry.bytes).sum()
    }

    /// Why a model cannot be there beside those that are, where it is to be loaded before the server answers.
    pub(super) fn refusal_at_start(&self, model: &ModelId, bytes: u64) -> Option<String> {
        let needed = self.held() + bytes;
        let loaded = self.present().into_iter().chain([model.clone()]);
        (needed > self.budget).then(|| too_large(&loaded.collect::<Vec<_>>(), needed, self.budget))
    }

    /// Models that jobs may be begun with.
    pub(super) fn present(&self) -> Vec<ModelId> {
        self.models.iter().filter(|(_, entry)| is_present(entry)).map(|(id, _)| id.clone()).collect()
    }

    /// Whether all models are there, so that nothing can be wanted.
    pub(super) fn is_complete(&self) -> bool {
        self.models.values().all(|entry| matches!(entry.standing, Standing::Loaded(_)))
    }

    /// Wanted models whose jobs fail now, and why.
    pub(super) fn failing(&self, now: Instant) -> Vec<(ModelId, String)> {
        let wanted = self.models.keys().filter(|model| self.is_wanted(model));
        wanted.filter_map(|model| Some((model.clone(), self.failure(model, now)?.to_owned()))).collect()
    }

    /// Why a model is not tried again yet.
    pub(super) fn failure(&self, model: &ModelId, now: Instant) -> Option<&str> {
        match self.models.get(model).map(|entry| &entry.standing) {
            Some(Standing::Failed { reason, until }) if *until > now => Some(reason),
            _ => None,
        }
    }

    /// Whether a job may be begun with all of these.
    pub(super) fn has_all(&self, models: &[ModelId]) -> bool {
        models.iter().all(|model| self.models.get(model).is_some_and(is_present))
    }

    /// Whether one of these is not tried again yet.
    pub(super) fn is_failing(&self, models: &[ModelId], now: Instant) -> bool {
        models.iter().any(|model| self.failure(model, now).is_some())
    }

    /// Each model's, for people.
    pub(super) fn statuses(&self) -> BTreeMap<ModelId, ModelStatus> {
        let status = |entry: &Entry| {
            let (state, reason) = match &entry.standing {
                Standing::Available => (ModelState::Available, None),
                Standing::Loading => (ModelState::Loading, None),
                Standing::Loaded(_) => (ModelState::Loaded, None),
                Standing::Failed { reason, .. } => (ModelState::Failed, Some(reason.clone())),
            };
            ModelStatus { state, bytes: entry.bytes, reason }
        };
        self.models.iter().map(|(id, entry)| (id.clone(), status(entry))).collect()
    }
}

fn is_present(entry: &Entry) -> bool {
    matches!(&entry.standing, Standing::Loaded(loaded) if !loaded.leaves)
}

fn too_large(models: &[ModelId], needed: u64, budget: u64) -> String {
    let names: Vec<String> = models.iter().map(|model| format!("`{model}`")).collect();
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    format!(
        "{} need{} {} MiB of memory for weights, a device has {} MiB (models.memory_budget_mb)",
        names.join(", "),
        if models.len() == 1 { "s" } else { "" },
        mib(needed),
        budget >> 20
    )
}

#[cfg(test)]
mod tests;
