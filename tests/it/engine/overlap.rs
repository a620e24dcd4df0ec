//! What follows a picture's last step goes on beside the loop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use darkroom::diffusion::engine::{EngineEvent, EngineOptions, Fault, FaultHook, FaultPoint, draw};
use darkroom::diffusion::pipelines::{self, Changes, ModelSource, Pipeline};
use darkroom::domain::{DeviceSpec, ErrorCode, GenerationRequest, HiresDraft, JobId, RequestDraft};

use super::{alone, failed, job, pictures, run_together, run_together_with};
use crate::support::drafts::{checked, draft, fixtures};

/// A test that fails lets its engine go.
const FORGOTTEN: Duration = Duration::from_secs(60);

fn of_steps(seed: u64, steps: i64) -> (JobId, GenerationRequest) {
    job(RequestDraft { steps: Some(steps), ..draft("a house", seed) })
}

/// Holds the pictures of a job before they are decoded until told.
fn held(job: JobId) -> (FaultHook, impl Fn()) {
    let (told, heard) = sync_channel::<()>(1);
    let heard = Mutex::new(heard);
    let hook: FaultHook = Arc::new(move |other, point| {
        if other == job && point == FaultPoint::Decode {
            let _ = heard.lock().unwrap().recv_timeout(FORGOTTEN);
        }
        Fault::None
    });
    let let_go = move || {
        let _ = told.try_send(());
    };
    (hook, let_go)
}

fn end_of(event: &EngineEvent) -> Option<JobId> {
    match event {
        EngineEvent::Finished { job, .. } | EngineEvent::Failed { job, .. } | EngineEvent::Cancelled { job } => {
            Some(*job)
        }
        _ => None,
    }
}

fn is_of(event: &EngineEvent, wanted: JobId) -> bool {
    match event {
        EngineEvent::Started { job, .. }
        | EngineEvent::Progress { job, .. }
        | EngineEvent::Preview { job, .. }
        | EngineEvent::Image { job, .. } => *job == wanted,
        event => end_of(event) == Some(wanted),
    }
}

/// Each job has one end, and nothing is told of it afterwards.
fn assert_told_in_order(events: &[EngineEvent], jobs: &[(JobId, GenerationRequest)]) {
    for (id, _) in jobs {
        let own: Vec<&EngineEvent> = events.iter().filter(|event| is_of(event, *id)).collect();
        assert!(matches!(own[0], EngineEvent::Started { .. }), "{own:?}");
        let ends: Vec<usize> = (0..own.len()).filter(|at| end_of(own[*at]).is_some()).collect();
        assert_eq!(ends, [own.len() - 1], "{own:?}");
    }
}

#[test]
fn others_take_their_steps_while_a_picture_is_decoded() {
    let jobs = [of_steps(1, 2), of_steps(2, 6)];
    let (short, long) = (jobs[0].0, jobs[1].0);
    let (fault, let_go) = held(short);
    let options = EngineOptions { fault: Some(fault), ..EngineOptions::default() };
    let events = run_together(&jobs, options, |_, event| {
        if matches!(event, EngineEvent::Progress { job, step: 6, .. } if *job == long) {
            let_go();
        }
    });
    let place = |wanted: &dyn Fn(&EngineEvent) -> bool| events.iter().position(wanted).unwrap();
    let last_step = place(&|event| matches!(event, EngineEvent::Progress { job, step: 6, .. } if *job == long));
    let picture = place(&|event| matches!(event, EngineEvent::Image { job, .. } if *job == short));
    assert!(last_step < picture, "the loop stood still");
    assert_told_in_order(&events, &jobs);
    for (id, request) in &jobs {
        assert!(pictures(&events)[&(*id, 0)] == alone(request)[0]);
    }
}

#[test]
fn a_picture_that_cannot_be_decoded_fails_its_job_alone() {
    for (fault, code) in [(Fault::Error, ErrorCode::GenerationFailed), (Fault::Panic, ErrorCode::Internal)] {
        // The guilty one's two pictures are decoded one after the other; the second need not be any more.
        let two = RequestDraft { num_images: Some(2), ..draft("two houses", 5) };
        let jobs = [job(two), of_steps(6, 4), of_steps(7, 8)];
        let guilty = jobs[0].0;
        let asked = Arc::new(AtomicBool::new(false));
        let hook: FaultHook = Arc::new(move |job, point| match point {
            FaultPoint::Decode if job == guilty && !asked.swap(true, Ordering::SeqCst) => fault,
            _ => Fault::None,
        });
        let events = run_together(&jobs, EngineOptions { fault: Some(hook), ..EngineOptions::default() }, |_, _| {});
        assert_eq!(failed(&events), [(guilty, code)], "{fault:?}");
        assert_told_in_order(&events, &jobs);
        for (id, request) in &jobs[1..] {
            assert!(pictures(&events)[&(*id, 0)] == alone(request)[0], "{fault:?}");
        }
    }
}

