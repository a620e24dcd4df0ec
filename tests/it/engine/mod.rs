//! The step loop: that a batch never changes a picture, and that one job's end disturbs nobody.

mod brought;
mod continuous;
mod controls;
mod invariance;
mod memory;
mod overlap;
mod parking;
mod prompts;
mod simulation;
mod stepper;

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};

use darkroom::diffusion::engine::{self, EngineEvent, EngineHandle, EngineJob, EngineOptions, Fault, FaultPoint, draw};
use darkroom::diffusion::pipelines::Pipeline;
use darkroom::domain::{BatchingPolicy, ErrorCode, GenerationRequest, JobId, QueuePlace, RequestDraft};
use darkroom::images::RgbImage;

use crate::support::drafts::{checked, draft, pipeline};

/// Runs jobs together in one engine, taken before its first step; `on_event` may talk to the engine.
fn run_together(
    requests: &[(JobId, GenerationRequest)],
    options: EngineOptions,
    on_event: impl FnMut(&EngineHandle, &EngineEvent),
) -> Vec<EngineEvent> {
    run_together_with(|model| pipeline(model), requests, options, on_event)
}

/// The same with models that are not the fixtures as they are.
fn run_together_with(
    pipeline: impl Fn(&str) -> Arc<dyn Pipeline>,
    requests: &[(JobId, GenerationRequest)],
    options: EngineOptions,
    mut on_event: impl FnMut(&EngineHandle, &EngineEvent),
) -> Vec<EngineEvent> {
    let (sender, receiver): (_, Receiver<EngineEvent>) = sync_channel(100_000);
    let prepared = requests.iter().map(|(id, request)| {
        let place = QueuePlace { rank_ms: 0, id: *id };
        let (request, canvas) = (Arc::new(request.clone()), None);
        let pipelines = vec![pipeline(request.model().as_str())];
        let job = EngineJob { id: *id, request, canvas, controls: Vec::new(), place, pipelines, parked: None };
        engine::prepare(&job, &options).unwrap()
    });
    let prepared = prepared.collect();
    let handle = engine::start(options, Arc::new(move |event| sender.send(event).unwrap())).unwrap();
    handle.take(prepared).unwrap();
    let (mut events, mut ended) = (Vec::new(), 0);
    while ended < requests.len() {
        let event = receiver.recv().expect("the engine lives until every job has ended");
        on_event(&handle, &event);
        let last =
            matches!(event, EngineEvent::Finished { .. } | EngineEvent::Failed { .. } | EngineEvent::Cancelled { .. });
        ended += usize::from(last);
        events.push(event);
    }
    handle.stop();
    assert!(!handle.is_alive());
    events
}

fn pictures(events: &[EngineEvent]) -> HashMap<(JobId, u32), RgbImage> {
    let picture = |event: &EngineEvent| match event {
        EngineEvent::Image { job, image, picture } => Some(((*job, *image), picture.clone())),
        _ => None,
    };
    events.iter().filter_map(picture).collect()
}

fn alone(request: &GenerationRequest) -> Vec<RgbImage> {
    draw(pipeline(request.model().as_str()), request.clone(), EngineOptions::default(), |_| {}).unwrap()
}

fn job(draft: RequestDraft) -> (JobId, GenerationRequest) {
    (JobId::generate(), checked(draft, pipeline("tiny-sd").as_ref()))
}

/// Sixteen jobs of one group that differ in all that may differ: prompt, seed, sampler, guidance, number of pictures.
fn sixteen() -> Vec<(JobId, GenerationRequest)> {
    let samplers = [
        "ddpm",
        "heun",
        "euler",
        "euler_a",
        "dpmpp_2m",
        "ddim",
        "dpmpp_sde",
        "unipc",
        "dpm2_a",
        "pndm",
        "dpmpp_2s_a",
        "dpmpp_3m_sde",
        "lms",
        "tcd",
        "deis",
        "dpm_solver",
    ];
    let make = |k: usize| RequestDraft {
        guidance_scale: Some([1.0, 3.0, 7.5][k % 3]),
        sampler: Some(samplers[k].to_owned()),
        eta: Some(if k.is_multiple_of(2) { 0.5 } else { 0.0 }),
        noise: Some(["torch-cpu", "torch-cuda"][k / 2 % 2].to_owned()),
        guidance_rescale: Some([0.0, 0.7][k / 3 % 2]),
        prompt_syntax: Some(["plain", "a1111"][k / 5 % 2].to_owned()),
        guidance_end: Some([1.0, 0.5][k / 4 % 2]),
        num_images: Some(1 + (k % 4 == 3) as i64),
        ..draft(&format!("picture number {k}"), 1000 + k as u64)
    };
    (0..16).map(|k| job(make(k))).collect()
}

