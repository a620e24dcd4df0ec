//! Devices that are full: whoever fits is drawn all the same, and batches become as small as they must.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use darkroom::diffusion::engine::{EngineOptions, Fault, FaultHook, FaultPoint};
use darkroom::domain::{ErrorCode, GenerationRequest, JobId, RequestDraft};

use super::alone;
use super::stepper::{Stepper, continuous};
use crate::support::drafts::{checked, draft, pipeline};

fn plain(seed: u64, change: impl FnOnce(&mut RequestDraft)) -> GenerationRequest {
    let mut draft = RequestDraft { guidance_scale: Some(1.0), ..draft(&format!("picture number {seed}"), seed) };
    change(&mut draft);
    checked(draft, pipeline("tiny-sd").as_ref())
}

fn assert_as_alone<'a>(stepper: &Stepper, jobs: impl IntoIterator<Item = &'a (JobId, GenerationRequest)>) {
    for (id, request) in jobs {
        assert!(stepper.pictures[&(*id, 0)] == alone(request)[0], "{}", request.prompt());
    }
}

/// Sixteen jobs aboard one batch, one row each.
fn sixteen(fault: FaultHook) -> (Stepper, Vec<(JobId, GenerationRequest)>) {
    let mut stepper = Stepper::new(vec![pipeline("tiny-sd")], continuous(16), Some(fault));
    let requests: Vec<_> = (1..=16).map(|seed| plain(seed, |_| ())).collect();
    let jobs = requests.into_iter().map(|request| (stepper.admit_at(&request, 0), request)).collect();
    (stepper, jobs)
}

/// The numbers of samples in the forwards that the eleventh job stood in, where it fails so in its second step.
fn halved_for(fault: Fault) -> (Vec<usize>, Stepper, Vec<(JobId, GenerationRequest)>) {
    let guilty: Arc<Mutex<Option<JobId>>> = Arc::default();
    let (known, seen) = (guilty.clone(), Arc::new(Mutex::new(Vec::new())));
    let told = seen.clone();
    let hook: FaultHook = Arc::new(move |job, point| match point {
        FaultPoint::Evaluate { step: 1, samples } if Some(job) == *known.lock().unwrap() => {
            told.lock().unwrap().push(samples);
            fault
        }
        _ => Fault::None,
    });
    let (mut stepper, jobs) = sixteen(hook);
    *guilty.lock().unwrap() = Some(jobs[10].0);
    stepper.run();
    let seen = seen.lock().unwrap().clone();
    (seen, stepper, jobs)
}

#[test]
fn the_guilty_one_among_sixteen_is_found_by_halves() {
    for (fault, code) in [
        (Fault::Error, ErrorCode::GenerationFailed),
        (Fault::Panic, ErrorCode::Internal),
        (Fault::OutOfMemory, ErrorCode::OutOfMemory),
    ] {
        let (seen, stepper, mut jobs) = halved_for(fault);
        assert_eq!(seen, [16, 8, 4, 2, 1], "{fault:?}");
        let (guilty, _) = jobs.remove(10);
        assert_eq!(stepper.failed.iter().map(|(job, code, _)| (*job, *code)).collect::<Vec<_>>(), [(guilty, code)]);
        assert_as_alone(&stepper, &jobs);
    }
}

#[test]
fn a_job_that_does_not_fit_alone_is_told_what_was_tried() {
    let (_, stepper, _) = halved_for(Fault::OutOfMemory);
    let (_, _, message) = &stepper.failed[0];
    assert!(message.contains("1 row(s) of 16x16 pixels"), "{message}");
    assert!(message.contains("as forwards of 16, 8, 4, 2 had"), "{message}");
}

#[test]
fn batches_of_a_full_device_become_as_small_as_they_must_and_those_of_other_sizes_do_not() {
    let small: Arc<Mutex<HashSet<JobId>>> = Arc::default();
    let known = small.clone();
    let hook: FaultHook = Arc::new(move |job, point| match point {
        FaultPoint::Evaluate { samples: 6.., .. } if known.lock().unwrap().contains(&job) => Fault::OutOfMemory,
        _ => Fault::None,
    });
    let (mut stepper, mut jobs) = sixteen(hook);
    small.lock().unwrap().extend(jobs.iter().map(|(id, _)| *id));
    for seed in 17..=32 {
        let wide = plain(seed, |draft| draft.width = Some(32));
        jobs.push((stepper.admit_at(&wide, 60_000), wide));
    }
    stepper.run();
    assert_eq!((stepper.finished.len(), stepper.failed.len()), (32, 0));
    let rows = |width| stepper.batches.iter().filter(move |report| report.width == width).map(|report| report.rows);
    // The first is told as one batch, though it took forwards of four. The other three steps are in batches of four.
    assert_eq!(rows(16).collect::<Vec<_>>(), [&[16][..], &[4; 12]].concat());
    assert!(rows(32).next() > Some(4), "{:?}", stepper.batches);
    assert_as_alone(&stepper, &jobs);
}