/// Two jobs; the short one's picture is at the finisher while the long one is evaluated, and whoever `fails` says runs out of memory
/// once, while the other is at work. How often the two points were passed then: the short one's decode; the long one's step, which is
/// passed once more when its forward is done.
fn out_of_memory_beside_other_work(fails: FaultPoint) -> (usize, usize) {
    const STEP: u32 = 5;
    let jobs = [of_steps(1, 2), of_steps(2, 9)];
    let (short, long) = (jobs[0].0, jobs[1].0);
    let passed: Arc<Mutex<(usize, usize)>> = Arc::default();
    let counts = passed.clone();
    let (to_loop, of_finisher) = sync_channel::<()>(1);
    let (to_finisher, of_loop) = sync_channel::<()>(1);
    let (of_finisher, of_loop) = (Mutex::new(of_finisher), Mutex::new(of_loop));
    let decode_fails = fails == FaultPoint::Decode;
    let hook: FaultHook = Arc::new(move |job, point| {
        let mut counts = counts.lock().unwrap();
        let (is_first, is_guilty) = match point {
            FaultPoint::Decode if job == short => {
                counts.0 += 1;
                (counts.0 == 1, decode_fails)
            }
            FaultPoint::Evaluate { step: STEP, .. } if job == long => {
                counts.1 += 1;
                (counts.1 == 1, !decode_fails)
            }
            _ => return Fault::None,
        };
        drop(counts);
        if !is_first {
            return Fault::None;
        }
        // Each waits for the other to be there.
        if point == FaultPoint::Decode {
            to_loop.send(()).unwrap();
            of_loop.lock().unwrap().recv_timeout(FORGOTTEN).unwrap();
        } else {
            of_finisher.lock().unwrap().recv_timeout(FORGOTTEN).unwrap();
            to_finisher.send(()).unwrap();
        }
        if is_guilty { Fault::OutOfMemory } else { Fault::None }
    });
    let events = run_together(&jobs, EngineOptions { fault: Some(hook), ..EngineOptions::default() }, |_, _| {});
    assert_eq!(failed(&events), []);
    assert_told_in_order(&events, &jobs);
    for (id, request) in &jobs {
        assert!(pictures(&events)[&(*id, 0)] == alone(request)[0]);
    }
    *passed.lock().unwrap()
}

#[test]
fn what_runs_out_of_memory_beside_other_work_is_tried_once_more_without() {
    assert_eq!(out_of_memory_beside_other_work(FaultPoint::Decode), (2, 2));
    assert_eq!(out_of_memory_beside_other_work(FaultPoint::Evaluate { step: 0, samples: 0 }), (1, 3));
}

#[test]
fn a_job_that_is_cancelled_while_its_picture_is_decoded_has_one_end() {
    let jobs = [of_steps(1, 2), of_steps(2, 9)];
    let (leaving, long) = (jobs[0].0, jobs[1].0);
    let (fault, let_go) = held(leaving);
    let mut steps_after = 0;
    let options = EngineOptions { fault: Some(fault), ..EngineOptions::default() };
    let events = run_together(&jobs, options, |handle, event| match event {
        EngineEvent::Progress { job, step: 2, .. } if *job == leaving => handle.cancel(leaving),
        EngineEvent::Progress { job, .. } if *job == long => {
            steps_after += 1;
            // The cancel has been heeded by then: commands go before steps.
            if steps_after == 9 {
                let_go();
            }
        }
        _ => {}
    });
    assert!(events.iter().any(|event| matches!(event, EngineEvent::Cancelled { job } if *job == leaving)));
    assert_told_in_order(&events, &jobs);
    assert!(pictures(&events)[&(long, 0)] == alone(&jobs[1].1)[0]);
}