#[test]
fn a_picture_is_the_same_alone_and_among_fifteen_others() {
    let jobs = sixteen();
    let events = run_together(&jobs, EngineOptions::default(), |_, _| {});
    let together = pictures(&events);
    let largest = events.iter().filter_map(|event| match event {
        EngineEvent::Batch(report) => Some((report.jobs, report.rows)),
        _ => None,
    });
    assert_eq!(largest.max(), largest_expected(&jobs));
    for (id, request) in &jobs {
        for (image, picture) in alone(request).into_iter().enumerate() {
            assert!(together[&(*id, image as u32)] == picture, "{} image {image}", request.prompt());
        }
    }
}

/// The batcher fills the first forward up to 32 rows, in order of arrival.
fn largest_expected(jobs: &[(JobId, GenerationRequest)]) -> Option<(u32, u32)> {
    let (mut rows, mut aboard) = (0, 0);
    for (_, request) in jobs {
        if rows + request.rows() > 32 {
            break;
        }
        rows += request.rows();
        aboard += 1;
    }
    Some((aboard, rows)).filter(|_| aboard > 4)
}

#[test]
fn a_cancelled_neighbour_changes_nothing_and_leaves_at_the_next_step() {
    let jobs = sixteen();
    let leaving = jobs[5].0;
    // Held in the second step's evaluation until the cancel is in the engine's channel.
    let (told, heard) = sync_channel::<()>(1);
    let heard = Mutex::new(heard);
    let hook: engine::FaultHook = Arc::new(move |job, point| {
        if job == leaving && matches!(point, FaultPoint::Evaluate { step: 1, .. }) {
            let _ = heard.lock().unwrap().recv_timeout(std::time::Duration::from_secs(10));
        }
        Fault::None
    });
    let options = EngineOptions { fault: Some(hook), ..EngineOptions::default() };
    let events = run_together(&jobs, options, |handle, event| {
        if matches!(event, EngineEvent::Progress { job, step: 1, .. } if *job == leaving) {
            handle.cancel(leaving);
            let _ = told.try_send(());
        }
    });
    let steps =
        events.iter().filter(|event| matches!(event, EngineEvent::Progress { job, .. } if *job == leaving)).count();
    // The hook is asked twice a step: before the forward, where it waits, and after it.
    assert!(steps <= 2, "it took {steps} of 4 steps");
    assert!(events.iter().any(|event| matches!(event, EngineEvent::Cancelled { job } if *job == leaving)));
    let together = pictures(&events);
    for (id, request) in jobs.iter().filter(|(id, _)| *id != leaving) {
        assert!(together[&(*id, 0)] == alone(request)[0], "{}", request.prompt());
    }
}

/// Which jobs failed, and how.
fn failed(events: &[EngineEvent]) -> Vec<(JobId, ErrorCode)> {
    let failed = |event: &EngineEvent| match event {
        EngineEvent::Failed { job, code, .. } => Some((*job, *code)),
        _ => None,
    };
    events.iter().filter_map(failed).collect()
}

#[test]
fn one_guilty_job_fails_alone_whatever_its_fault() {
    let faults = [
        (Fault::Error, ErrorCode::GenerationFailed),
        (Fault::Panic, ErrorCode::Internal),
        (Fault::NotANumber, ErrorCode::GenerationFailed),
        (Fault::OutOfMemory, ErrorCode::OutOfMemory),
    ];
    for (fault, code) in faults {
        let jobs = sixteen();
        let guilty = jobs[2].0;
        let hook: engine::FaultHook = Arc::new(move |job, point| match point {
            FaultPoint::Evaluate { step: 1, .. } if job == guilty => fault,
            _ => Fault::None,
        });
        let events = run_together(&jobs, EngineOptions { fault: Some(hook), ..EngineOptions::default() }, |_, _| {});
        assert_eq!(failed(&events), [(guilty, code)], "{fault:?}");
        let together = pictures(&events);
        for (id, request) in jobs.iter().filter(|(id, _)| *id != guilty) {
            assert!(together[&(*id, 0)] == alone(request)[0], "{fault:?} {}", request.prompt());
        }
    }
}

