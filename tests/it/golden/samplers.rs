//! Every sampler's levels and whole trajectories against diffusers. `tests/fixtures/samplers/make_samplers.py` made the
//! reference and says how.

use std::collections::BTreeMap;

use darkroom::diffusion::samplers::{Mix, PlanRequest, PlanStep, SamplingPlan, TrainingSchedule};
use serde::Deserialize;
use serde_json::Value;

/// Levels, coefficients and latents against the reference's code in double precision, relative to the largest latent of
/// the trajectory (at least 1). Measured over the 3,474 cases of `make_samplers.py --many`: 9e-11 at worst.
const DOUBLE: f64 = 1e-9;

/// Last latents against the reference as it runs, in single precision, relative likewise. What is measured here is its
/// rounding: over those 3,474 cases 1.1e-5 at worst (DDPM in 999 steps), whether the plan is applied in double precision
/// or, as an engine does, in single.
const SINGLE: f64 = 5e-5;

/// The same of samplers whose reference takes differences of nearly equal numbers (logarithms of levels in DEIS, slopes over
/// sigma in Heun's rule, shares of signal in PNDM). Their worst cases begin at sigma 20,000, where the cosine schedule ends:
/// DEIS 1.1e-3, PNDM 3.6e-4, Heun 1.1e-4; without that schedule they are within `SINGLE` but for DEIS in 600 steps, 1.2e-4.
const SINGLE_OF_DIFFERENCES: f64 = 2e-3;

/// Our table with zero terminal SNR against the one of the machine that made the fixture, relative: PyTorch's square root
/// there is off by one unit in the last place, and small differences of square roots carry it on.
const ZERO_SNR_TABLE: f64 = 2e-5;

