//! How the server does, and how well it knows.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::{Extension, Json};
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::Door;
use crate::http::errors::Result;
use crate::service::{Caller, OwnerShare, Stats};
use crate::telemetry::Distribution;

/// The server at a glance.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct StatsBody {
    /// Jobs waiting.
    queued: u64,
    /// Jobs with a worker.
    running: u64,
    /// Most jobs that may wait.
    max_queued: u64,
    /// Pictures x steps x pixels of all jobs waiting and running.
    pixel_steps_ahead: u64,
    /// Pixel-steps a second, as lately measured; null before the first forward.
    pixel_steps_per_second: Option<f64>,
    /// From the end of a forward to the begin of the next while pictures are aboard, since this process started, in milliseconds:
    /// {count, mean_ms, p99_ms}.
    #[schema(value_type = Object)]
    step_gap: Distribution,
    /// Workers of this process, by name.
    workers: BTreeMap<String, WorkerBody>,
    /// Whether this process takes nothing new.
    draining: bool,
    /// What forwards are believed to cost here, and how far that was off, by model and size; only sizes that were measured.
    forwards: Vec<ForwardsBody>,
    /// When jobs were promised to end (`eta_ms` of the answer that accepted them), against when they did.
    eta: EtaBody,
    /// By the name of their keys, for administrators of a server with keys; jobs that came without a key stand under the empty name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    owners: BTreeMap<String, OwnerBody>,
}

/// What one owner has in the queue, and was given of the devices.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct OwnerBody {
    /// Of the devices, next to the others' weights.
    weight: u32,
    /// Jobs waiting.
    queued: u64,
    /// Jobs with a worker.
    running: u64,
    /// Pictures x steps x pixels of all jobs that were drawn, since there were keys; not of those given another's pictures.
    pixel_steps: u64,
    /// The same as a part of everybody's, 0 to 1.
    share: f64,
}

impl From<OwnerShare> for OwnerBody {
    fn from(OwnerShare { weight, queued, running, pixel_steps, share }: OwnerShare) -> Self {
        Self { weight, queued, running, pixel_steps, share }
    }
}

/// A worker.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct WorkerBody {
    /// Such as `cpu`.
    device: String,
    /// `idle`, `busy`, `draining` or `failed`.
    state: &'static str,
    /// Jobs aboard.
    jobs: u32,
    /// Forwards run since it started.
    batches: u64,
    /// Engines of it that hung, ended, or lost their device, since it started.
    failures: u64,
    /// Why its device was taken out, where `state` is `failed`.
    reason: Option<String>,
}

/// What a forward of n rows of this model and size is believed to cost: `fixed + n * per_row`. A guided picture has two rows.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct ForwardsBody {
    model: String,
    /// In pixels.
    width: u32,
    /// In pixels.
    height: u32,
    fixed_ms: f64,
    per_row_ms: f64,
    /// Memory above what is there before; null where it is not measured (on a GPU).
    fixed_bytes: Option<u64>,
    per_row_bytes: Option<u64>,
    /// Most rows that a forward may have: by the settings, by the memory, and by what ran out of it.
    most_rows: u32,
    /// Forwards learnt from since the start.
    observed: u64,
    /// How far forwards were off the time expected before each, as a share of what they took: an average in which the last
    /// twenty count most; null before there was one of which something was expected.
    mean_relative_error: Option<f64>,
    /// Time from a job's last step to its end, on average: decoding and storing; null before a job ended.
    after_steps_ms: Option<f64>,
}

/// The real time of jobs over the promised one; 1 is as promised, 2 is twice as long.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct EtaBody {
    /// Jobs that are counted: the last of those that succeeded, at most 512.
    jobs: u64,
    /// Null before there was one.
    median_ratio: Option<f64>,
    /// Nine of ten jobs took at most so many times as long.
    p90_ratio: Option<f64>,
}

impl From<Stats> for StatsBody {
    fn from(stats: Stats) -> Self {
        let workers = stats.workers.into_iter().map(|(name, it)| {
            (
                name,
                WorkerBody {
                    device: it.device,
                    state: it.state.name(),
                    jobs: it.jobs,
                    batches: it.batches,
                    failures: it.failures,
                    reason: it.reason,
                },
            )
        });
        let forwards = stats.forwards.into_iter().map(|(size, belief)| ForwardsBody {
            model: size.model.to_string(),
            width: size.width,
            height: size.height,
            fixed_ms: 1e3 * belief.cost.fixed,
            per_row_ms: 1e3 * belief.cost.per_row,
            fixed_bytes: belief.memory.map(|memory| memory.fixed as u64),
            per_row_bytes: belief.memory.map(|memory| memory.per_row as u64),
            most_rows: belief.most_rows,
            observed: belief.forwards,
            mean_relative_error: belief.error,
            after_steps_ms: belief.after_steps.map(|seconds| 1e3 * seconds),
        });
        let kept = stats.promises;
        Self {
            queued: stats.queued,
            running: stats.running,
            max_queued: stats.max_queued,
            pixel_steps_ahead: stats.pixel_steps_ahead,
            pixel_steps_per_second: stats.pixel_steps_per_second,
            workers: workers.collect(),
            step_gap: stats.step_gap,
            draining: stats.draining,
            forwards: forwards.collect(),
            eta: EtaBody { jobs: kept.jobs, median_ratio: kept.median_ratio, p90_ratio: kept.p90_ratio },
            owners: BTreeMap::new(),
        }
    }
}

/// The server at a glance: queue, speed, workers, what forwards are believed to cost, and how well `eta_ms` was kept.
#[utoipa::path(get, path = "/v1/stats", tag = "operations", responses((status = 200, description = "Queue, speed and workers.", body = StatsBody)))]
pub(in crate::http) async fn stats(
    State(door): State<Door>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<StatsBody>> {
    let owners = door.service.owners(&caller).await?;
    let owners = owners.into_iter().map(|(name, share)| (name, share.into())).collect();
    Ok(Json(StatsBody { owners, ..door.service.stats().await?.into() }))
}
