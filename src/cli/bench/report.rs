//! What a load came to, for people and for programs.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use super::client::Drawn;
use super::load::{Done, LoadShape};
use super::server_side::Batches;

/// A load and what came of it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    url: String,
    load: LoadShape,
    /// From the first submission to the last end.
    seconds: f64,
    jobs: Jobs,
    /// Of the jobs that succeeded.
    pictures: u64,
    pictures_per_second: f64,
    /// From a job's submission (open loop: from when it was due) to the knowledge of its end.
    latency_ms: Option<Spread>,
    /// To the first step, of the jobs that were watched.
    first_progress_ms: Option<Spread>,
    /// From acceptance to the start, by the server's clock.
    queued_ms: Option<Spread>,
    /// Where the jobs' time went, by the server's clock: means.
    stages_ms: Option<Stages>,
    /// What the server counted; absent where it shows no metrics.
    batches: Option<Batches>,
}

#[derive(Debug, Default, Serialize)]
struct Jobs {
    succeeded: u64,
    /// Jobs that did not succeed, by kind.
    errors: BTreeMap<String, u64>,
    /// Submissions answered 429 or 503, by kind. A closed loop sends them again, an open loop does not.
    refused: BTreeMap<String, u64>,
}

#[derive(Debug, Serialize)]
struct Stages {
    encode: f64,
    denoise: f64,
    decode: f64,
    store: f64,
}

/// A distribution; percentiles by nearest rank.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    pub count: usize,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub max: f64,
}

impl Spread {
    /// `None` of nothing.
    fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let max = *values.last()?;
        let count = values.len();
        let rank = |percent: usize| values[(count * percent).div_ceil(100).max(1) - 1];
        let mean = values.iter().sum::<f64>() / count as f64;
        Some(Self { count, mean, p50: rank(50), p90: rank(90), p95: rank(95), p99: rank(99), max })
    }
}

impl Report {
    pub(super) fn new(url: String, load: LoadShape, done: &Done, batches: Option<Batches>) -> Self {
        let drawn: Vec<&Drawn> = done.records.iter().filter_map(|record| record.end.as_ref().ok()).collect();
        let mut jobs = Jobs { succeeded: drawn.len() as u64, refused: done.refused.clone(), errors: BTreeMap::new() };
        for kind in done.records.iter().filter_map(|record| record.end.as_ref().err()) {
            *jobs.errors.entry(kind.clone()).or_default() += 1;
        }
        let successful = || done.records.iter().filter(|record| record.end.is_ok());
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
        let mean = |of: &dyn Fn(&Drawn) -> f64| drawn.iter().map(|drawn| of(drawn)).sum::<f64>() / drawn.len() as f64;
        let stages = || Stages {
            encode: mean(&|drawn| drawn.encode_ms),
            denoise: mean(&|drawn| drawn.denoise_ms),
            decode: mean(&|drawn| drawn.decode_ms),
            store: mean(&|drawn| drawn.store_ms),
        };
        let (seconds, pictures) = (done.took.as_secs_f64(), drawn.iter().map(|drawn| drawn.pictures).sum::<u64>());
        Self {
            url,
            load,
            seconds,
            pictures,
            pictures_per_second: pictures as f64 / seconds,
            latency_ms: Spread::of(successful().map(|record| ms(record.latency))),
            first_progress_ms: Spread::of(successful().filter_map(|record| record.first_progress).map(ms)),
            queued_ms: Spread::of(drawn.iter().map(|drawn| drawn.queued_ms)),
            stages_ms: (!drawn.is_empty()).then(stages),
            jobs,
            batches,
        }
    }

    pub(super) fn succeeded(&self) -> u64 {
        self.jobs.succeeded
    }

    pub(super) fn json(&self) -> Result<String, String> {
        serde_json::to_string_pretty(self).map_err(|error| error.to_string())
    }

    /// For people.
    pub(super) fn table(&self) -> String {
        let mut text = match self.load {
            LoadShape::Closed { concurrency, jobs } => {
                format!("{}: closed loop, {concurrency} clients, {jobs} jobs\n", self.url)
            }
            LoadShape::Open { per_second, seconds, .. } => {
                format!("{}: open loop, {per_second} jobs a second for {seconds} s\n", self.url)
            }
        };
        let Jobs { succeeded, errors, refused } = &self.jobs;
        let mut line = |words: std::fmt::Arguments<'_>| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{words}");
        };
        line(format_args!("{succeeded} jobs succeeded, {} pictures in {:.2} s", self.pictures, self.seconds));
        line(format_args!("{:.3} pictures a second", self.pictures_per_second));
        for (kind, count) in errors {
            line(format_args!("{count} jobs did not succeed: {kind}"));
        }
        for (kind, count) in refused {
            line(format_args!("{count} submissions refused: {kind}"));
        }
        let names = ["count", "mean", "p50", "p90", "p95", "p99", "max"];
        line(format_args!(""));
        line(format_args!("{:<18}{}", "milliseconds", names.map(|name| format!("{name:>10}")).concat()));
        let spreads =
            [("latency", &self.latency_ms), ("first step", &self.first_progress_ms), ("queued", &self.queued_ms)];
        for (name, spread) in spreads {
            let Some(Spread { count, mean, p50, p90, p95, p99, max }) = spread else { continue };
            let values = [mean, p50, p90, p95, p99, max].map(|value| format!("{value:>10.1}")).concat();
            line(format_args!("{name:<18}{count:>10}{values}"));
        }
        if let Some(Stages { encode, denoise, decode, store }) = &self.stages_ms {
            line(format_args!(
                "\nmeans of a job: text {encode:.1}, steps {denoise:.1}, decoding {decode:.1}, storing {store:.1} ms"
            ));
        }
        if let Some(batches) = &self.batches {
            line(format_args!(
                "{} forwards of {:.2} pictures ({:.2} rows, {:.2} jobs) and {:.1} ms in the mean; {} mixed",
                batches.count,
                batches.mean_pictures,
                batches.mean_rows,
                batches.mean_jobs,
                batches.mean_step_ms,
                batches.mixed,
            ));
            for class in &batches.pictures {
                let name = match class.to {
                    Some(to) if to == class.from => to.to_string(),
                    Some(to) => format!("{} to {to}", class.from),
                    None => format!("{} or more", class.from),
                };
                line(format_args!("{:>8} forwards of {name}", class.forwards));
            }
        }
        text.trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let spread = Spread::of((1..=200).rev().map(f64::from)).unwrap();
        let expected = Spread { count: 200, mean: 100.5, p50: 100.0, p90: 180.0, p95: 190.0, p99: 198.0, max: 200.0 };
        assert_eq!(spread, expected);
        let one = Spread::of([7.0]).unwrap();
        assert_eq!((one.p50, one.p99, one.max), (7.0, 7.0, 7.0));
        assert!(Spread::of([]).is_none());
    }
}
