//! When jobs will have ended, worked out from what forwards are believed to cost and what stands before them.
//!
//! A size's work is counted in row-steps: rows of a forward times steps. A device does as many of them a second as a forward of the
//! rows that it will have has rows, over the seconds that it takes. Jobs of one size share forwards; those of others that stand
//! before a job are done first. Left out: jobs yet to come that will stand before it, samplers that evaluate more than once
//! a step, that a second pass is of another size, and that jobs which wait for the pictures of an identical one are not drawn.

use crate::dispatch::hub::{Belief, Outlook};
use crate::dispatch::jobs::{Ahead, WaitingWork};
use crate::domain::{BatchingPolicy, GroupKey, Job, QueuePlace, SizeKey};

/// What is known of the way ahead at one moment.
#[derive(Default)]
pub(super) struct Forecast {
    pub(super) outlook: Outlook,
    /// Rows of all jobs waiting.
    pub(super) waiting_rows: u64,
}

/// Work of one size that comes before a job.
#[derive(Clone, Copy, Debug, Default)]
struct Before {
    rows: f64,
    /// In full, and what is left of it.
    row_steps: f64,
    left: f64,
}

/// What of a job is to be done.
#[derive(Clone, Copy)]
struct Own {
    rows: f64,
    /// Of each picture, and of all their rows.
    steps: f64,
    row_steps: f64,
}

impl Forecast {
    /// Seconds until a job that runs has ended; `None` while nothing of its model was measured.
    pub(super) fn running(&self, job: &Job) -> Option<f64> {
        let Some(aboard) = self.outlook.aboard.iter().find(|aboard| aboard.job == job.id) else {
            // Drawn by another process, which alone knows how far it is.
            let place = QueuePlace { rank_ms: i64::MIN, id: job.id };
            return self.waiting(job, &Ahead { place, work: Vec::new() });
        };
        let own =
            Own { rows: f64::from(aboard.rows), steps: f64::from(aboard.steps_left), row_steps: aboard.row_steps_left };
        let belief = self.belief(&aboard.size)?;
        let beside: f64 =
            self.outlook.aboard.iter().filter(|it| it.size == aboard.size).map(|it| f64::from(it.rows)).sum();
        let rows = (beside / self.workers()).clamp(own.rows.min(self.target(&belief)), self.target(&belief));
        Some(self.others(&aboard.size, aboard.place, &[])? + self.run(&belief, own, rows))
    }

    /// Seconds until a job that waits behind this work has ended; `None` while nothing of its model was measured.
    pub(super) fn waiting(&self, job: &Job, ahead: &Ahead) -> Option<f64> {
        let request = &job.request;
        let size = GroupKey::of(request).size();
        let (rows, steps) = (f64::from(request.rows()), f64::from(request.steps_taken()));
        let own = Own { rows, steps, row_steps: rows * steps };
        self.whole(&size, ahead.place, own, &ahead.work)
    }

    fn whole(&self, size: &SizeKey, place: QueuePlace, own: Own, ahead: &[WaitingWork]) -> Option<f64> {
        let (start, rows) = self.start(size, place, own, ahead)?;
        Some(start + self.run(&self.belief(size)?, own, rows))
    }

    /// Seconds until the first of the waiting jobs begins, and with it a place in the queue is free; `None` while nothing was
    /// measured.
    pub(super) fn place_free(&self, waiting: &[WaitingWork]) -> Option<f64> {
        let most = waiting.iter().max_by_key(|work| work.row_steps)?;
        let jobs = most.jobs.max(1) as f64;
        let row_steps = most.row_steps as f64 / jobs;
        let rows = most.rows as f64 / jobs;
        let own = Own { rows, steps: row_steps / rows.max(1.0), row_steps };
        let last = QueuePlace { rank_ms: i64::MAX, id: uuid::Uuid::max().into() };
        Some(self.start(&most.size, last, own, &[])?.0)
    }

