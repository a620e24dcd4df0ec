//! The invariance property: whoever joins, leaves, is cancelled or fails, a picture's bytes are those it has alone.
//!
//! A fixed number of random schedules through the real step loop, on the CPU in f32. `INVARIANCE_SCHEDULES=2000` runs
//! more on each tiny checkpoint, `INVARIANCE_SCHEDULES_PINHOLE=200` on the built-in model, as `.ci/run` does: some three minutes and
//! one and a half of processor time, of which `cargo test` alone spends a third and a tenth.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use darkroom::diffusion::batching::BatchCaps;
use darkroom::diffusion::engine::{Drawing, EngineOptions, Fault, FaultHook, FaultPoint};
use darkroom::diffusion::pipelines::{self, ModelSource, Pipeline};
use darkroom::domain::{
    BatchingPolicy, Cost, DeviceSpec, HiresDraft, ImageInputsDraft, JobId, LoraDraft, ModelInfo, RefinerDraft,
    RequestDraft, SizeConditioningDraft,
};
use darkroom::images::{GrayImage, RgbImage};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use super::stepper::Stepper;
use crate::support::count_asked_for;
use crate::support::drafts::{control, controlled_among, controlled_pipeline, lora, pipeline};

/// What happens to one job.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Finishes,
    /// So many steps after it came.
    IsCancelled(u32),
    /// At so many steps taken.
    Fails(u32, Fault),
}

/// One job of a schedule.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    /// Steps after the one before.
    after: u32,
    /// Which of the requests.
    request: usize,
    /// How far its priority moves it in the queue, in milliseconds; a step takes 300.
    moved_ms: i64,
    fate: Fate,
}

#[derive(Clone, Debug)]
struct Schedule {
    policy: BatchingPolicy,
    max_rows: u32,
    cost: Cost,
    arrivals: Vec<Arrival>,
}

fn fates() -> impl Strategy<Value = Fate> {
    let faults = prop_oneof![Just(Fault::Error), Just(Fault::Panic), Just(Fault::NotANumber), Just(Fault::OutOfMemory)];
    prop_oneof![
        6 => Just(Fate::Finishes),
        1 => (0..4u32).prop_map(Fate::IsCancelled),
        1 => (0..3u32, faults).prop_map(|(step, fault)| Fate::Fails(step, fault)),
    ]
}

fn schedules(requests: usize) -> impl Strategy<Value = Schedule> {
    let moved = prop_oneof![4 => Just(0i64), 1 => Just(-30_000), 1 => Just(300_000)];
    let arrival = (0..3u32, 0..requests, moved, fates());
    let arrival = arrival.prop_map(|(after, request, moved_ms, fate)| Arrival { after, request, moved_ms, fate });
    let policy = prop_oneof![1 => Just(BatchingPolicy::Grouped), 4 => Just(BatchingPolicy::Continuous)];
    // From one row at a time to all there is.
    let cost = prop_oneof![Just(1e-6), Just(0.1), Just(0.5), Just(2.0)];
    let cost = cost.prop_map(|per_row| Cost { fixed: 1.0, per_row });
    (policy, 2..=16u32, cost, prop::collection::vec(arrival, 1..8))
        .prop_map(|(policy, max_rows, cost, arrivals)| Schedule { policy, max_rows, cost, arrivals })
}

