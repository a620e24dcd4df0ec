//! Forwards before the first job, so that there is something to believe of what they cost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::StepLoop;
use crate::diffusion::batching::{BatchKey, Branch, SampleId, SampleMeta};
use crate::diffusion::engine::forward::forward;
use crate::diffusion::engine::prepare::{Reader, pass};
use crate::diffusion::engine::refusal::{Refusal, caught};
use crate::diffusion::engine::sample::{SampleState, Told};
use crate::diffusion::engine::start::Start;
use crate::diffusion::kernels::with_memory_taken;
use crate::diffusion::pipelines::{Adapted, Pipeline};
use crate::domain::{JobId, Limits, QueuePlace, RequestDraft};

/// Rows of the forwards, in order. The first of each number also pays for making room, and is not learnt from.
const ROWS: [u32; 6] = [1, 1, 2, 2, 4, 4];

impl StepLoop {
    /// Evaluates a model at its default size in one, two and four rows, until `patience` is over: no forward begins that would
    /// likely end later. A network that draws nothing without a picture (inpainting) cannot be warmed up; the log says so.
    pub fn warm_up(&mut self, pipeline: &Arc<dyn Pipeline>, patience: Duration) {
        let warmed = caught(|| self.try_warm_up(pipeline, patience));
        if let Err(Refusal { message, .. }) = warmed {
            tracing::warn!(model.id = %pipeline.info().id, reason = %message, "a model was not warmed up");
        }
    }

    fn try_warm_up(&mut self, pipeline: &Arc<dyn Pipeline>, patience: Duration) -> Result<(), Refusal> {
        let draft = RequestDraft { prompt: Some(String::new()), ..RequestDraft::default() };
        let Ok(request) = draft.validate(pipeline.info(), &Limits::default(), 0) else { return Ok(()) };
        let began = Instant::now();
        let (key, told) = pass(&Adapted::plain(pipeline.clone()), &request, (&[], 0), &mut Reader::default())?;
        let told = Arc::new(told);
        let start = Start::of(pipeline.as_ref(), &request, None).map_err(Refusal::failed)?;
        let meta = meta(&key, &told);
        let job = (JobId::generate(), 0);
        let sample = SampleState::begin(job, meta, (told, start.as_ref()), &request, pipeline.as_ref());
        let sample = sample.map_err(Refusal::failed)?;
        let mut last = Duration::ZERO;
        for rows in ROWS {
            // Twice as many rows take at most twice as long.
            if began.elapsed() + 2 * last > patience || rows > self.batcher.most_rows(&key) {
                return Ok(());
            }
            last = self.evaluate_alone(pipeline, (&key, &sample), rows)?;
        }
        Ok(())
    }

    /// One forward of so many rows, all of them this sample's, learnt from; tells how long it took.
    fn evaluate_alone(
        &mut self,
        pipeline: &Arc<dyn Pipeline>,
        (key, sample): (&Arc<BatchKey>, &SampleState),
        rows: u32,
    ) -> Result<Duration, Refusal> {
        let input = sample.network_input().map_err(Refusal::failed)?;
        let all: Vec<_> = (0..rows).map(|_| (input.clone(), sample.row(Branch::Cond))).collect();
        let began = Instant::now();
        let (output, bytes) = with_memory_taken(|| forward(pipeline.as_ref(), &all));
        output.map_err(Refusal::failed)?;
        pipeline.device().synchronize().map_err(Refusal::failed)?;
        let took = began.elapsed();
        if pipeline.device().is_cpu() {
            self.batcher.observe_bytes(key, rows, bytes);
        }
        self.learn(key, rows, (self.seconds(rows, took.as_secs_f64()), 0.0));
        Ok(took)
    }
}

/// Of a sample that no batcher hears of.
fn meta(key: &Arc<BatchKey>, told: &Told) -> SampleMeta {
    SampleMeta {
        id: SampleId(0),
        key: key.clone(),
        steps: told.steps(),
        left: told.evaluations() as u32,
        rows: 1,
        rows_now: 1,
        place: QueuePlace { rank_ms: 0, id: JobId::generate() },
    }
}
