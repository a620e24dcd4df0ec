//! Parked jobs: taken off an engine at any evaluation, they go on in another to the same bytes, by way of what is stored of them.

use std::sync::Arc;

use darkroom::diffusion::batching::BatchCaps;
use darkroom::diffusion::engine::{Drawing, EngineOptions, ParkedJob};
use darkroom::diffusion::pipelines::{self, Changes, ModelSource, Pipeline};
use darkroom::domain::{
    Artifact, ComputeDtype, DeviceSpec, GenerationRequest, ImageFormat, JobId, ModelId, RequestDraft, SamplerKind,
};
use darkroom::images::RgbImage;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use super::invariance::Bed;
use super::stepper::{Stepper, continuous};
use crate::support::drafts::{checked, controlled_pipeline, draft, fixtures, pipeline};

/// There and back.
fn through_bytes(parked: &ParkedJob) -> ParkedJob {
    let bytes = parked.to_bytes().unwrap();
    let back = ParkedJob::from_bytes(&bytes).unwrap();
    assert_eq!(back.to_bytes().unwrap(), bytes);
    back
}

/// As the worker tells it of pictures that it has stored.
fn stored(image: u32) -> Artifact {
    let (width, height, format) = (16, 16, ImageFormat::Png);
    Artifact { index: image, seed: 0, width, height, format, size_bytes: 0, sha256: String::new() }
}

/// Takes every job that is left off one engine and puts it into another; whether any of them was in its second pass.
fn moved(from: &mut Stepper, to: &mut Stepper, jobs: &[(JobId, Drawing, i64)]) -> Result<bool, TestCaseError> {
    let mut is_in_second_pass = false;
    for (job, drawing, rank) in jobs {
        from.park(*job);
        let Some(parked) = from.parked.remove(job) else { continue };
        let drawn = from.pictures.keys().filter(|(id, _)| id == job).map(|(_, image)| stored(*image));
        let parked = through_bytes(&parked.with_stored(drawn.collect()));
        let bytes = parked.to_bytes().unwrap();
        is_in_second_pass |= bytes.windows(8).any(|window| window == b"\"pass\":1");
        to.resume(drawing, parked, *rank);
        prop_assert!(to.resumed.contains(job), "it started anew");
    }
    prop_assert!(!from.step(), "nothing is left behind");
    to.pictures.extend(from.pictures.drain());
    Ok(is_in_second_pass)
}

fn alone(drawing: &Drawing, pipeline: &Arc<dyn Pipeline>) -> (Vec<RgbImage>, usize) {
    let mut stepper = Stepper::new(vec![pipeline.clone()], continuous(2), None);
    let job = stepper.admit_drawing(drawing, 0);
    stepper.run();
    let images = 0..drawing.request.num_images();
    (images.map(|image| stepper.pictures.remove(&(job, image)).unwrap()).collect(), stepper.batches.len())
}

#[test]
fn with_every_sampler_a_picture_parked_before_any_evaluation_is_the_same() {
    let tiny = pipeline("tiny-sd");
    for (k, sampler) in SamplerKind::ALL.iter().enumerate() {
        let draft = RequestDraft {
            sampler: Some(sampler.name().to_owned()),
            // Odd draws: fewer than 16 values, and a number of them that is no multiple of 16, keep a part for the next.
            width: Some([16, 24][k % 2]),
            eta: Some([0.0, 0.7][k % 2]),
            noise: Some(["torch-cpu", "torch-cuda"][k / 2 % 2].to_owned()),
            guidance_scale: Some([1.0, 4.0][k / 4 % 2]),
            ..draft("a house", k as u64)
        };
        let drawing = Drawing::from(checked(draft, tiny.as_ref()));
        let (expected, evaluations) = alone(&drawing, &tiny);
        for at in 0..evaluations {
            let mut first = Stepper::new(vec![tiny.clone()], continuous(2), None);
            let job = first.admit_drawing(&drawing, 0);
            (0..at).for_each(|_| assert!(first.step()));
            let mut second = Stepper::new(vec![tiny.clone()], continuous(8), None);
            moved(&mut first, &mut second, &[(job, drawing.clone(), 0)]).unwrap();
            second.run();
            assert!(second.pictures[&(job, 0)] == expected[0], "{sampler} parked after {at} evaluations");
            assert_eq!(second.batches.len(), evaluations - at, "{sampler}: no evaluation is made twice");
        }
    }
}

/// Some jobs in one engine, all of them moved to another again and again.
#[derive(Clone, Debug)]
struct Move {
    requests: Vec<usize>,
    /// Steps between moves.
    steps: Vec<u32>,
    max_rows: u32,
}

fn moves(requests: usize) -> impl Strategy<Value = Move> {
    (prop::collection::vec(0..requests, 1..4), prop::collection::vec(0..6u32, 1..4), 2..=16u32)
        .prop_map(|(requests, steps, max_rows)| Move { requests, steps, max_rows })
}

