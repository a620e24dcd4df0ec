//! Devices, their batchers and the clock.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::sync::Arc;

use darkroom::diffusion::batching::{BatchCaps, BatchKey, Batcher, Demand, SampleId, SampleMeta};
use darkroom::domain::{BatchingPolicy, ModelId};

use super::queue::{Queue, Waiting, Waits};
use super::traffic::{Family, Job, Mix, Random};

/// What a forward costs there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Device {
    /// In seconds.
    pub(super) fixed: f64,
    /// In seconds, of a size of scale 1.
    pub(super) per_row: f64,
    /// Most rows.
    pub(super) cap: u32,
}

impl Device {
    pub(super) fn seconds(self, scale: f64, rows: u32) -> f64 {
        self.fixed + self.per_row * scale * f64::from(rows)
    }
}

const HEIGHT: u32 = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// The engine's.
    Continuous,
    /// The engine's.
    Grouped,
    /// Batches of neighbours in the queue, to their end; nobody is passed over.
    FirstComeFirstServed,
    /// No batches.
    OneAtATime,
}

impl Policy {
    pub(super) const ALL: [Self; 4] = [Self::Continuous, Self::Grouped, Self::FirstComeFirstServed, Self::OneAtATime];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Continuous => "continuous",
            Self::Grouped => "grouped",
            Self::FirstComeFirstServed => "first come, first served",
            Self::OneAtATime => "one at a time",
        }
    }

    /// The two that are not the engine's need no batcher of their own: what they take runs to its end as one group.
    fn batcher(self, cap: u32) -> Batcher {
        let policy = if self == Self::Continuous { BatchingPolicy::Continuous } else { BatchingPolicy::Grouped };
        Batcher::new(policy, BatchCaps { max_rows: cap, max_row_pixels: u64::MAX })
    }
}

struct Seat {
    batcher: Batcher,
    /// Whose samples they are, and where they stand.
    samples: HashMap<SampleId, (usize, SampleMeta)>,
    next_id: u64,
    demand: Option<Demand>,
    target: Option<u32>,
    /// Aboard the forward that runs, by id.
    aboard: Vec<SampleId>,
}

/// A run, and what came of it.
pub(super) struct World {
    pub(super) jobs: Vec<Job>,
    pub(super) forwards: u64,
    pub(super) rows: u64,
    device: Device,
    policy: Policy,
    keys: Vec<Arc<BatchKey>>,
    scales: Vec<f64>,
    queue: Box<dyn Waits>,
    seats: Vec<Seat>,
    idle: BTreeSet<usize>,
    /// Ends of forwards: nanoseconds, seat.
    ends: BinaryHeap<Reverse<(u64, usize)>>,
    random: Random,
}

impl World {
    /// Every job from its coming to its end.
    pub(super) fn run(family: &Family, policy: Policy, jobs: Vec<Job>) -> Self {
        let devices = (family.device, family.devices, &family.mix);
        Self::through(devices, policy, jobs, Box::new(Queue::default()))
    }

    /// The same, waiting in this queue.
    pub(super) fn through(
        (device, devices, mix): (Device, usize, &Mix),
        policy: Policy,
        jobs: Vec<Job>,
        queue: Box<dyn Waits>,
    ) -> Self {
        let key = |scale: &f64| {
            let width = width(*scale);
            let latent_shape = (4, HEIGHT as usize / 8, width as usize / 8);
            Arc::new(BatchKey {
                latent_shape,
                tokens: [77, 77],
                width,
                height: HEIGHT,
                model: ModelId::new("m"),
                adapters: "".into(),
            })
        };
        let keys = mix.scales.iter().map(key).collect();
        let seat = |_| Seat {
            batcher: policy.batcher(device.cap),
            samples: HashMap::new(),
            next_id: 0,
            demand: None,
            target: None,
            aboard: Vec::new(),
        };
        let mut world = Self {
            jobs,
            forwards: 0,
            rows: 0,
            device,
            policy,
            keys,
            scales: mix.scales.clone(),
            queue,
            seats: (0..devices).map(seat).collect(),
            idle: (0..devices).collect(),
            ends: BinaryHeap::new(),
            random: Random::new(7),
        };
        world.play();
        world
    }

    /// Seconds of a job that has an idle device for itself.
    pub(super) fn alone(&self, job: &Job) -> f64 {
        self.device.seconds(self.scales[job.size], 1) * f64::from(job.steps)
    }

