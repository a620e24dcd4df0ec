//! What a histogram says in a few numbers.

use prometheus::Histogram;
use prometheus::core::Collector;
use serde::Serialize;

/// A histogram of seconds at a glance, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Distribution {
    /// Values counted since the process started.
    pub count: u64,
    /// Of all of them; 0 where there are none.
    pub mean_ms: f64,
    /// Not exceeded by 99 of 100, read off the histogram's buckets as Prometheus' `histogram_quantile` does; 0 where there are
    /// none.
    pub p99_ms: f64,
}

impl Distribution {
    /// Of a histogram of seconds.
    pub fn of(histogram: &Histogram) -> Self {
        let (count, sum) = (histogram.get_sample_count(), histogram.get_sample_sum());
        let mean_ms = if count == 0 { 0.0 } else { sum / count as f64 * 1e3 };
        Self { count, mean_ms, p99_ms: quantile(histogram, 0.99) * 1e3 }
    }
}

/// Within a bucket values are taken to be spread evenly; beyond the last bound, to be that bound.
fn quantile(histogram: &Histogram, share: f64) -> f64 {
    if histogram.get_sample_count() == 0 {
        return 0.0;
    }
    let (mut from, mut below) = (0.0, 0);
    let families = histogram.collect();
    let metrics = families.iter().flat_map(|family| family.get_metric());
    for metric in metrics {
        let told = metric.get_histogram();
        let wanted = share * told.get_sample_count() as f64;
        for bucket in told.get_bucket() {
            let (to, count) = (bucket.upper_bound(), bucket.cumulative_count());
            if count > below && count as f64 >= wanted {
                let within = (wanted - below as f64) / (count - below) as f64;
                return from + (to - from) * within;
            }
            (from, below) = (to, count);
        }
    }
    from
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::HistogramOpts;

    fn histogram(values: impl IntoIterator<Item = f64>) -> Histogram {
        let made = Histogram::with_opts(HistogramOpts::new("gap", "a gap").buckets(vec![0.001, 0.01, 0.1]));
        let histogram = made.expect("a histogram");
        values.into_iter().for_each(|value| histogram.observe(value));
        histogram
    }

    #[test]
    fn nothing_counted_is_zero() {
        let told = Distribution::of(&histogram([]));
        assert_eq!(told, Distribution { count: 0, mean_ms: 0.0, p99_ms: 0.0 });
    }

    #[test]
    fn the_99th_of_a_hundred_lies_in_its_bucket() {
        let told = Distribution::of(&histogram((0..98).map(|_| 0.0005).chain([0.05, 0.05])));
        assert_eq!(told.count, 100);
        assert!((told.mean_ms - 1.49).abs() < 1e-9, "{told:?}");
        // The first half of the bucket from 10 to 100 ms.
        assert!((told.p99_ms - 55.0).abs() < 1e-9, "{told:?}");
    }

    #[test]
    fn what_lies_beyond_the_last_bound_is_told_as_that_bound() {
        assert!((Distribution::of(&histogram([5.0])).p99_ms - 100.0).abs() < 1e-9);
    }
}
