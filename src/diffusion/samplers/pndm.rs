//! Pseudo numerical methods (Liu et al. 2022); diffusers `PNDMScheduler`.
//!
//! With `skip_prk_steps` (as Stable Diffusion's files have it) the linear multistep form PLMS: Adams-Bashforth of order up
//! to 4 over the outputs, whose first step is Heun's, so one evaluation more than steps. Without it three Runge-Kutta steps
//! of four evaluations each come first, and at least four steps must be asked for.
//!
//! A run that begins late evaluates what the reference's list of timesteps has left: its first and second timestep are told
//! once, the third evaluation is told the level after the one its sample is at.

use super::levels::{VpStep, finite_sigma_of};
use super::{Error, Mix, Noised, PlanRequest, PlanStep, PredictionType, Result, SamplingPlan, TrainingSchedule};

pub(super) fn plan(training: &TrainingSchedule, request: &PlanRequest) -> Result<SamplingPlan> {
    let steps = match VpStep::scheduled(training, request) {
        // The Runge-Kutta steps need levels between the visited ones, which a sigma schedule does not name.
        Some(visited) => {
            let visited = &visited[(request.skip as usize).min(visited.len() - 1)..];
            let again = visited.first().map_or((1.0, 1.0), |first| (first.from, first.to));
            linear_multistep(training, &told(visited), again)
        }
        None => {
            let grid = Grid::of(training, request)?;
            match (training.skip_prk_steps(), request.skip) {
                (true, skip) => grid.linear_multistep(skip as usize)?,
                (false, 0) => grid.runge_kutta_first(request)?,
                (false, skip) => return Err(Error::Begin { kind: request.kind, skip }),
            }
        }
    };
    Ok(SamplingPlan::new(1.0, steps))
}

/// Adams and Bashforth's weights of the outputs, the latest first.
const ADAMS: [&[f64]; 4] = [
    &[1.0],
    &[3.0 / 2.0, -1.0 / 2.0],
    &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
    &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
];

/// What the evaluations of all steps are told: the second level twice, as the reference lists them.
fn told<T: Clone>(visited: &[T]) -> Vec<T> {
    let (first, others) = visited.split_at(visited.len().min(1));
    first.iter().chain(others.first()).chain(others).cloned().collect()
}

/// PLMS over the levels its evaluations are told. The second evaluation takes the first step `again` (shares of signal from
/// and to), with the mean of the outputs at its two ends.
fn linear_multistep(training: &TrainingSchedule, told: &[VpStep], again: (f64, f64)) -> Vec<PlanStep> {
    let rule = |(index, level): (usize, &VpStep)| {
        let at = step(training, level.timestep, level.from);
        let transfer = Transfer::of(training, level.from, level.to);
        match index {
            0 => PlanStep {
                next: transfer.over_sample(ADAMS[0]),
                hold: Some(Mix::sample()),
                remember: output(),
                ends_step: told.len() == 1,
                ..at
            },
            1 => PlanStep { next: Transfer::of(training, again.0, again.1).over_held(&[0.5, 0.5]), ..at },
            _ => PlanStep { next: transfer.over_sample(ADAMS[(index - 1).min(3)]), remember: output(), ..at },
        }
    };
    told.iter().enumerate().map(rule).collect()
}

fn output() -> Option<Mix> {
    Some(Mix { output: 1.0, ..Mix::default() })
}

fn step(training: &TrainingSchedule, timestep: f64, from: f64) -> PlanStep {
    let denoised_from = training.prediction_type.denoised_vp(from.sqrt(), (1.0 - from).sqrt());
    PlanStep::at(timestep, finite_sigma_of(from), Noised::vp(from), denoised_from)
}

/// The checkpoint's own timesteps, and where their steps lead: a whole stride back, which need not be the next one.
struct Grid<'a> {
    training: &'a TrainingSchedule,
    /// Falling.
    timesteps: Vec<usize>,
    stride: usize,
    request: &'a PlanRequest,
}

impl<'a> Grid<'a> {
    fn of(training: &'a TrainingSchedule, request: &'a PlanRequest) -> Result<Self> {
        let count = request.steps as usize;
        let timesteps =
            VpStep::whole_timesteps(training, count).map_err(|timestep| training.beyond(request, timestep))?;
        Ok(Self { training, timesteps, stride: training.num_train_timesteps() / count, request })
    }

    fn share(&self, timestep: usize) -> Result<f64> {
        let share = self.training.alphas_cumprod.get(timestep).map(|&share| f64::from(share));
        share.ok_or_else(|| self.training.beyond(self.request, timestep))
    }

    /// The share of signal so far back, or after the last step.
    fn share_before(&self, timestep: usize, back: usize) -> Result<f64> {
        match timestep.checked_sub(back) {
            Some(before) => self.share(before),
            None if self.training.set_alpha_to_one() => Ok(1.0),
            None => self.share(0),
        }
    }

