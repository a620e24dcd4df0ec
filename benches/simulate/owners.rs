//! Owners who ask for more than the device can do, through the job store itself: with shares, and in one open queue.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use darkroom::dispatch::jobs::{
    ClaimRequest, ClaimedJob, Inserted, JobStore, Lease, MemoryStore, NewJob, Outcome, Select, StoreOptions,
};
use darkroom::domain::{
    GenerationRequest, JobId, ManualClock, ModelId, OwnerId, QueuePlace, SizeKey, Timestamp, WorkerId,
};
use futures::FutureExt;

use super::families::SHARED;
use super::jobs::{MODEL, new_job, request};
use super::queue::{Waiting, Waits};
use super::traffic::{self, Job, Mix};
use super::world::{Policy, World, width};

/// Owners' loads of the device, 1 being what it can do in full batches, and their weights.
struct Scene {
    name: &'static str,
    owners: &'static [(f64, u32)],
}

const SCENES: [Scene; 3] = [
    Scene { name: "owners: one floods, three ask for little", owners: &[(1.5, 1), (0.1, 1), (0.1, 1), (0.1, 1)] },
    Scene { name: "owners: four want all, weights 1 1 2 4", owners: &[(1.0, 1), (1.0, 1), (1.0, 2), (1.0, 4)] },
    Scene { name: "owners: one of weight 4 asks for little", owners: &[(1.5, 1), (1.5, 1), (0.2, 4)] },
];
/// For so long jobs come; who was given what is looked at when they end to come.
const SECONDS: f64 = 600.0;

const HEADER: &str = "| order | owner | asks for | weight | given | mean s | p99 s |\n\
                      | --- | ---: | ---: | ---: | ---: | ---: | ---: |";

pub(super) fn run(only: &str, seeds: u64) {
    for scene in SCENES.iter().filter(|scene| scene.name.contains(only)) {
        println!("\n### {}\n\n{HEADER}", scene.name);
        for (order, is_shared) in [("open queue", false), ("shares", true)] {
            let runs: Vec<Vec<Given>> = (1..=seeds).map(|seed| play(scene, is_shared, seed)).collect();
            table(order, scene, &runs);
        }
    }
}

/// What came of one owner's jobs.
#[derive(Clone, Copy, Debug)]
struct Given {
    /// Of all steps that were done while jobs came, in jobs that ended by then.
    part: f64,
    /// From a job's coming to its end, of all jobs.
    mean: f64,
    p99: f64,
}

fn play(scene: &Scene, is_shared: bool, seed: u64) -> Vec<Given> {
    let mix = Mix { scales: vec![1.0], steps: vec![20, 30, 50] };
    let of_owner = |(owner, (load, _)): (usize, &(f64, u32))| {
        traffic::of_owner(owner, (SHARED, &mix), *load, SECONDS, seed * 100 + owner as u64)
    };
    let mut jobs: Vec<Job> = scene.owners.iter().enumerate().flat_map(of_owner).collect();
    jobs.sort_by(|a, b| a.comes.total_cmp(&b.comes));
    let weights = scene.owners.iter().enumerate().map(|(owner, (_, weight))| (name(owner), *weight));
    let weights = if is_shared { weights.collect() } else { BTreeMap::new() };
    let queue = Box::new(Store::new(weights));
    let world = World::through((SHARED, 1, &mix), Policy::Continuous, jobs, queue);
    let done = |job: &&Job| job.ends <= SECONDS;
    let all: u32 = world.jobs.iter().filter(done).map(|job| job.steps).sum();
    let given = |owner: usize| {
        let own = || world.jobs.iter().filter(move |job| job.owner == owner);
        let mut took: Vec<f64> = own().map(|job| job.ends - job.comes).collect();
        took.sort_unstable_by(f64::total_cmp);
        let part = f64::from(own().filter(done).map(|job| job.steps).sum::<u32>()) / f64::from(all);
        let p99 = took[((took.len() as f64 * 0.99).ceil() as usize).clamp(1, took.len()) - 1];
        Given { part, mean: took.iter().sum::<f64>() / took.len() as f64, p99 }
    };
    (0..scene.owners.len()).map(given).collect()
}

fn table(order: &str, scene: &Scene, runs: &[Vec<Given>]) {
    let average = |owner: usize, number: fn(&Given) -> f64| {
        runs.iter().map(|run| number(&run[owner])).sum::<f64>() / runs.len() as f64
    };
    let parts: Vec<f64> = (0..scene.owners.len()).map(|owner| average(owner, |given| given.part)).collect();
    for (owner, (load, weight)) in scene.owners.iter().enumerate() {
        let (part, mean, p99) = (parts[owner], average(owner, |given| given.mean), average(owner, |given| given.p99));
        let name = name(owner);
        println!(
            "| {order} | {name} | {:.0} % | {weight} | {:.1} % | {mean:.1} | {p99:.1} |",
            load * 100.0,
            part * 100.0
        );
    }
    println!("| {order} | *Jain's index* | | | {:.3} | | |", jain(scene, &parts));
}

