//! Prompts lately encoded, so that the same words are not read twice.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::{Pipeline, Prompt, PromptEmbeds, PromptSide, Result};
use crate::domain::PromptSyntax;

/// Embeddings by exact text and all else that they depend on, the least recently used dropped under a bound. Shared by all
/// devices of a process; each entry stays on the device of its pipeline.
///
/// A pipeline is one loading of a model, with or without LoRAs: what was kept of another one, of other files, is never found.
pub struct PromptCache {
    /// In bytes.
    capacity: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: HashMap<Key, Entry>,
    /// By when they were used last.
    uses: BTreeMap<u64, Key>,
    used: u64,
    bytes: usize,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    /// Its address: no other pipeline has it for as long as the entry keeps its place.
    pipeline: usize,
    text: Arc<str>,
    side: PromptSide,
    syntax: PromptSyntax,
    clip_skip: u32,
}

struct Entry {
    /// Keeps the pipeline's address, not the pipeline.
    place: Weak<dyn Pipeline>,
    embeds: PromptEmbeds,
    bytes: usize,
    used: u64,
}

/// How often prompts were found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PromptLookups {
    /// Found.
    pub hits: u64,
    /// Encoded, and kept.
    pub misses: u64,
}

impl PromptCache {
    /// An empty one that holds so many bytes.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, state: Mutex::default() }
    }

    /// The embeddings of a prompt, found or made; counted in `lookups`. Two that miss the same at once both make it: of equal
    /// bytes.
    ///
    /// # Errors
    /// The pipeline's, of a prompt that it has to encode.
    pub fn encode(
        &self,
        pipeline: &Arc<dyn Pipeline>,
        prompt: &Prompt<'_>,
        lookups: &mut PromptLookups,
    ) -> Result<PromptEmbeds> {
        let key = Key {
            pipeline: Arc::as_ptr(pipeline).cast::<()>() as usize,
            text: prompt.text.into(),
            side: prompt.side,
            syntax: prompt.syntax,
            clip_skip: prompt.clip_skip,
        };
        if let Some(found) = self.state().find(&key) {
            lookups.hits += 1;
            return Ok(found);
        }
        lookups.misses += 1;
        // Without the lock: others find theirs meanwhile.
        let embeds = pipeline.encode_prompt(prompt)?;
        let bytes = bytes(&embeds, prompt);
        let entry = Entry { place: Arc::downgrade(pipeline), embeds: embeds.clone(), bytes, used: 0 };
        self.state().keep(key, entry, self.capacity);
        Ok(embeds)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic is done while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for PromptCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PromptCache").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

impl State {
    fn find(&mut self, key: &Key) -> Option<PromptEmbeds> {
        let entry = self.entries.get_mut(key)?;
        self.uses.remove(&entry.used);
        self.used += 1;
        entry.used = self.used;
        self.uses.insert(self.used, key.clone());
        Some(entry.embeds.clone())
    }

    /// Drops what belongs to pipelines that are gone, then the least recently used, until it fits; what never fits is not kept.
    fn keep(&mut self, key: Key, mut entry: Entry, capacity: usize) {
        let gone = |(_, entry): &(&Key, &Entry)| entry.place.strong_count() == 0;
        let gone: Vec<Key> = self.entries.iter().filter(gone).map(|(key, _)| key.clone()).collect();
        gone.iter().for_each(|key| self.drop_entry(key));
        if entry.bytes > capacity {
            return;
        }
        self.drop_entry(&key);
        while self.bytes + entry.bytes > capacity
            && let Some((_, oldest)) = self.uses.first_key_value()
        {
            let oldest = oldest.clone();
            self.drop_entry(&oldest);
        }
        self.used += 1;
        entry.used = self.used;
        self.bytes += entry.bytes;
        self.uses.insert(self.used, key.clone());
        self.entries.insert(key, entry);
    }

    fn drop_entry(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.uses.remove(&entry.used);
            self.bytes -= entry.bytes;
        }
    }
}

/// What an entry takes: its tensors, and its text with what surrounds it.
fn bytes(embeds: &PromptEmbeds, prompt: &Prompt<'_>) -> usize {
    let tensors = [Some(&embeds.hidden_states), embeds.pooled.as_ref()].into_iter().flatten();
    let held: usize = tensors.map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes()).sum();
    let warnings: usize = embeds.warnings.iter().map(String::len).sum();
    held + warnings + prompt.text.len() + size_of::<Key>() * 2 + size_of::<Entry>()
}
