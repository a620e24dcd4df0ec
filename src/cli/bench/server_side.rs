//! What the server counted while the load ran: `/metrics` before and after. Of the process that answers, so behind a load
//! balancer of one replica among several.

use std::collections::HashMap;

use serde::Serialize;

use super::client::Client;

/// Samples of `/metrics`, by name and labels as printed; empty where the server shows none.
#[derive(Debug, Default)]
pub(super) struct Counts(HashMap<String, f64>);

/// The forwards of the load.
#[derive(Debug, Serialize)]
pub(super) struct Batches {
    /// Forwards.
    pub count: u64,
    pub mean_pictures: f64,
    pub mean_rows: f64,
    pub mean_jobs: f64,
    /// Forwards by how many pictures they had, empty classes left out.
    pub pictures: Vec<SizeClass>,
    /// Forwards of pictures of several sizes or step counts.
    pub mixed: u64,
    /// Mean of a forward with its update, in milliseconds.
    pub mean_step_ms: f64,
}

/// Forwards of `from` to `to` pictures; `to` absent: and more.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct SizeClass {
    pub from: u64,
    pub to: Option<u64>,
    pub forwards: u64,
}

impl Counts {
    /// # Errors
    /// No connection.
    pub(super) async fn fetch(client: &Client) -> Result<Self, String> {
        Ok(client.text("/metrics").await?.map_or_else(Self::default, |text| Self::parse(&text)))
    }

    /// Prometheus' text format, as our server writes it: no time stamps.
    fn parse(text: &str) -> Self {
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Self(text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
    }

    fn get(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or(0.0)
    }

    /// What was counted between two looks; `None` where no forward was.
    pub(super) fn since(&self, before: &Self) -> Option<Batches> {
        let grown = |name: &str| self.get(name) - before.get(name);
        let count = grown("darkroom_batch_samples_count");
        if count < 1.0 {
            return None;
        }
        let mean = |name: &str| grown(&format!("{name}_sum")) / grown(&format!("{name}_count")).max(1.0);
        Some(Batches {
            count: count as u64,
            mean_pictures: mean("darkroom_batch_samples"),
            mean_rows: mean("darkroom_batch_rows"),
            mean_jobs: mean("darkroom_batch_jobs"),
            pictures: self.classes("darkroom_batch_samples", before),
            mixed: grown("darkroom_batches_mixed_total") as u64,
            mean_step_ms: mean("darkroom_step_seconds") * 1e3,
        })
    }

    /// A histogram's growth, class by class. Its buckets are cumulative.
    fn classes(&self, name: &str, before: &Self) -> Vec<SizeClass> {
        let prefix = format!("{name}_bucket{{le=\"");
        let bound = |sample: &String| Some(sample.strip_prefix(&prefix)?.strip_suffix("\"}")?.to_owned());
        let mut buckets: Vec<(Option<u64>, f64)> = self
            .0
            .keys()
            .filter_map(|sample| Some((bound(sample)?.parse().ok(), self.get(sample) - before.get(sample))))
            .collect();
        // The one without a bound, `+Inf`, is the last.
        buckets.sort_by_key(|(to, _)| to.unwrap_or(u64::MAX));
        let (mut from, mut below, mut classes) = (1, 0.0, Vec::new());
        for (to, cumulative) in buckets {
            if cumulative > below {
                classes.push(SizeClass { from, to, forwards: (cumulative - below) as u64 });
            }
            from = to.map_or(from, |to| to + 1);
            below = cumulative;
        }
        classes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(buckets: [u64; 4], sum: u64) -> Counts {
        let [one, two, four, all] = buckets;
        Counts::parse(&format!(
            "# TYPE darkroom_batch_samples histogram\n\
             darkroom_batch_samples_bucket{{le=\"1\"}} {one}\n\
             darkroom_batch_samples_bucket{{le=\"2\"}} {two}\n\
             darkroom_batch_samples_bucket{{le=\"4\"}} {four}\n\
             darkroom_batch_samples_bucket{{le=\"+Inf\"}} {all}\n\
             darkroom_batch_samples_sum {sum}\n\
             darkroom_batch_samples_count {all}\n"
        ))
    }

    #[test]
    fn only_what_was_counted_in_between_counts() {
        let batches = metrics([3, 3, 7, 9], 42).since(&metrics([3, 3, 3, 4], 12)).unwrap();
        assert_eq!((batches.count, batches.mean_pictures), (5, 6.0));
        let (small, large) =
            (SizeClass { from: 3, to: Some(4), forwards: 4 }, SizeClass { from: 5, to: None, forwards: 1 });
        assert_eq!(batches.pictures, [small, large]);
    }

    #[test]
    fn nothing_counted_is_nothing_told() {
        assert!(metrics([1, 1, 1, 1], 1).since(&metrics([1, 1, 1, 1], 1)).is_none());
        assert!(Counts::default().since(&Counts::default()).is_none(), "a server without /metrics");
    }
}