/// A model that has previews: by a tiny autoencoder.
fn with_previews() -> Arc<dyn Pipeline> {
    let changes = Changes { vae_tiny: Some(fixtures().join("taesd")), ..Changes::default() };
    let source = ModelSource { changes, ..ModelSource::at("tiny-sd2", fixtures().join("tiny-sd2")) };
    pipelines::load(&source, DeviceSpec::Cpu).unwrap()
}

fn seen(pipeline: &Arc<dyn Pipeline>, seed: u64, steps: i64) -> (JobId, GenerationRequest) {
    let draft = RequestDraft { steps: Some(steps), width: Some(32), height: Some(32), ..draft("a house", seed) };
    (JobId::generate(), checked(draft, pipeline.as_ref()))
}

#[test]
fn previews_are_left_out_while_pictures_wait() {
    let pipeline = with_previews();
    let jobs = [seen(&pipeline, 1, 1), seen(&pipeline, 2, 40)];
    let (short, long) = (jobs[0].0, jobs[1].0);
    let (fault, let_go) = held(short);
    let options = EngineOptions { fault: Some(fault), preview_every: 1, ..EngineOptions::default() };
    let events = run_together_with(
        |_| pipeline.clone(),
        &jobs,
        options,
        |_, event| {
            if matches!(event, EngineEvent::Progress { job, step: 40, .. } if *job == long) {
                let_go();
            }
        },
    );
    let previews = events.iter().filter(|event| matches!(event, EngineEvent::Preview { .. })).count();
    // The first may have been made before the picture was begun; then those that were waiting when too many did.
    assert!((16..=17).contains(&previews), "{previews}");
    assert_told_in_order(&events, &jobs);
}

#[test]
fn a_preview_beside_the_loop_is_the_one_made_at_once() {
    let pipeline = with_previews();
    let (id, request) = seen(&pipeline, 3, 6);
    let options = EngineOptions { preview_every: 2, ..EngineOptions::default() };
    let look = |event: &EngineEvent| match event {
        EngineEvent::Preview { step, picture, .. } => Some((*step, picture.pixels().to_vec())),
        _ => None,
    };
    let beside = run_together_with(|_| pipeline.clone(), &[(id, request.clone())], options.clone(), |_, _| {});
    let at_once = Arc::new(Mutex::new(Vec::new()));
    let told = at_once.clone();
    draw(pipeline, request, options, move |event| told.lock().unwrap().extend(look(event))).unwrap();
    let beside: Vec<_> = beside.iter().filter_map(look).collect();
    assert_eq!(beside, *at_once.lock().unwrap());
    assert_eq!(beside.len(), 2);
}

/// The second pass begins with the first's picture, enlarged: the autoencoder runs both ways between them.
fn enlarged(seed: u64, steps: i64) -> (JobId, GenerationRequest) {
    let hires = HiresDraft { scale: Some(2.0), upscaler: Some("lanczos".to_owned()), ..HiresDraft::default() };
    job(RequestDraft { steps: Some(steps), hires: Some(hires), ..draft("a house", seed) })
}

#[test]
fn a_second_pass_begins_beside_the_loop_and_draws_the_same() {
    // The first is alone aboard while it is between its passes; others are not.
    for jobs in [vec![enlarged(1, 3)], vec![enlarged(1, 2), of_steps(2, 6), enlarged(3, 4)]] {
        let events = run_together(&jobs, EngineOptions::default(), |_, _| {});
        assert_told_in_order(&events, &jobs);
        for (id, request) in &jobs {
            assert!(pictures(&events)[&(*id, 0)] == alone(request)[0]);
        }
    }
}

#[test]
fn a_job_that_is_cancelled_between_its_passes_has_one_end() {
    // The picture before it holds the finisher: the cancel comes while the second waits there.
    let jobs = [of_steps(1, 1), enlarged(2, 2), of_steps(3, 9)];
    let (first, leaving, long) = (jobs[0].0, jobs[1].0, jobs[2].0);
    let (fault, let_go) = held(first);
    let options = EngineOptions { fault: Some(fault), ..EngineOptions::default() };
    let events = run_together(&jobs, options, |handle, event| match event {
        EngineEvent::Progress { job, step: 2, .. } if *job == leaving => handle.cancel(leaving),
        EngineEvent::Progress { job, step: 9, .. } if *job == long => let_go(),
        _ => {}
    });
    assert!(events.iter().any(|event| matches!(event, EngineEvent::Cancelled { job } if *job == leaving)));
    assert!(!pictures(&events).contains_key(&(leaving, 0)));
    assert_told_in_order(&events, &jobs);
}