#[test]
fn progress_counts_steps_and_not_evaluations() {
    for (sampler, evaluations) in [("euler", 4), ("heun", 7), ("pndm", 13)] {
        let draft = RequestDraft { sampler: Some(sampler.to_owned()), ..draft("a house", 1) };
        let events = run_together(&[job(draft)], EngineOptions::default(), |_, _| {});
        let progress = events.iter().filter_map(|event| match event {
            EngineEvent::Progress { step, total, .. } => Some((*step, *total)),
            _ => None,
        });
        assert_eq!(progress.collect::<Vec<_>>(), [(1, 4), (2, 4), (3, 4), (4, 4)], "{sampler}");
        let batches = events.iter().filter(|event| matches!(event, EngineEvent::Batch(_))).count();
        assert_eq!(batches, evaluations, "{sampler}");
    }
}

/// Two pictures in one batch, guided in different steps: each forward has the rows that its steps need.
#[test]
fn a_step_outside_the_guidance_interval_takes_one_row() {
    let guided = |start: f64, end: f64| RequestDraft {
        steps: Some(5),
        guidance_scale: Some(4.0),
        guidance_start: Some(start),
        guidance_end: Some(end),
        ..draft("a house", 1)
    };
    let rows = |drafts: Vec<RequestDraft>| {
        let jobs: Vec<_> = drafts.into_iter().map(job).collect();
        let events = run_together(&jobs, EngineOptions::default(), |_, _| {});
        assert_eq!(pictures(&events).len(), jobs.len());
        let rows = events.into_iter().filter_map(|event| match event {
            EngineEvent::Batch(report) => Some(report.rows),
            _ => None,
        });
        rows.collect::<Vec<_>>()
    };
    assert_eq!(rows(vec![guided(0.2, 0.6)]), [1, 2, 2, 1, 1]);
    assert_eq!(rows(vec![guided(0.2, 0.6), guided(0.0, 1.0)]), [3, 4, 4, 3, 3]);
    // No whole step lies within.
    assert_eq!(rows(vec![guided(0.5, 0.55)]), [1; 5]);
    // Two evaluations a step, but for the last.
    let heun = RequestDraft { sampler: Some("heun".to_owned()), ..guided(0.4, 0.8) };
    assert_eq!(rows(vec![heun]), [1, 1, 1, 1, 2, 2, 2, 2, 1]);
}

#[test]
fn groups_are_of_one_model_resolution_and_step_count() {
    let make = |k: usize| RequestDraft {
        steps: Some([3, 5][k % 2]),
        width: Some([16, 32][(k / 2) % 2]),
        ..draft("a house", k as u64)
    };
    let jobs: Vec<_> = (0..12).map(|k| job(make(k))).collect();
    let options = EngineOptions { policy: BatchingPolicy::Grouped, ..EngineOptions::default() };
    let events = run_together(&jobs, options, |_, _| {});
    for event in &events {
        if let EngineEvent::Batch(report) = event {
            assert!(matches!(report.steps, Some(3 | 5)), "{report:?}");
            assert!(matches!(report.width, 16 | 32) && report.height == 16, "{report:?}");
            assert_eq!(report.samples, 3, "{report:?}");
        }
    }
    assert_eq!(pictures(&events).len(), 12);
}

#[test]
fn a_prompt_that_is_cut_is_told() {
    let long = "word ".repeat(60);
    let jobs = [job(draft(&long, 1)), job(draft("short", 1))];
    let events = run_together(&jobs, EngineOptions::default(), |_, _| {});
    for event in events {
        if let EngineEvent::Started { job, warnings, .. } = event {
            assert_eq!(warnings.len(), usize::from(job == jobs[0].0), "{warnings:?}");
        }
    }
}