    fn play(&mut self) {
        let mut coming = 0;
        loop {
            let end = self.ends.peek().map(|Reverse((nanos, _))| *nanos as f64 / 1e9);
            let comes = self.jobs.get(coming).map(|job| job.comes);
            match (comes, end) {
                (None, None) => return,
                (Some(comes), end) if end.is_none_or(|end| comes <= end) => {
                    // All that come at one moment are there before anybody looks.
                    while let Some(job) = self.jobs.get(coming).filter(|job| job.comes <= comes) {
                        self.queue.at(job.comes);
                        self.queue.push(job, coming);
                        coming += 1;
                    }
                    while self.queue.len() > 0
                        && let Some(seat) = self.idle.pop_first()
                    {
                        self.begin(seat, comes);
                    }
                }
                (_, Some(end)) => {
                    if let Some(Reverse((_, seat))) = self.ends.pop() {
                        self.advance(seat, end);
                        self.begin(seat, end);
                    }
                }
                (Some(_), None) => {}
            }
        }
    }

    /// What was aboard is a step further.
    fn advance(&mut self, seat: usize, now: f64) {
        let Seat { batcher, samples, aboard, .. } = &mut self.seats[seat];
        for id in aboard.drain(..) {
            let Some((job, sample)) = samples.get_mut(&id) else { continue };
            sample.left -= 1;
            if sample.left > 0 {
                batcher.advanced(sample);
            } else {
                self.jobs[*job].ends = now;
                self.queue.ended(*job);
                samples.remove(&id);
                batcher.remove(id);
            }
        }
    }

    /// Takes what it can use, and the next forward, if any.
    fn begin(&mut self, seat: usize, now: f64) {
        self.queue.at(now);
        let taken = self.claim(seat);
        let devices = self.seats.len();
        let Seat { batcher, samples, next_id, .. } = &mut self.seats[seat];
        for (place, job) in taken {
            let Job { size, steps, .. } = self.jobs[job];
            let (id, key) = (SampleId(*next_id), self.keys[size].clone());
            let meta = SampleMeta { id, key, steps, left: steps, rows: 1, rows_now: 1, place };
            batcher.add(meta.clone());
            samples.insert(id, (job, meta));
            *next_id += 1;
        }
        batcher.set_waiting((self.queue.len() / devices) as u32);
        let Some(batch) = batcher.next_batch() else {
            self.idle.insert(seat);
            return;
        };
        let rows = batch.rows.len() as u32;
        let size = self.keys.iter().position(|key| *key == batch.key).unwrap_or(0);
        // A real clock varies by some percent.
        let seconds = self.device.seconds(self.scales[size], rows) * (0.98 + 0.04 * self.random.unit());
        self.queue.measured(f64::from(rows * width(self.scales[size]) * HEIGHT) / seconds * devices as f64);
        let seat_now = &mut self.seats[seat];
        seat_now.demand = seat_now.batcher.demand();
        seat_now.target = seat_now.demand.as_ref().map(|demand| demand.target);
        seat_now.batcher.observe(&batch.key, rows, seconds);
        seat_now.aboard = batch.samples().collect();
        self.ends.push(Reverse((((now + seconds) * 1e9) as u64, seat)));
        self.forwards += 1;
        self.rows += u64::from(rows);
    }

    /// As `dispatch::workers` claims.
    fn claim(&mut self, seat: usize) -> Vec<Waiting> {
        let cap = self.device.cap as usize;
        let Seat { samples, demand, target, .. } = &mut self.seats[seat];
        if samples.is_empty() {
            return match self.policy {
                Policy::Continuous => self.queue.group(target.map_or(cap, |target| (target as usize).clamp(1, cap))),
                Policy::Grouped => self.queue.group(cap),
                Policy::FirstComeFirstServed => self.queue.in_order(cap),
                Policy::OneAtATime => self.queue.in_order(1),
            };
        }
        let Some(demand) = demand.take() else { return Vec::new() };
        if !self.idle.is_empty() || self.queue.len() == 0 {
            return Vec::new();
        }
        let size = self.keys.iter().position(|known| *known == demand.key).unwrap_or(0);
        let others = self.queue.other(size, demand.before, demand.target as usize);
        match demand.displaces {
            _ if !others.is_empty() => others,
            None => self.queue.fill(size, demand.steps, None, demand.rows as usize),
            displaces => self.queue.fill(size, demand.steps, displaces, demand.target as usize),
        }
    }
}

/// Of a size, in pixels.
pub(super) fn width(scale: f64) -> u32 {
    (512.0 * scale) as u32
}