/// Jain, Chiu and Hawe, 1984: 1 where what everybody is given is in the same proportion to what is due to them, 1/n where one
/// has all. Due is the weighted max-min fair share: nobody more than they ask for, what is left by weight.
fn jain(scene: &Scene, parts: &[f64]) -> f64 {
    let due = due(scene);
    let ratios: Vec<f64> = parts.iter().zip(&due).map(|(part, due)| part / due).collect();
    let (sum, squares) = (ratios.iter().sum::<f64>(), ratios.iter().map(|ratio| ratio * ratio).sum::<f64>());
    sum * sum / (ratios.len() as f64 * squares)
}

fn due(scene: &Scene) -> Vec<f64> {
    let mut due = vec![0.0; scene.owners.len()];
    let mut open: Vec<usize> = (0..scene.owners.len()).collect();
    let mut left = 1.0;
    loop {
        let weights: f64 = open.iter().map(|owner| f64::from(scene.owners[*owner].1)).sum();
        let fair = |owner: &usize| left * f64::from(scene.owners[*owner].1) / weights;
        let (content, more): (Vec<usize>, Vec<usize>) =
            open.iter().partition(|owner| scene.owners[**owner].0 <= fair(owner));
        if content.is_empty() {
            open.iter().for_each(|owner| due[*owner] = fair(owner));
            return due;
        }
        content.iter().for_each(|owner| due[*owner] = scene.owners[*owner].0);
        left -= content.iter().map(|owner| scene.owners[*owner].0).sum::<f64>();
        open = more;
    }
}

fn name(owner: usize) -> OwnerId {
    OwnerId::new(format!("owner-{owner}"))
}

/// The job store, as a queue of the virtual world.
struct Store {
    store: MemoryStore,
    clock: Arc<ManualClock>,
    now_ms: i64,
    speed: Option<f64>,
    requests: HashMap<u32, GenerationRequest>,
    numbers: HashMap<JobId, usize>,
    leases: HashMap<usize, Lease>,
}

impl Store {
    fn new(weights: BTreeMap<OwnerId, u32>) -> Self {
        let clock = Arc::new(ManualClock::at(Timestamp::from_unix_ms(0)));
        let options = StoreOptions { max_queued: u64::MAX, max_attempts: 1, retention_ms: 1, weights };
        let store = MemoryStore::new(options, clock.clone());
        let (numbers, leases, requests) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { store, clock, now_ms: 0, speed: None, requests, numbers, leases }
    }

    fn claim(&mut self, select: Select, most: usize) -> Vec<Waiting> {
        let request = ClaimRequest {
            worker: WorkerId::new("w"),
            models: vec![ModelId::new(MODEL)],
            select,
            is_to_draw: true,
            max_rows: most as u32,
            max_row_pixels: u64::MAX,
            lease_ms: u64::from(u32::MAX),
        };
        let claimed = at_once(self.store.claim(request)).expect("the store answers");
        let taken = claimed.into_iter().map(|ClaimedJob { job, lease, place }| {
            let number = self.numbers[&job.id];
            self.leases.insert(number, lease);
            (place, number)
        });
        taken.collect()
    }
}

/// The memory store never waits.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("it is there at once")
}

fn of_steps(steps: u32) -> GenerationRequest {
    request(|draft| {
        let SizeKey { width, height, .. } = size();
        (draft.width, draft.height) = (Some(i64::from(width)), Some(i64::from(height)));
        draft.steps = Some(i64::from(steps));
    })
}

fn size() -> SizeKey {
    SizeKey { model: ModelId::new(MODEL), width: width(1.0), height: 512 }
}

impl Waits for Store {
    fn len(&self) -> usize {
        self.numbers.len() - self.leases.len()
    }

    fn push(&mut self, job: &Job, number: usize) {
        let request = self.requests.entry(job.steps).or_insert_with(|| of_steps(job.steps)).clone();
        let new = NewJob { owner: Some(name(job.owner)), speed: self.speed, ..new_job(request) };
        match at_once(self.store.insert(new)) {
            Ok(Inserted::New(job)) => drop(self.numbers.insert(job.id, number)),
            other => panic!("not accepted: {other:?}"),
        }
    }

    fn group(&mut self, most: usize) -> Vec<Waiting> {
        self.claim(Select::Group, most)
    }

    fn other(&mut self, _except: usize, before: Option<QueuePlace>, most: usize) -> Vec<Waiting> {
        self.claim(Select::Other { except: size(), before }, most)
    }

    fn fill(&mut self, _size: usize, steps: u32, before: Option<QueuePlace>, most: usize) -> Vec<Waiting> {
        self.claim(Select::Fill { size: size(), steps, before }, most)
    }

    fn in_order(&mut self, most: usize) -> Vec<Waiting> {
        self.claim(Select::Group, most)
    }

    fn at(&mut self, now: f64) {
        let now_ms = (now * 1e3) as i64;
        self.clock.advance_ms(now_ms - self.now_ms);
        self.now_ms = now_ms;
    }

    /// As the hub: a twentieth of each new measurement.
    fn measured(&mut self, speed: f64) {
        self.speed = Some(self.speed.map_or(speed, |known| known + 0.05 * (speed - known)));
    }

    fn ended(&mut self, number: usize) {
        let Some(lease) = self.leases.remove(&number) else { return };
        at_once(self.store.finish(&lease, Outcome::Cancelled)).expect("the lease is held");
        at_once(self.store.remove(lease.job_id)).expect("it has ended");
        self.numbers.remove(&lease.job_id);
    }
}
