//! Who comes when, and asks for what.

use super::world::Device;

/// What is simulated at several loads.
#[derive(Clone, Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) device: Device,
    pub(super) mix: Mix,
    pub(super) arrivals: Arrivals,
    /// Of what the devices can do with full batches of one kind.
    pub(super) loads: Vec<f64>,
    pub(super) devices: usize,
}

/// What jobs ask for, each of a kind as often.
#[derive(Clone, Debug)]
pub(super) struct Mix {
    /// Pixels of each size, the first being 1: so much more a row of it costs.
    pub(super) scales: Vec<f64>,
    pub(super) steps: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Arrivals {
    /// Each on its own.
    Poisson,
    /// From `least` to `most` at a moment, each number as often; the moments a Poisson process.
    Bursts { least: u64, most: u64 },
    /// A Poisson process whose rate is three times the average for 10 s on average, and half of it for 40 s.
    Waves,
}

const HIGH_WATER: f64 = 3.0;
const LOW_WATER: f64 = 0.5;
const HIGH_SECONDS: f64 = 10.0;
const LOW_SECONDS: f64 = 40.0;

/// One row from its coming to its end, in seconds of the virtual clock.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) comes: f64,
    /// Whose it is, by number.
    pub(super) owner: usize,
    /// Its place in the queue.
    pub(super) stands: f64,
    pub(super) size: usize,
    pub(super) steps: u32,
    pub(super) ends: f64,
}

/// SplitMix64 (Steele, Lea and Flood 2014, figure 15).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below 1.
    pub(super) fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, end: usize) -> usize {
        (self.unit() * end as f64) as usize
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -(1.0 - self.unit()).ln() * mean
    }
}

impl Mix {
    /// Seconds of a whole job that shares each of its forwards with `rows - 1` of its kind, averaged over the kinds.
    fn seconds(&self, device: Device, rows: u32) -> f64 {
        let steps = self.steps.iter().sum::<u32>() as f64 / self.steps.len() as f64;
        let forward = |scale: &f64| device.seconds(*scale, rows) / f64::from(rows);
        steps * self.scales.iter().map(forward).sum::<f64>() / self.scales.len() as f64
    }
}

/// Moments at which jobs come, and how many.
struct Clock {
    arrivals: Arrivals,
    /// Jobs a second, on average.
    rate: f64,
    now: f64,
    is_high: bool,
    /// Of the wave.
    turns: f64,
}

impl Clock {
    fn next(&mut self, random: &mut Random) -> u64 {
        match self.arrivals {
            Arrivals::Poisson => {
                self.now += random.exponential(1.0 / self.rate);
                1
            }
            Arrivals::Bursts { least, most } => {
                let together = least + random.below((most - least + 1) as usize) as u64;
                self.now += random.exponential((least + most) as f64 / 2.0 / self.rate);
                together
            }
            Arrivals::Waves => loop {
                let water = if self.is_high { HIGH_WATER } else { LOW_WATER };
                let comes = self.now + random.exponential(1.0 / (water * self.rate));
                if comes <= self.turns {
                    self.now = comes;
                    return 1;
                }
                // Who would come after the turn is forgotten: the process has no memory.
                self.now = self.turns;
                self.is_high = !self.is_high;
                self.turns += random.exponential(if self.is_high { HIGH_SECONDS } else { LOW_SECONDS });
            },
        }
    }
}

/// One owner's jobs of size 0 for so many seconds, at this load of one device.
pub(super) fn of_owner(owner: usize, (device, mix): (Device, &Mix), load: f64, seconds: f64, seed: u64) -> Vec<Job> {
    let mut random = Random::new(seed);
    let rate = load / mix.seconds(device, device.cap);
    let (mut now, mut jobs) = (random.exponential(1.0 / rate), Vec::new());
    while now < seconds {
        let steps = mix.steps[random.below(mix.steps.len())];
        jobs.push(Job { comes: now, owner, stands: now, size: 0, steps, ends: f64::NAN });
        now += random.exponential(1.0 / rate);
    }
    jobs
}

/// The same jobs for every policy.
pub(super) fn jobs(family: &Family, load: f64, count: usize, seed: u64) -> Vec<Job> {
    let mut random = Random::new(seed);
    let rate = load * family.devices as f64 / family.mix.seconds(family.device, family.device.cap);
    let mut clock = Clock { arrivals: family.arrivals, rate, now: 0.0, is_high: true, turns: 0.0 };
    let mut jobs = Vec::with_capacity(count);
    while jobs.len() < count {
        for _ in 0..clock.next(&mut random) {
            let size = random.below(family.mix.scales.len());
            let steps = family.mix.steps[random.below(family.mix.steps.len())];
            jobs.push(Job { comes: clock.now, owner: 0, stands: clock.now, size, steps, ends: f64::NAN });
        }
    }
    jobs.truncate(count);
    jobs
}