fn holds(bed: &Bed, cases: u32) {
    let config = Config { cases, rng_seed: RngSeed::Fixed(21), failure_persistence: None, ..Config::default() };
    let (mut second_passes, mut runner) = (0, TestRunner::new(config));
    let count = std::cell::RefCell::new(&mut second_passes);
    let result = runner.run(&moves(bed.requests.len()), |case| {
        let options = |rows| EngineOptions { preview_every: 0, ..continuous(rows) };
        let mut stepper = Stepper::new(bed.pipelines.clone(), options(case.max_rows), None);
        let jobs: Vec<(JobId, Drawing, i64)> = (0..)
            .zip(&case.requests)
            .map(|(rank, at)| (stepper.admit_drawing(&bed.requests[*at], rank), bed.requests[*at].clone(), rank))
            .collect();
        for (turn, steps) in case.steps.iter().enumerate() {
            for _ in 0..*steps {
                stepper.step();
            }
            let mut next = Stepper::new(bed.pipelines.clone(), options(16 - turn as u32), None);
            **count.borrow_mut() += u32::from(moved(&mut stepper, &mut next, &jobs)?);
            stepper = next;
        }
        stepper.run();
        for ((job, ..), at) in jobs.iter().zip(&case.requests) {
            for (image, alone) in bed.alone[*at].iter().enumerate() {
                let picture = stepper.pictures.get(&(*job, image as u32));
                prop_assert!(picture == Some(alone), "image {image} of request {at} differs");
            }
        }
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
    assert!(second_passes > 0, "none was parked in its second pass");
}

/// Image to image, inpainting, LoRAs, ControlNets and second passes are among the requests.
#[test]
fn on_a_tiny_model_jobs_moved_at_any_step_draw_the_same() {
    let tiny = vec![controlled_pipeline("tiny-sd")];
    holds(&Bed::of(tiny, [16, 24]), 120);
}

#[test]
fn on_a_tiny_xl_model_with_a_refiner_jobs_moved_at_any_step_draw_the_same() {
    let tiny = vec![controlled_pipeline("tiny-sdxl"), pipeline("tiny-sdxl-refiner")];
    holds(&Bed::of(tiny, [64, 72]), 30);
}

fn request(draft: RequestDraft) -> GenerationRequest {
    checked(draft, pipeline("tiny-sd").as_ref())
}

/// Parked after two steps.
fn parked(request: &GenerationRequest) -> ParkedJob {
    let mut stepper = Stepper::new(vec![pipeline("tiny-sd")], continuous(8), None);
    let job = stepper.admit(request);
    (0..2).for_each(|_| assert!(stepper.step()));
    stepper.park(job);
    stepper.parked.remove(&job).unwrap()
}

#[test]
fn a_state_of_another_request_is_not_used_and_the_job_starts_anew() {
    let own = request(draft("a house", 1));
    let others = [
        draft("a horse", 1),
        draft("a house", 2),
        RequestDraft { guidance_scale: Some(3.0), ..draft("a house", 1) },
        RequestDraft { sampler: Some("heun".to_owned()), ..draft("a house", 1) },
    ];
    for other in others {
        let mut stepper = Stepper::new(vec![pipeline("tiny-sd")], continuous(8), None);
        let parked = parked(&request(other));
        let job = parked.job();
        stepper.resume(&own.clone().into(), parked, 0);
        assert!(stepper.resumed.is_empty());
        stepper.run();
        assert_eq!(stepper.batches.len(), 4);
        let (expected, _) = alone(&own.clone().into(), &pipeline("tiny-sd"));
        assert!(stepper.pictures[&(job, 0)] == expected[0]);
    }
}

/// What is left of the job would be drawn or decoded by other numbers than what was drawn before.
#[test]
fn a_state_is_not_used_where_another_autoencoder_dtype_or_controlnet_has_the_same_name() {
    let own = request(draft("a house", 1));
    let changes = Changes { vae: Some(fixtures().join("tiny-lcm/vae")), ..Changes::default() };
    let changed = ModelSource { changes, ..ModelSource::at("tiny-sd", fixtures().join("tiny-sd")) };
    let changed = pipelines::load(&changed, DeviceSpec::Cpu).unwrap();
    let dtype = ComputeDtype::F16.into();
    let half = ModelSource { dtype, ..ModelSource::at("tiny-sd", fixtures().join("tiny-sd")) };
    let half = pipelines::load(&half, DeviceSpec::Cpu).unwrap();
    let [first, again] = [pipeline("tiny-sd"), pipeline("tiny-sd")];
    assert_eq!(changed.info().sha256, first.info().sha256, "the hash by which people know it is of the U-Net");
    assert_eq!(first.fingerprint(), again.fingerprint());
    for (pipeline, is_used) in [(changed, false), (half, false), (again, true)] {
        let mut stepper = Stepper::new(vec![pipeline], continuous(8), None);
        stepper.resume(&own.clone().into(), parked(&own), 0);
        assert_eq!(!stepper.resumed.is_empty(), is_used);
        stepper.run();
    }
    let controlled = controlled_pipeline("tiny-sd");
    let of = |name: &str| controlled.controlnet(name).unwrap().fingerprint().to_owned();
    assert!(of("edges") != of("depth") && of("edges") == of("edges"));
}

#[test]
fn a_picture_that_was_stored_is_not_drawn_again_and_a_state_without_it_is_not_used() {
    let two = request(RequestDraft { num_images: Some(2), guidance_scale: Some(3.0), ..draft("a house", 1) });
    let (expected, evaluations) = alone(&two.clone().into(), &pipeline("tiny-sd"));
    for (drawn, is_used) in
        [(vec![0], true), (vec![], false), (vec![1], false), (vec![0, 1], false), (vec![0, 2], false)]
    {
        // Room for one picture at a time.
        let mut first = Stepper::new(vec![pipeline("tiny-sd")], continuous(2), None);
        let job = first.admit(&two);
        while first.pictures.is_empty() {
            assert!(first.step());
        }
        first.park(job);
        let parked = first.parked.remove(&job).unwrap().with_stored(drawn.iter().copied().map(stored).collect());
        let mut second = Stepper::new(vec![pipeline("tiny-sd")], continuous(2), None);
        second.resume(&two.clone().into(), through_bytes(&parked), 0);
        assert_eq!(second.resumed.contains(&job), is_used, "{drawn:?}");
        second.run();
        let steps = first.batches.len() + second.batches.len();
        assert_eq!(second.pictures.len(), if is_used { 1 } else { 2 }, "{drawn:?}");
        assert_eq!(steps == evaluations, is_used, "{drawn:?}");
        assert!(second.pictures[&(job, 1)] == expected[1] && second.finished == [job]);
    }
}

#[test]
fn a_job_that_is_not_aboard_parks_silently_and_a_cancelled_one_leaves_no_state() {
    let mut stepper = Stepper::new(vec![pipeline("tiny-sd")], continuous(8), None);
    stepper.park(JobId::generate());
    let job = stepper.admit(&request(draft("a house", 1)));
    stepper.cancel(job);
    stepper.park(job);
    assert!(stepper.parked.is_empty() && stepper.cancelled == [job]);
}

#[test]
fn the_oldest_job_that_waits_is_given_away_and_none_that_is_drawn() {
    let mut stepper = Stepper::new(vec![pipeline("tiny-sd")], continuous(2), None);
    let guided = request(RequestDraft { guidance_scale: Some(3.0), ..draft("a house", 1) });
    let [drawn, next, last] = [10, 20, 30].map(|rank| stepper.admit_at(&guided, rank));
    let [own, other] = ["tiny-sd", "another"].map(ModelId::new);
    stepper.give_away(std::slice::from_ref(&own));
    assert!(stepper.parked.is_empty(), "nothing is drawn yet");
    assert!(stepper.step());
    stepper.give_away(std::slice::from_ref(&other));
    assert!(stepper.parked.is_empty(), "who asks has not the model");
    for expected in [next, last] {
        stepper.give_away(&[other.clone(), own.clone()]);
        assert!(stepper.parked.remove(&expected).is_some() && stepper.parked.is_empty());
    }
    stepper.give_away(&[own]);
    assert!(stepper.parked.is_empty(), "nobody waits");
    stepper.run();
    assert_eq!(stepper.finished, [drawn]);
}

/// A bulk job waits within the engine while interactive ones come at random steps.
#[test]
fn a_bulk_picture_interrupted_by_interactive_ones_at_any_step_is_the_same() {
    let tiny = pipeline("tiny-sd");
    let bulk: Vec<Drawing> = ["ddim", "euler_a", "dpmpp_2m", "dpmpp_3m_sde", "heun", "unipc"]
        .map(|sampler| {
            request(RequestDraft { sampler: Some(sampler.to_owned()), steps: Some(6), ..draft("a house", 5) }).into()
        })
        .to_vec();
    let expected: Vec<RgbImage> = bulk.iter().map(|drawing| alone(drawing, &tiny).0.remove(0)).collect();
    // As large as the bulk one, or of another size.
    let interactive = [16, 24].map(|width| request(RequestDraft { width: Some(width), ..draft("a cat", 6) }));
    let arrivals = prop::collection::vec((0..4u32, 0..2usize), 1..5);
    let config = Config { cases: 60, rng_seed: RngSeed::Fixed(22), failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&(0..bulk.len(), arrivals), |(which, arrivals)| {
        let caps = BatchCaps { max_rows: 2, max_row_pixels: u64::MAX };
        let mut stepper = Stepper::new(vec![tiny.clone()], EngineOptions { caps, ..continuous(2) }, None);
        let job = stepper.admit_drawing(&bulk[which], 300_000);
        let (mut steps, mut others) = (0, Vec::new());
        for (after, size) in arrivals {
            for _ in 0..after {
                steps += u32::from(stepper.step());
            }
            others.push(stepper.admit_at(&interactive[size], -30_000 + i64::from(steps)));
        }
        stepper.run();
        let waits = stepper.finished.iter().take_while(|id| **id != job).filter(|id| others.contains(id)).count();
        let came_in_time = stepper.finished.len() == others.len() + 1;
        prop_assert!(came_in_time && (waits > 0 || stepper.finished[0] == job));
        prop_assert!(stepper.pictures[&(job, 0)] == expected[which], "{:?}", bulk[which].request.sampler());
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}