    fn visited(&self, timesteps: &[usize]) -> Result<Vec<VpStep>> {
        let step = |&timestep: &usize| {
            let to = self.share_before(timestep, self.stride)?;
            Ok(VpStep { timestep: timestep as f64, from: self.share(timestep)?, to })
        };
        timesteps.iter().map(step).collect()
    }

    fn linear_multistep(&self, skip: usize) -> Result<Vec<PlanStep>> {
        let told = &told(&self.timesteps)[skip..];
        let again = match told.get(1) {
            Some(&second) => (self.share(second + self.stride)?, self.share(second)?),
            None => (1.0, 1.0),
        };
        Ok(linear_multistep(self.training, &self.visited(told)?, again))
    }

    /// Three Runge-Kutta steps, then PLMS with their first outputs.
    fn runge_kutta_first(&self, request: &PlanRequest) -> Result<Vec<PlanStep>> {
        /// Steps of four evaluations.
        const RUNGE_KUTTA: usize = 3;

        if self.timesteps.len() <= RUNGE_KUTTA {
            return Err(Error::FewSteps { kind: request.kind, steps: request.steps, least: RUNGE_KUTTA + 1 });
        }
        let mut steps = Vec::new();
        for pair in self.timesteps.windows(2).take(RUNGE_KUTTA) {
            steps.extend(self.runge_kutta(pair[0], pair[1])?);
        }
        for (index, level) in self.visited(&self.timesteps[RUNGE_KUTTA..])?.into_iter().enumerate() {
            // Where the last three outputs that count stand among all that are remembered.
            let places: Vec<usize> = (0..3).map(|k| if k < index { k } else { index + 4 * (k - index) + 3 }).collect();
            let mut weights = vec![0.0; places[2] + 2];
            weights[0] = ADAMS[3][0];
            places.iter().zip(&ADAMS[3][1..]).for_each(|(place, weight)| weights[place + 1] = *weight);
            let next = Transfer::of(self.training, level.from, level.to).over_sample(&weights);
            steps.push(PlanStep { next, remember: output(), ..step(self.training, level.timestep, level.from) });
        }
        Ok(steps)
    }

    /// Four evaluations from one timestep to the next: at its start, twice in the middle, at its end.
    fn runge_kutta(&self, start: usize, next: usize) -> Result<[PlanStep; 4]> {
        let half = self.stride / 2;
        let middle = next + half;
        let from = self.share(start)?;
        // The first evaluation leads half a stride down, which need not be exactly the middle that the next one is told.
        let leads = [self.share_before(start, half)?, self.share(middle)?, self.share(next)?, self.share(next)?];
        let told = [start, middle, middle, next];
        let weights: [&[f64]; 4] = [&[1.0], &[1.0], &[1.0], &[1.0 / 6.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 6.0]];
        let mut steps = [0, 1, 2, 3].map(|_| step(self.training, start as f64, from));
        for (index, slot) in steps.iter_mut().enumerate() {
            let transfer = Transfer::of(self.training, from, leads[index]);
            let at = step(self.training, told[index] as f64, self.share(told[index])?);
            *slot =
                PlanStep { next: transfer.over_held(weights[index]), remember: output(), ends_step: index == 3, ..at };
        }
        steps[0].next = Transfer::of(self.training, from, leads[0]).over_sample(weights[0]);
        steps[0].hold = Some(Mix::sample());
        Ok(steps)
    }
}

/// Equation 11 of the paper: from one share of signal to another, given the noise.
struct Transfer {
    sample: f64,
    /// Of the weighted outputs.
    output: f64,
}

impl Transfer {
    fn of(training: &TrainingSchedule, from: f64, to: f64) -> Self {
        let denominator = from * (1.0 - to).sqrt() + (from * (1.0 - from) * to).sqrt();
        let noise = (to - from) / denominator;
        let kept = (to / from).sqrt();
        match training.prediction_type {
            // The noise that the weighted outputs stand for, seen from the sample the step starts at.
            PredictionType::V => Self { sample: kept - noise * (1.0 - from).sqrt(), output: -noise * from.sqrt() },
            PredictionType::Epsilon | PredictionType::Sample => Self { sample: kept, output: -noise },
        }
    }

    /// `weights`: of this evaluation's output and those remembered.
    fn over_sample(&self, weights: &[f64]) -> Mix {
        Mix { sample: self.sample, ..self.outputs(weights) }
    }

    fn over_held(&self, weights: &[f64]) -> Mix {
        Mix { held: self.sample, ..self.outputs(weights) }
    }

    fn outputs(&self, weights: &[f64]) -> Mix {
        let remembered = weights[1..].iter().map(|weight| self.output * weight).collect();
        Mix { output: self.output * weights[0], remembered, ..Mix::default() }
    }
}