/// Requests that differ in all that may differ, in two sizes.
fn requests(pipelines: &[Arc<dyn Pipeline>], sides: [i64; 2], steps: std::ops::Range<u64>) -> Vec<Drawing> {
    let samplers = [
        "ddpm",
        "heun",
        "ddim",
        "dpmpp_sde",
        "euler",
        "unipc",
        "euler_a",
        "dpmpp_2s_a",
        "dpmpp_2m",
        "dpm2_a",
        "lms",
        "dpmpp_3m_sde",
    ];
    let span = steps.end - steps.start;
    let served: Vec<ModelInfo> = pipelines.iter().map(|pipeline| pipeline.info().clone()).collect();
    let takes_sizes = served[0].size_conditioning;
    let make = |k: u64| {
        let draft = RequestDraft {
            // The network reads 22 words at once: some of these take two windows, with a negative prompt of one.
            prompt: Some(format!("(picture:1.2) number {k}{}", ", words".repeat(8 * (k % 6 / 5) as usize))),
            prompt_syntax: Some(["plain", "a1111"][(k % 2) as usize].to_owned()),
            clip_skip: Some((k / 2 % 2) as i64),
            negative_prompt: k.is_multiple_of(4).then(|| "fog".to_owned()),
            width: Some(sides[usize::from(k % 5 > 2)]),
            height: Some(sides[0]),
            size_conditioning: (takes_sizes && k.is_multiple_of(3)).then(|| SizeConditioningDraft {
                original_width: Some(100 + k as i64),
                crop_top: Some(k as i64),
                ..SizeConditioningDraft::default()
            }),
            steps: Some((steps.start + k % span) as i64),
            guidance_scale: Some([1.0, 3.0, 7.5, 1.0][(k % 4) as usize]),
            sampler: Some(samplers[(k / 2 % 12) as usize].to_owned()),
            sigma_schedule: k.is_multiple_of(3).then(|| "karras".to_owned()),
            eta: Some(if k.is_multiple_of(2) { 0.5 } else { 0.0 }),
            noise: Some(["torch-cpu", "torch-cuda"][(k / 3 % 2) as usize].to_owned()),
            guidance_start: Some([0.0, 0.3][(k / 5 % 2) as usize]),
            guidance_rescale: Some([0.0, 0.7][(k / 4 % 2) as usize]),
            num_images: Some(1 + i64::from(k % 7 == 6)),
            seed: Some(i128::from(1000 + k)),
            loras: loras(served[0].id.as_str(), k),
            // Their second pass is in batches of another size.
            hires: (k % 9 < 2).then(|| HiresDraft {
                scale: Some(1.5),
                upscaler: Some(["latent", "lanczos"][(k % 9) as usize].to_owned()),
                ..HiresDraft::default()
            }),
            // Their last steps are in batches of another model.
            refiner: pipelines.get(1).filter(|_| [3, 8].contains(&(k % 12))).map(|refiner| RefinerDraft {
                model: Some(refiner.info().id.to_string()),
                switch_at: Some(if k.is_multiple_of(3) { 0.5 } else { 0.8 }),
                steps: None,
            }),
            image_inputs: ImageInputsDraft {
                strength: (!k.is_multiple_of(3)).then_some(0.7),
                inpaint_area: (k % 6 == 5).then(|| "only_masked".to_owned()),
                ..ImageInputsDraft::default()
            },
            ..RequestDraft::default()
        };
        // Three of seven are controlled, one of them by two networks or by one twice.
        let names: Vec<&str> =
            served[0].controlnets.iter().filter(|net| net.misfit.is_none()).map(|net| net.name.as_str()).collect();
        let count = if names.is_empty() { 0 } else { [0, 1, 0, 0, 2, 0, 1][(k % 7) as usize] };
        let controls = (0..count).map(|at| {
            let name = names[((k + at) / 2) as usize % names.len()];
            (
                control(name, 0.6 + 0.2 * at as f64, 0.25 * at as f64, [1.0, 0.7][(k % 2) as usize]),
                started_from(k + at).0,
            )
        });
        // A third start from noise, a third from a picture, a third from a picture with a mask.
        let (init, mask) = started_from(k);
        let start = ((!k.is_multiple_of(3)).then_some(init), (k % 3 > 1).then_some(mask));
        controlled_among(draft, start, controls.collect(), &served)
    };
    (0..24).map(make).collect()
}

/// Most have none; the others are of two sets, which share no forward.
fn loras(model: &str, k: u64) -> Vec<LoraDraft> {
    match (model, k % 4) {
        ("tiny-sd", 2) => vec![lora("sd-kohya", 0.7)],
        ("tiny-sd", 3) if k.is_multiple_of(3) => vec![lora("sd-attention", 0.5), lora("sd-lokr", -0.5)],
        ("tiny-sdxl", 2) => vec![lora("sdxl-kohya", 0.8)],
        _ => Vec::new(),
    }
}

/// A picture and a mask that covers a part of it.
fn started_from(k: u64) -> (RgbImage, GrayImage) {
    let (width, height) = (37, 29);
    let value = |at: u64| (at * (k + 3) / 7 % 251) as u8;
    let picture = RgbImage::from_pixels(width, height, (0..37 * 29 * 3).map(value).collect()).unwrap();
    let masked = |at: u32| if (8..20).contains(&(at % width)) && (5..24).contains(&(at / width)) { 255 } else { 0 };
    (picture, GrayImage::from_pixels(width, height, (0..width * height).map(masked).collect()).unwrap())
}

/// Requests, and what each of them draws alone.
pub(super) struct Bed {
    /// The first is the one that requests name.
    pub(super) pipelines: Vec<Arc<dyn Pipeline>>,
    pub(super) requests: Vec<Drawing>,
    pub(super) alone: Vec<Vec<RgbImage>>,
}

impl Bed {
    /// Of requests of a few steps in two sizes.
    pub(super) fn of(pipelines: Vec<Arc<dyn Pipeline>>, sides: [i64; 2]) -> Self {
        let requests = requests(&pipelines, sides, 2..5);
        Self::new(pipelines, requests)
    }

    fn new(pipelines: Vec<Arc<dyn Pipeline>>, requests: Vec<Drawing>) -> Self {
        // A batch has one sample at least, and so here at most.
        let caps = BatchCaps { max_rows: 1, max_row_pixels: u64::MAX };
        let alone = |drawing: &Drawing| {
            let options = EngineOptions { caps, ..EngineOptions::default() };
            let mut stepper = Stepper::new(pipelines.clone(), options, None);
            let job = stepper.admit_drawing(drawing, 0);
            stepper.run();
            assert!(stepper.batches.iter().all(|report| report.samples == 1));
            (0..drawing.request.num_images()).map(|image| stepper.pictures[&(job, image)].clone()).collect()
        };
        let alone = requests.iter().map(alone).collect();
        Self { pipelines, requests, alone }
    }