#[derive(Deserialize)]
struct Fixture {
    tables: Vec<Table>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Table {
    config: Value,
    fnv1a: String,
    first: Vec<u32>,
    last: Vec<u32>,
    native_sample: BTreeMap<usize, u32>,
}

#[derive(Deserialize)]
struct Case {
    kind: String,
    config: Value,
    schedule: String,
    steps: u32,
    eta: f64,
    timesteps: Vec<f64>,
    sigmas: Option<Vec<f64>>,
    init_noise_sigma: f64,
    states_from: usize,
    states: Vec<[f64; WIDTH]>,
    /// Absent where the reference's rounding makes it no number.
    native: Option<[f64; WIDTH]>,
    /// Steps left out at the beginning.
    #[serde(default)]
    skip: u32,
    /// What `add_noise` weighs clean latents and noise with, before each evaluation.
    #[serde(default)]
    noised: Vec<[f64; 2]>,
}

const WIDTH: usize = 3;

fn fixture(name: &str) -> Fixture {
    let path = format!("{}/tests/fixtures/samplers/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn tables_of_noise_levels_bit_for_bit() {
    for table in fixture("samplers.json").tables {
        let name = table.config.to_string();
        let training = TrainingSchedule::from_json(&name).unwrap();
        let bits: Vec<u32> = training.alphas_cumprod().iter().map(|alpha| alpha.to_bits()).collect();
        assert_eq!(bits[..table.first.len()], table.first, "{name}: first levels");
        assert_eq!(bits[bits.len() - table.last.len()..], table.last, "{name}: last levels");
        assert_eq!(format!("{:016x}", super::noise::fnv1a(&bits)), table.fnv1a, "{name}: somewhere in between");
        for (index, native) in table.native_sample {
            let (ours, native) = (f64::from(training.alphas_cumprod()[index]), f64::from(f32::from_bits(native)));
            assert!(
                (ours - native).abs() <= ZERO_SNR_TABLE * native,
                "{name}: level {index} is {ours}, there {native}"
            );
        }
    }
}

#[test]
fn every_sampler_walks_the_reference_trajectory() {
    let mut worst = Worst::default();
    let fixture = fixture("samplers.json");
    for case in &fixture.cases {
        case.check(&mut worst);
    }
    worst.print();
    assert!(fixture.cases.len() > 200, "only {} cases: is the fixture whole?", fixture.cases.len());
}

/// Image to image: the first steps are left out, and the run begins with noised latents and nothing remembered.
#[test]
fn every_sampler_begins_late_as_the_reference_does() {
    let mut worst = Worst::default();
    let fixture = fixture("late.json");
    for case in &fixture.cases {
        assert!(case.skip > 0);
        case.check(&mut worst);
    }
    worst.print();
    assert!(fixture.cases.len() > 100, "only {} cases: is the fixture whole?", fixture.cases.len());
}

/// The largest deviations met, by sampler.
#[derive(Debug, Default)]
struct Worst(BTreeMap<String, Deviations>);

/// Of one sampler, each with the case that had it.
#[derive(Debug, Default)]
struct Deviations {
    cases: usize,
    double: (f64, String),
    single: (f64, String),
    applied: (f64, String),
}

impl Worst {
    /// A line a sampler, which `tests/parity/report.py` reads, and the cases behind it.
    fn print(&self) {
        for (kind, off) in &self.0 {
            eprintln!(
                "{kind}: {} cases, double {:e}, single {:e}",
                off.cases,
                off.double.0,
                off.single.0.max(off.applied.0)
            );
            eprintln!("  double: {}\n  single: {}\n  applied: {}", off.double.1, off.single.1, off.applied.1);
        }
    }
}

impl Case {
    fn check(&self, worst: &mut Worst) {
        let name = format!("{} {} {} steps, eta {}, {}", self.kind, self.schedule, self.steps, self.eta, self.config);
        let training = TrainingSchedule::from_json(&self.config.to_string()).unwrap();
        let (kind, schedule) = (self.kind.parse().unwrap(), self.schedule.parse().unwrap());
        let request = PlanRequest { eta: self.eta, skip: self.skip, ..PlanRequest::plain(kind, schedule, self.steps) };
        let plan = SamplingPlan::build(&training, &request).unwrap_or_else(|error| panic!("{name}: {error}"));

        assert_eq!(plan.steps.len(), self.timesteps.len(), "{name}: steps");
        let mut double = 0.0_f64;
        let mut near = |ours: f64, theirs: f64, scale: f64, what: String| {
            let off = (ours - theirs).abs() / scale;
            assert!(off <= DOUBLE, "{name}: {what} is {ours}, there {theirs} (off by {off:e})");
            double = double.max(off);
        };
        near(plan.init_noise_sigma, self.init_noise_sigma, self.init_noise_sigma, "init_noise_sigma".to_owned());
        for (index, step) in plan.steps.iter().enumerate() {
            let theirs = self.timesteps[index];
            near(step.timestep, theirs, theirs.max(1.0), format!("timestep {index}"));
            if let Some(sigmas) = &self.sigmas {
                near(step.sigma, sigmas[index], sigmas[index], format!("sigma {index}"));
            }
            if let Some([signal, noise]) = self.noised.get(index) {
                near(step.noised.signal, *signal, 1.0, format!("signal of noised latents {index}"));
                near(step.noised.noise, *noise, noise.max(1.0), format!("noise of noised latents {index}"));
            }
        }
        let states = walk(&plan, self.skip, IN_DOUBLE);
        let scale = |values: &[f64; WIDTH]| values.iter().fold(1.0_f64, |most, value| most.max(value.abs()));
        let mut largest = scale(&first_latents(&plan, self.skip));
        for (index, theirs) in self.states.iter().enumerate() {
            let index = index + self.states_from;
            largest = largest.max(scale(theirs));
            for (j, theirs) in theirs.iter().enumerate() {
                near(states[index][j], *theirs, largest, format!("latent {j} after step {index}"));
            }
        }
        let worst = worst.0.entry(self.kind.clone()).or_default();
        worst.cases += 1;
        if double > worst.double.0 {
            worst.double = (double, name.clone());
        }
        let Some(native) = self.native else { return };
        let last = states[states.len() - 1];
        let single_precision = match self.kind.as_str() {
            "deis" | "heun" | "pndm" => SINGLE_OF_DIFFERENCES,
            _ => SINGLE,
        };
        let single = (0..WIDTH).map(|j| (last[j] - native[j]).abs() / largest).fold(0.0, f64::max);
        assert!(single <= single_precision, "{name}: {last:?}, there {native:?} in single precision ({single:e})");
        if single > worst.single.0 {
            worst.single = (single, name.clone());
        }
        let rounded = walk(&plan, self.skip, IN_SINGLE)[states.len() - 1];
        let applied = (0..WIDTH).map(|j| (rounded[j] - native[j]).abs() / largest).fold(0.0, f64::max);
        assert!(
            applied <= single_precision,
            "{name}: applied in single precision {rounded:?}, there {native:?} ({applied:e})"
        );
        if applied > worst.applied.0 {
            worst.applied = (applied, name);
        }
    }
}

/// Does the plan's arithmetic in one precision or the other; numbers come and go as `f64`.
type Rounding = fn(f64) -> f64;

const IN_DOUBLE: Rounding = |value| value;
/// As an engine does it: coefficients, latents and every product and sum in single precision.
const IN_SINGLE: Rounding = |value| f64::from(value as f32);

/// The latents after every step of the stand-in model of make_samplers.py, by the formula of `samplers`.
fn walk(plan: &SamplingPlan, skip: u32, round: Rounding) -> Vec<[f64; WIDTH]> {
    let mut x = first_latents(plan, skip).map(round);
    let (mut held, mut drawn) = ([0.0; WIDTH], [0.0; WIDTH]);
    let mut memory: Vec<[f64; WIDTH]> = Vec::new();
    let mut states = Vec::new();
    // f32 products and sums are those of f64, rounded.
    let times = |a: f64, b: f64| round(round(a) * round(b));
    for (index, step) in plan.steps.iter().enumerate() {
        let output = model(&x, step).map(round);
        let denoised: [f64; WIDTH] = std::array::from_fn(|j| {
            let raw = round(times(step.denoised_from.sample, x[j]) + times(step.denoised_from.output, output[j]));
            step.clip_denoised.map_or(raw, |most| raw.clamp(-most, most))
        });
        let mixed = |mix: &Mix| -> [f64; WIDTH] {
            std::array::from_fn(|j| {
                let now = [
                    times(mix.sample, x[j]),
                    times(mix.held, held[j]),
                    times(mix.denoised, denoised[j]),
                    times(mix.output, output[j]),
                    times(mix.noise, noise(index, j)),
                    times(mix.earlier_noise, drawn[j]),
                ];
                let older = mix.remembered.iter().zip(&memory).map(|(weight, tensor)| times(*weight, tensor[j]));
                now.into_iter().chain(older).fold(0.0, |sum, part| round(sum + part))
            })
        };
        let next = mixed(&step.next);
        let (hold, remember) = (step.hold.as_ref().map(&mixed), step.remember.as_ref().map(&mixed));
        x = next;
        held = hold.unwrap_or(held);
        if step.draws_noise() {
            drawn = std::array::from_fn(|j| noise(index, j));
        }
        memory.splice(0..0, remember);
        memory.truncate(plan.memory_len());
        states.push(x);
    }
    states
}

fn first_latents(plan: &SamplingPlan, skip: u32) -> [f64; WIDTH] {
    /// The noise of a step that nobody takes.
    const FIRST_NOISE: usize = 999;

    let values = [0.7, -1.3, 0.2];
    if skip == 0 {
        return values.map(|value| value * plan.init_noise_sigma);
    }
    let noised = plan.steps[0].noised;
    std::array::from_fn(|j| noised.signal * values[j] + noised.noise * noise(FIRST_NOISE, j))
}

fn model(x: &[f64; WIDTH], step: &PlanStep) -> [f64; WIDTH] {
    const SLOPE: [f64; WIDTH] = [0.5, -0.25, 0.8];
    const OFFSET: [f64; WIDTH] = [0.3, -0.2, 0.1];
    std::array::from_fn(|j| SLOPE[j] * step.input_scale * x[j] + OFFSET[j] * (0.01 * step.timestep).cos())
}

fn noise(step: usize, j: usize) -> f64 {
    1.3 * (12.9898 * (step + 1) as f64 + 78.233 * (j + 1) as f64).sin()
}