/// Twelve jobs of two sizes and several step counts, guided and not.
fn twelve() -> Vec<GenerationRequest> {
    let make = |seed: u64| {
        plain(seed, |draft| {
            draft.width = Some([32, 128][(seed % 2) as usize]);
            draft.height = Some(32);
            draft.steps = Some([3, 6][(seed / 2 % 2) as usize]);
            draft.guidance_scale = Some([1.0, 4.0][(seed / 4 % 2) as usize]);
        })
    };
    (1..=12).map(make).collect()
}

/// Draws them all, those of the wide size later; with or without a bound.
fn drawn(requests: &[GenerationRequest], options: EngineOptions) -> (Stepper, Vec<(JobId, GenerationRequest)>) {
    let mut stepper = Stepper::new(vec![pipeline("tiny-sd")], options, None);
    let rank = |request: &GenerationRequest| 5_000 * i64::from(request.width());
    let jobs = requests.iter().map(|request| (stepper.admit_at(request, rank(request)), request.clone())).collect();
    stepper.run();
    (stepper, jobs)
}

/// The most that a forward of this width and of at most so many rows took.
fn most_bytes(stepper: &Stepper, width: u32, rows: u32) -> u64 {
    let of = stepper.batches.iter().filter(|report| report.width == width && report.rows <= rows);
    of.filter_map(|report| report.bytes).max().expect("the CPU's forwards are measured")
}

/// What a thread takes is counted for itself: with several that share the kernels' work, who of them takes what is chance, and a
/// forward takes half as much again at times.
fn on_one_thread(test: impl FnOnce() + Send) {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(test);
}

#[test]
fn no_forward_takes_more_memory_than_it_may() {
    on_one_thread(|| {
        let requests = twelve();
        let (free, _) = drawn(&requests, continuous(16));
        let most = free.batches.iter().filter_map(|report| report.bytes).max().unwrap();
        // Enough for a guided picture of the wide size, and for four rows of the other.
        let (alone, _) = drawn(&requests, continuous(2));
        let limit = most_bytes(&alone, 128, 2).max(2 * most_bytes(&alone, 32, 2)) + 4_096;
        assert!(limit < most, "nothing would be bound: {limit} of {most}");
        let (stepper, jobs) = drawn(&requests, EngineOptions { memory: Some(limit), ..continuous(16) });
        let taken: Vec<_> = stepper.batches.iter().map(|report| (report.rows, report.bytes)).collect();
        assert!(taken.iter().all(|(_, bytes)| bytes.is_some_and(|bytes| bytes <= limit)), "{limit}: {taken:?}");
        assert!(taken.iter().any(|(rows, _)| *rows > 2), "{limit}: {taken:?}");
        assert_eq!((stepper.finished.len(), stepper.failed.len()), (12, 0));
        assert_as_alone(&stepper, &jobs);
    });
}

#[test]
fn on_a_device_that_is_too_small_whoever_fits_is_drawn_and_whoever_does_not_is_tried_once() {
    on_one_thread(|| {
        let requests = twelve();
        let (alone, _) = drawn(&requests, continuous(2));
        // Two rows of the small size, and not one of the wide.
        let limit = most_bytes(&alone, 32, 2) + 4_096;
        assert!(limit < most_bytes(&alone, 128, 1), "{limit}");
        for memory in [None, Some(limit)] {
            let options = EngineOptions { memory, device_bytes: Some(limit), ..continuous(16) };
            let (stepper, jobs) = drawn(&requests, options);
            let (small, wide): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|(_, request)| request.width() == 32);
            let failed: HashSet<JobId> = stepper.failed.iter().map(|(job, ..)| *job).collect();
            assert_eq!(failed, wide.iter().map(|(job, _)| *job).collect(), "{memory:?}");
            assert!(stepper.failed.iter().all(|(_, code, _)| *code == ErrorCode::OutOfMemory), "{:?}", stepper.failed);
            assert_eq!(stepper.finished.len(), small.len(), "{memory:?}");
            assert_as_alone(&stepper, &small);
        }
    });
}