    /// Seconds until a job at this place comes aboard, and the rows that it will be one of.
    fn start(&self, size: &SizeKey, place: QueuePlace, own: Own, ahead: &[WaitingWork]) -> Option<(f64, f64)> {
        let belief = self.belief(size)?;
        let (target, workers) = (self.target(&belief), self.workers());
        let others = self.others(size, place, ahead)?;
        let alike = self.alike(size, place, ahead);
        let beside = alike.rows / workers;
        if beside + own.rows <= target {
            return Some((others, beside + own.rows));
        }
        // When it comes aboard, those beside it have half of their steps to go on average.
        let begun = (target - own.rows).max(0.0).min(beside) * alike.row_steps / alike.rows.max(1.0) / 2.0;
        let row_steps = (alike.left / workers - begun).max(0.0);
        Some((others + row_steps * self.row_step(&belief, target), target))
    }

    /// Seconds of all work of other sizes that stands before this place.
    fn others(&self, size: &SizeKey, place: QueuePlace, ahead: &[WaitingWork]) -> Option<f64> {
        let aboard = self.outlook.aboard.iter().filter(|it| it.place < place).map(|it| &it.size);
        let mut sizes: Vec<&SizeKey> = aboard.chain(ahead.iter().map(|it| &it.size)).filter(|it| *it != size).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let seconds = |other: &SizeKey| {
            let belief = self.belief(other)?;
            let work = self.alike(other, place, ahead);
            let rows = (work.rows / self.workers()).clamp(1.0, self.target(&belief));
            Some(work.left / self.workers() * self.row_step(&belief, rows))
        };
        sizes.into_iter().map(seconds).sum()
    }

    /// The work of one size that stands before this place.
    fn alike(&self, size: &SizeKey, place: QueuePlace, ahead: &[WaitingWork]) -> Before {
        let mut sum = Before::default();
        for it in self.outlook.aboard.iter().filter(|it| it.size == *size && it.place < place) {
            sum.rows += f64::from(it.rows);
            sum.row_steps += f64::from(it.rows) * f64::from(it.steps);
            sum.left += it.row_steps_left;
        }
        for it in ahead.iter().filter(|it| it.size == *size) {
            sum.rows += it.rows as f64;
            sum.row_steps += it.row_steps as f64;
            sum.left += it.row_steps as f64;
        }
        sum
    }

    /// Seconds of a job's own steps in forwards of so many rows, and of what follows them.
    fn run(&self, belief: &Belief, own: Own, rows: f64) -> f64 {
        let forwards = own.steps.max(own.row_steps / rows.max(1.0));
        forwards * rows.max(1.0) * self.row_step(belief, rows) + belief.after_steps.unwrap_or(0.0)
    }

    /// Seconds of one row's step in forwards of so many rows.
    fn row_step(&self, belief: &Belief, rows: f64) -> f64 {
        let rows = rows.max(1.0);
        (1.0 + self.outlook.overhead) * (belief.cost.fixed + belief.cost.per_row * rows) / rows
    }

    /// Rows that forwards will have while the queue is as long as it is.
    fn target(&self, belief: &Belief) -> f64 {
        let aboard: f64 = self.outlook.aboard.iter().map(|it| f64::from(it.rows)).sum();
        let here = (aboard + self.waiting_rows as f64) / self.workers();
        let rows = match belief.policy {
            BatchingPolicy::Continuous => belief.cost.rows(here as u32).min(belief.most_rows),
            BatchingPolicy::Grouped => belief.most_rows,
        };
        f64::from(rows.max(1))
    }

    fn workers(&self) -> f64 {
        f64::from(self.outlook.workers.max(1))
    }

    /// Of a size, else of the nearest one of its model, each row in proportion to the pixels.
    fn belief(&self, size: &SizeKey) -> Option<Belief> {
        let beliefs = &self.outlook.beliefs;
        if let Some(own) = beliefs.get(size) {
            return Some(own.clone());
        }
        let pixels = |size: &SizeKey| u64::from(size.width) * u64::from(size.height);
        let same_model = beliefs.iter().filter(|(known, _)| known.model == size.model);
        let (known, belief) = same_model.min_by_key(|(known, _)| pixels(known).abs_diff(pixels(size)))?;
        let mut belief = belief.clone();
        belief.cost.per_row *= pixels(size) as f64 / pixels(known).max(1) as f64;
        Some(belief)
    }
}

#[cfg(test)]
mod tests;
