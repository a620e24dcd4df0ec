//! Models that jobs bring with them.

use std::sync::{Arc, Mutex};

use darkroom::diffusion::engine::{EngineEvent, EngineJob, EngineOptions, StepLoop};
use darkroom::diffusion::pipelines::Pipeline;
use darkroom::domain::{JobId, QueuePlace};

use crate::support::drafts::{checked, draft, pipeline};

#[test]
fn the_engine_lets_go_of_them_before_it_tells_of_the_last_jobs_end() {
    let tiny = pipeline("tiny-sd");
    let (weak, ends) = (Arc::downgrade(&tiny), Arc::new(Mutex::new(Vec::new())));
    let told = ends.clone();
    let sink = Arc::new(move |event| {
        let end = match event {
            EngineEvent::Finished { .. } => "finished",
            EngineEvent::Failed { .. } => "failed",
            EngineEvent::Cancelled { .. } => "cancelled",
            _ => return,
        };
        told.lock().unwrap().push((end, weak.strong_count()));
    });
    let mut engine = StepLoop::new(EngineOptions::default(), sink);
    let admit = |engine: &mut StepLoop, steps: i64, pipelines: Vec<Arc<dyn Pipeline>>| {
        let mut draft = draft("a cat", 1);
        draft.steps = Some(steps);
        let (id, request) = (JobId::generate(), Arc::new(checked(draft, &*tiny)));
        let place = QueuePlace { rank_ms: 0, id };
        engine.admit(&EngineJob { id, request, canvas: None, controls: Vec::new(), place, pipelines, parked: None });
        id
    };
    let brought = || vec![tiny.clone()];
    admit(&mut engine, 2, brought());
    admit(&mut engine, 3, brought());
    let cancelled = admit(&mut engine, 9, brought());
    while ends.lock().unwrap().len() < 2 {
        engine.tick();
    }
    engine.cancel(cancelled);
    admit(&mut engine, 2, Vec::new());
    let ends = ends.lock().unwrap().clone();
    assert_eq!(ends.iter().map(|(end, _)| *end).collect::<Vec<_>>(), ["finished", "finished", "cancelled", "failed"]);
    let held: Vec<usize> = ends.iter().map(|(_, held)| *held).collect();
    // Ours is one, and each job aboard has one.
    assert_eq!(held, [3, 2, 1, 1], "nobody brought it for the last");
}