    fn run(&self, schedule: &Schedule) -> Result<(), TestCaseError> {
        let fates: Arc<Mutex<HashMap<JobId, Fate>>> = Arc::default();
        let options = EngineOptions {
            policy: schedule.policy,
            caps: BatchCaps { max_rows: schedule.max_rows, max_row_pixels: u64::MAX },
            cost: Some(schedule.cost),
            ..EngineOptions::default()
        };
        let mut stepper = Stepper::new(self.pipelines.clone(), options, Some(hook(fates.clone())));
        let (mut jobs, mut cancels) = (Vec::new(), Vec::<(u32, JobId)>::new());
        let mut step = 0;
        for arrival in &schedule.arrivals {
            let until = step + arrival.after;
            while step < until {
                take_step(&mut stepper, &mut cancels, step);
                step += 1;
            }
            let job = stepper.admit_drawing(&self.requests[arrival.request], 300 * i64::from(step) + arrival.moved_ms);
            fates.lock().unwrap().insert(job, arrival.fate);
            if let Fate::IsCancelled(after) = arrival.fate {
                cancels.push((step + after, job));
            }
            jobs.push((job, *arrival));
        }
        while take_step(&mut stepper, &mut cancels, step) {
            step += 1;
        }
        self.check(&stepper, &jobs)
    }

    fn check(&self, stepper: &Stepper, jobs: &[(JobId, Arrival)]) -> Result<(), TestCaseError> {
        for (job, arrival) in jobs {
            let request = &self.requests[arrival.request].request;
            let ended = (
                stepper.finished.iter().filter(|id| *id == job).count(),
                stepper.cancelled.iter().filter(|id| *id == job).count(),
                stepper.failed.iter().filter(|(id, ..)| id == job).count(),
            );
            let expected = match arrival.fate {
                Fate::Finishes => vec![(1, 0, 0)],
                // It may have been faster.
                Fate::IsCancelled(_) => vec![(1, 0, 0), (0, 1, 0)],
                Fate::Fails(step, _) if step < request.steps_taken() => vec![(0, 0, 1)],
                Fate::Fails(..) => vec![(1, 0, 0)],
            };
            prop_assert!(expected.contains(&ended), "{arrival:?} ended as {ended:?}: {:?}", stepper.failed);
            for (image, alone) in self.alone[arrival.request].iter().enumerate() {
                let picture = stepper.pictures.get(&(*job, image as u32));
                prop_assert!(picture.is_none_or(|picture| picture == alone), "{arrival:?} image {image} differs");
                prop_assert!(picture.is_some() || ended.0 == 0, "{arrival:?} lacks image {image}");
            }
        }
        Ok(())
    }
}

fn hook(fates: Arc<Mutex<HashMap<JobId, Fate>>>) -> FaultHook {
    Arc::new(move |job, point| match (fates.lock().unwrap().get(&job), point) {
        (Some(Fate::Fails(at, fault)), FaultPoint::Evaluate { step, .. }) if step == *at => *fault,
        _ => Fault::None,
    })
}

/// Cancels what is due, then takes a step; false when there was none to take.
fn take_step(stepper: &mut Stepper, cancels: &mut Vec<(u32, JobId)>, step: u32) -> bool {
    cancels.retain(|(at, job)| {
        let is_due = *at <= step;
        if is_due {
            stepper.cancel(*job);
        }
        !is_due
    });
    stepper.step()
}

fn holds(bed: &Bed, cases: u64) {
    let cases = u32::try_from(cases).unwrap();
    let config = Config { cases, rng_seed: RngSeed::Fixed(20), failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&schedules(bed.requests.len()), |schedule| bed.run(&schedule));
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

#[test]
fn on_a_tiny_model_no_schedule_changes_a_picture() {
    let tiny = vec![controlled_pipeline("tiny-sd")];
    holds(&Bed::of(tiny, [16, 24]), count_asked_for("INVARIANCE_SCHEDULES", 600));
}

/// Rows of one forward differ in pooled prompts and sizes too, and some pictures pass from the base's batches to the refiner's.
#[test]
fn on_a_tiny_xl_model_no_schedule_changes_a_picture() {
    let tiny = vec![controlled_pipeline("tiny-sdxl"), pipeline("tiny-sdxl-refiner")];
    holds(&Bed::of(tiny, [64, 72]), count_asked_for("INVARIANCE_SCHEDULES", 60));
}

#[test]
fn on_the_built_in_model_no_schedule_changes_a_picture() {
    let source = ModelSource::parse("pinhole").unwrap();
    let pinhole = pipelines::load(&source, DeviceSpec::Cpu).unwrap();
    let side = i64::from(pinhole.info().min_side);
    let multiple = i64::from(pinhole.info().size_multiple);
    let pinhole = vec![pinhole];
    let requests = requests(&pinhole, [side, side + multiple], 2..4);
    holds(&Bed::new(pinhole, requests), count_asked_for("INVARIANCE_SCHEDULES_PINHOLE", 20));
}
