//! Everything `/metrics` shows. One field a metric; the text given to its constructor is its help.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// The process's metrics, in a registry of their own.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Jobs accepted.
    pub jobs_submitted: IntCounter,
    /// Jobs that were given an identical one's pictures, by `how`: `stored` ones, or those of one `in_flight` when they came.
    pub reused: IntCounterVec,
    /// Jobs ended, by `status`.
    pub jobs_ended: IntCounterVec,
    /// Jobs waiting.
    pub queue_depth: IntGauge,
    /// Jobs with a worker.
    pub jobs_running: IntGauge,
    /// Seconds from acceptance to the start.
    pub queue_wait: Histogram,
    /// Seconds from acceptance to the end.
    pub job_seconds: Histogram,
    /// Rows of each forward.
    pub batch_rows: Histogram,
    /// Pictures in each forward.
    pub batch_samples: Histogram,
    /// Jobs in each forward.
    pub batch_jobs: Histogram,
    /// Forwards, by `model`, picture size and `steps`; counted by [`Metrics::count_batch`].
    batches: IntCounterVec,
    batch_groups: Mutex<HashSet<BatchGroup>>,
    /// Forwards whose pictures differ in size or step count: 0 under the policy `grouped`.
    pub batches_mixed: IntCounter,
    /// Seconds of each forward with its update.
    pub step_seconds: Histogram,
    /// How far each forward was off the seconds expected of it, as a share of what it took.
    pub forward_error: Histogram,
    /// Real time of each job over the time promised at its acceptance.
    pub eta_ratio: Histogram,
    /// Seconds from a worker's taking a job to its coming to the engine.
    pub prepare_seconds: Histogram,
    /// Seconds from the end of a forward to the begin of the next, while samples are aboard.
    pub step_gap: Histogram,
    /// Prompts that were to be encoded, by `outcome`: `hit` where one lately encoded was found, `miss` else.
    pub prompts: IntCounterVec,
    /// Seconds of decoding, a job.
    pub decode_seconds: Histogram,
    /// Requests, by `method`, `route` and `status`.
    pub http_requests: IntCounterVec,
    /// Seconds to the head of the response, by `route`.
    pub http_seconds: HistogramVec,
    /// Open event streams.
    pub sse_streams: IntGauge,
    /// Submissions refused, by `reason`.
    pub rejected: IntCounterVec,
    /// Workers, by `state`.
    pub workers: IntGaugeVec,
    /// Loads of models, by `model` and `outcome`.
    pub model_loads: IntCounterVec,
    /// Seconds of each load that succeeded.
    pub model_load_seconds: Histogram,
    /// Models dropped to make room for another, by `model`.
    pub model_evictions: IntCounterVec,
    /// Memory of each loaded model's weights, by `model` and `device`.
    pub model_bytes: IntGaugeVec,
    /// Jobs taken from workers that were lost.
    pub rescued: IntCounter,
    /// Engines that failed, by `kind`: hung, ended, device.
    pub engine_failures: IntCounterVec,
    /// Jobs handed back with where they stood.
    pub parked: IntCounter,
    /// Jobs that went on where they had been parked.
    pub resumed: IntCounter,
    /// Failed store operations.
    pub store_errors: IntCounter,
}

/// From a millisecond to ten minutes.
const SECONDS: [f64; 16] =
    [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0];
const ERRORS: [f64; 8] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0];
const RATIOS: [f64; 10] = [0.25, 0.5, 0.7, 0.8, 0.9, 1.1, 1.25, 1.5, 2.0, 4.0];
/// From ten microseconds to ten seconds.
const GAPS: [f64; 19] =
    [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
const ROWS: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// Clients choose sizes and step counts: without a bound they could fill the server's memory, and its scraper's.
const MAX_BATCH_GROUPS: usize = 256;

/// What the pictures of a forward have in common under the policy `grouped`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BatchGroup {
    /// The model's id.
    pub model: String,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// Of each picture.
    pub steps: u32,
}

/// Registers what it makes.
struct Maker(Registry);

impl Maker {
    fn keep<C: prometheus::core::Collector + Clone + 'static>(
        &self,
        made: prometheus::Result<C>,
    ) -> prometheus::Result<C> {
        let made = made?;
        self.0.register(Box::new(made.clone()))?;
        Ok(made)
    }
    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.keep(IntCounter::new(name, help))
    }
    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
        self.keep(IntCounterVec::new(Opts::new(name, help), labels))
    }
    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.keep(IntGauge::new(name, help))
    }
    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
        self.keep(IntGaugeVec::new(Opts::new(name, help), labels))
    }
    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Histogram> {
        self.keep(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
    }
}

impl Metrics {
    /// All metrics at zero.
    ///
    /// # Errors
    /// Two metrics of one name: a bug.
    pub fn new() -> prometheus::Result<Self> {
        let make = Maker(Registry::new());
        let seconds = HistogramOpts::new("darkroom_http_seconds", "Seconds to the head of the response.")
            .buckets(SECONDS.to_vec());
        Ok(Self {
            jobs_submitted: make.counter("darkroom_jobs_submitted_total", "Jobs accepted.")?,
            reused: make.counters(
                "darkroom_reused_jobs_total",
                "Jobs that were given an identical one's pictures.",
                &["how"],
            )?,
            jobs_ended: make.counters("darkroom_jobs_total", "Jobs ended, by status.", &["status"])?,
            queue_depth: make.gauge("darkroom_queue_depth", "Jobs waiting.")?,
            jobs_running: make.gauge("darkroom_jobs_running", "Jobs with a worker.")?,
            queue_wait: make.histogram("darkroom_queue_wait_seconds", "From acceptance to the start.", &SECONDS)?,
            job_seconds: make.histogram("darkroom_job_seconds", "From acceptance to the end.", &SECONDS)?,
            batch_rows: make.histogram("darkroom_batch_rows", "Rows of each forward.", &ROWS)?,
            batch_samples: make.histogram("darkroom_batch_samples", "Pictures in each forward.", &ROWS)?,
            batch_jobs: make.histogram("darkroom_batch_jobs", "Jobs in each forward.", &ROWS)?,
            batches: make.counters(
                "darkroom_batches_total",
                "Forwards, by model, size and steps.",
                &["model", "width", "height", "steps"],
            )?,
            batch_groups: Mutex::default(),
            batches_mixed: make
                .counter("darkroom_batches_mixed_total", "Forwards of different sizes or step counts.")?,
            step_seconds: make.histogram("darkroom_step_seconds", "Each forward with its update.", &SECONDS)?,
            forward_error: make.histogram(
                "darkroom_forward_error_ratio",
                "How far each forward was off the seconds expected of it, as a share of what it took.",
                &ERRORS,
            )?,
            eta_ratio: make.histogram(
                "darkroom_eta_ratio",
                "Real time of each job over the time promised at its acceptance (eta_ms).",
                &RATIOS,
            )?,
            prepare_seconds: make.histogram(
                "darkroom_prepare_seconds",
                "From a worker's taking a job to its coming to the engine.",
                &SECONDS,
            )?,
            step_gap: make.histogram(
                "darkroom_step_gap_seconds",
                "From the end of a forward to the begin of the next, while pictures are aboard.",
                &GAPS,
            )?,
            prompts: make.counters(
                "darkroom_prompt_cache_total",
                "Prompts looked for among those lately encoded.",
                &["outcome"],
            )?,
            decode_seconds: make.histogram("darkroom_decode_seconds", "Decoding, a job.", &SECONDS)?,
            http_requests: make.counters(
                "darkroom_http_requests_total",
                "Requests.",
                &["method", "route", "status"],
            )?,
            http_seconds: make.keep(HistogramVec::new(seconds, &["route"]))?,
            sse_streams: make.gauge("darkroom_sse_streams", "Open event streams.")?,
            rejected: make.counters("darkroom_rejected_total", "Submissions refused, by reason.", &["reason"])?,
            workers: make.gauges("darkroom_workers", "Workers, by state.", &["state"])?,
            model_loads: make.counters(
                "darkroom_model_loads_total",
                "Loads of models, by outcome.",
                &["model", "outcome"],
            )?,
            model_load_seconds: make.histogram("darkroom_model_load_seconds", "Each load of a model.", &SECONDS)?,
            model_evictions: make.counters(
                "darkroom_model_evictions_total",
                "Models dropped to make room for another.",
                &["model"],
            )?,
            model_bytes: make.gauges("darkroom_model_bytes", "Memory of loaded weights.", &["model", "device"])?,
            rescued: make.counter("darkroom_rescued_jobs_total", "Jobs taken from workers that were lost.")?,
            engine_failures: make.counters("darkroom_engine_failures_total", "Engines that failed.", &["kind"])?,
            parked: make.counter("darkroom_parked_jobs_total", "Jobs handed back with where they stood.")?,
            resumed: make.counter("darkroom_resumed_jobs_total", "Jobs that went on where they had been parked.")?,
            store_errors: make.counter("darkroom_store_errors_total", "Failed store operations.")?,
            registry: make.0,
        })
    }

    /// Counts a forward of `group`. Groups after the first 256 are counted together, under `other`.
    pub fn count_batch(&self, group: BatchGroup) {
        let labels = [group.width.to_string(), group.height.to_string(), group.steps.to_string()];
        let [width, height, steps] = labels.each_ref().map(String::as_str);
        let model = group.model.clone();
        let known = {
            let mut groups = self.batch_groups.lock().unwrap_or_else(PoisonError::into_inner);
            groups.contains(&group) || groups.len() < MAX_BATCH_GROUPS && groups.insert(group)
        };
        let labels = if known { [model.as_str(), width, height, steps] } else { ["other"; 4] };
        self.batches.with_label_values(&labels).inc();
    }

    /// In Prometheus' text format.
    ///
    /// # Errors
    /// The encoder's own.
    pub fn render(&self) -> prometheus::Result<String> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::{BatchGroup, Metrics};

    #[test]
    fn every_metric_has_a_name_of_its_own_and_is_rendered() {
        let metrics = Metrics::new().expect("no two of one name");
        metrics.jobs_submitted.inc();
        metrics.count_batch(BatchGroup { model: "pinhole".to_owned(), width: 128, height: 128, steps: 20 });
        let text = metrics.render().expect("renders");
        assert!(text.contains("darkroom_jobs_submitted_total 1"), "{text}");
        assert!(text.contains("steps=\"20\""), "{text}");
    }

    #[test]
    fn clients_cannot_make_series_without_end() {
        let metrics = Metrics::new().expect("no two of one name");
        for steps in 1..=1000 {
            metrics.count_batch(BatchGroup { model: "pinhole".to_owned(), width: 128, height: 128, steps });
        }
        let text = metrics.render().expect("renders");
        let series: Vec<&str> = text.lines().filter(|line| line.starts_with("darkroom_batches_total{")).collect();
        assert_eq!(series.len(), 257);
        assert!(series.iter().any(|line| line.contains("steps=\"other\"") && line.ends_with(" 744")), "{series:?}");
    }
}
