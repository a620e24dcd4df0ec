//! What holds for every plan, whatever the checkpoint and the request.

use proptest::prelude::*;

use super::*;

/// A checkpoint and a request that the reference can serve too.
fn any_plan() -> impl Strategy<Value = (String, PlanRequest)> {
    let words = |words: &'static [&'static str]| prop::sample::select(words);
    let config = (
        words(&["linear", "scaled_linear", "squaredcos_cap_v2"]),
        words(&["leading", "trailing", "linspace"]),
        words(&["epsilon", "v_prediction", "sample"]),
        60_usize..1200,
        0_usize..=2,
        (0.0001..0.002, 0.005..0.05),
        any::<bool>(),
    );
    let request =
        (prop::sample::select(SamplerKind::ALL), prop::sample::select(SigmaSchedule::ALL), 0.0..1.0, 0.0..=1.0);
    let solver = (1..=3, words(&["midpoint", "heun"]), words(&["dpmsolver++", "sde-dpmsolver++"]));
    (config, request, solver).prop_map(|(config, (kind, sigma_schedule, share, eta), (order, solver, algorithm))| {
        let (betas, spacing, prediction, count, offset, (start, end), zero_snr) = config;
        let keys = format!(
            r#"{{"beta_schedule": "{betas}", "beta_start": {start}, "beta_end": {end}, "num_train_timesteps": {count},
                "timestep_spacing": "{spacing}", "steps_offset": {offset}, "prediction_type": "{prediction}",
                "rescale_betas_zero_snr": {zero_snr}, "clip_sample": false, "solver_order": {order},
                "solver_type": "{solver}", "algorithm_type": "{algorithm}", "skip_prk_steps": {skip},
                "original_inference_steps": {teacher}}}"#,
            skip = offset != 1,
            teacher = count / 2,
        );
        // At most a third of the timesteps, so that the offset stays inside and no two levels coincide.
        let steps = (1.0 + share * (count / 3 - 1) as f64) as u32;
        (keys, PlanRequest { eta, ..PlanRequest::plain(kind, sigma_schedule, steps) })
    })
}

/// Whether the latents are `alpha * x0 + sigma * n` with squares that add up to 1, and not `x0 + sigma * n`.
fn unit_variance(kind: SamplerKind) -> bool {
    use SamplerKind::*;
    matches!(kind, Ddpm | Ddim | Pndm | DpmSolver | DpmPp2m | DpmPp2mSde | UniPc | Deis | Lcm | Tcd)
}

/// A tensor as parts of (picture, the first noise, and each draw within one step).
type Parts = [f64; 4];

fn weighed(parts: &[(f64, Parts)]) -> Parts {
    std::array::from_fn(|k| parts.iter().map(|(weight, part)| weight * part[k]).sum())
}

fn noise_of(x: &Parts) -> f64 {
    x[1..].iter().map(|part| part * part).sum::<f64>().sqrt()
}

/// A network that knows the picture, and the plan applied to what it says.
struct Walk<'a> {
    training: &'a TrainingSchedule,
    kind: SamplerKind,
    /// Whether the levels are the table's own, so that a table's end without signal is visited as such.
    reads_table: bool,
    x: Parts,
    held: Parts,
    memory: Vec<Parts>,
    earlier: Parts,
    draws: usize,
}

impl<'a> Walk<'a> {
    fn begin(training: &'a TrainingSchedule, request: &PlanRequest) -> Self {
        let reads_table =
            matches!(request.kind, Ddpm | Ddim | Lcm | Tcd) && request.sigma_schedule == SigmaSchedule::Default;
        let zero = [0.0; 4];
        Self { training, kind: request.kind, reads_table, x: zero, held: zero, memory: vec![], earlier: zero, draws: 0 }
    }

    fn alpha(&self, step: &PlanStep) -> f64 {
        // `sigma` stands for a finite level where the true one is infinite.
        let pure_noise = self.reads_table && self.training.alphas_cumprod()[step.timestep as usize] == 0.0;
        if pure_noise { 0.0 } else { 1.0 / (step.sigma * step.sigma + 1.0).sqrt() }
    }

    /// Puts the latents where the step begins.
    fn place(&mut self, step: &PlanStep) {
        let alpha = self.alpha(step);
        let (picture, noise) =
            if unit_variance(self.kind) { (alpha, (1.0 - alpha * alpha).sqrt()) } else { (1.0, step.sigma) };
        (self.x, self.draws) = ([picture, noise, 0.0, 0.0], 0);
    }

    /// One evaluation; what it makes of the network's word of the picture.
    fn evaluate(&mut self, step: &PlanStep) -> Parts {
        const PICTURE: Parts = [1.0, 0.0, 0.0, 0.0];
        let alpha = self.alpha(step);
        let sigma = (1.0 - alpha * alpha).sqrt();
        // In unit variance, whatever the sampler's latents.
        let scale = if unit_variance(self.kind) { 1.0 } else { alpha };
        let noise = weighed(&[(scale / sigma, self.x), (-alpha / sigma, PICTURE)]);
        let output = match self.training.prediction_type() {
            PredictionType::Epsilon => noise,
            PredictionType::V => weighed(&[(alpha, noise), (-sigma, PICTURE)]),
            PredictionType::Sample => PICTURE,
        };
        let denoised = weighed(&[(step.denoised_from.sample, self.x), (step.denoised_from.output, output)]);
        let mut fresh = [0.0; 4];
        if step.draws_noise() {
            fresh[2 + self.draws] = 1.0;
            self.draws += 1;
        }
        let mixed = |mix: &Mix| {
            let mut terms = vec![
                (mix.sample, self.x),
                (mix.held, self.held),
                (mix.denoised, denoised),
                (mix.output, output),
                (mix.noise, fresh),
                (mix.earlier_noise, self.earlier),
            ];
            terms.extend(mix.remembered.iter().copied().zip(self.memory.iter().copied()));
            assert!(mix.remembered.len() <= self.memory.len(), "weighs what was never remembered: {step:?}");
            weighed(&terms)
        };
        let next = mixed(&step.next);
        let (hold, remember) = (step.hold.as_ref().map(mixed), step.remember.as_ref().map(mixed));
        self.x = next;
        self.held = hold.unwrap_or(self.held);
        self.earlier = if step.draws_noise() { fresh } else { self.earlier };
        self.memory.splice(0..0, remember);
        denoised
    }
}

/// Whether PNDM tells an evaluation before the end of this step another timestep than its latents are at, as the reference
/// does on its own timesteps: the second of PLMS takes the first step again from one stride above, which need not be where
/// that began; Runge and Kutta's first leads half a stride down, which need not be the middle.
fn misplaced(plan: &SamplingPlan, index: usize, num_train_timesteps: usize, request: &PlanRequest) -> bool {
    let told = |index: usize| plan.steps[index].timestep as usize;
    let stride = num_train_timesteps / request.steps as usize;
    if request.sigma_schedule != SigmaSchedule::Default || plan.steps[index].next.held == 0.0 {
        return false;
    }
    if index == 1 { told(0) != told(1) + stride } else { told(index - 3) != told(index - 2) + stride / 2 }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    /// With a network that knows the picture, each step gives the picture with the next level's noise: the variances of
    /// what is left and of what is fresh add up, and the last step gives the picture itself.
    #[test]
    fn every_step_keeps_the_marginal((keys, request) in any_plan()) {
        let training = read(&keys);
        let kind = request.kind;
        let plan = match SamplingPlan::build(&training, &request) {
            Err(Error::ZeroSnr { .. }) => {
                prop_assert!(matches!(kind, Ddpm | Ddim | Lcm | Tcd) && keys.contains("\"epsilon\""), "{keys}");
                return Ok(());
            }
            Err(Error::Unsound { .. }) => {
                // Fresh noise cannot be added where the levels rise: at the lifted end of a table that is nearly 0 before.
                prop_assert!(!training.read_by(kind).sigmas().is_sorted(), "{keys} {request:?}");
                return Ok(());
            }
            Err(Error::FewSteps { .. }) => {
                prop_assert!(kind == Pndm && request.steps < 4, "{keys} {request:?}");
                return Ok(());
            }
            Err(Error::Sampler { .. }) => {
                prop_assert!((kind == Pndm && keys.contains("\"sample\"")) || (kind == Deis && keys.contains("sde-")), "{keys}");
                return Ok(());
            }
            plan => plan.unwrap(),
        };
        prop_assert_eq!(plan.steps.iter().filter(|step| step.ends_step).count(), request.steps as usize);
        let training = training.read_by(kind);
        // At such an end, no rule keeps it that goes through the table by sigma.
        if !training.sigmas().is_sorted() && request.sigma_schedule != SigmaSchedule::Default {
            return Ok(());
        }
        let mut walk = Walk::begin(&training, &request);
        let (mut begins, mut first) = (true, 0);
        for (index, step) in plan.steps.iter().enumerate() {
            prop_assert!(step.numbers().all(f64::is_finite));
            if begins {
                walk.place(step);
                first = index;
            }
            let denoised = walk.evaluate(step);
            prop_assert!((denoised[0] - 1.0).abs() < 1e-6 && noise_of(&denoised) < 1e-6, "step {index} of {plan:?}");
            begins = step.ends_step;
            // A consistency model's step is not exact for one that is not, nor are combined velocities of several levels.
            let inexact = kind == Lcm || (kind == Pndm && training.prediction_type() == PredictionType::V);
            if !begins || inexact || (kind == Pndm && misplaced(&plan, index, training.num_train_timesteps(), &request)) {
                continue;
            }
            // Each evaluation stretches the roundings of those before it by the ratio of the step's levels, which is 10,000 where
            // few steps begin at the end of a cosine table (5 times 1e-6 were seen of Heun, 16 times of Runge and Kutta).
            let lower = plan.steps.get(index + 1).map_or(step.sigma, |next| next.sigma);
            let stretched = (plan.steps[first].sigma / lower).powi((index - first + 1) as i32);
            let allowed = 1e-6 + f64::EPSILON * stretched;
            let (picture, noise) = (walk.x[0], noise_of(&walk.x));
            if unit_variance(kind) {
                let variance = picture * picture + noise * noise;
                prop_assert!((variance - 1.0).abs() < allowed, "step {index} of {plan:?}: variance {variance}");
            } else {
                prop_assert!((picture - 1.0).abs() < allowed, "step {index} of {plan:?}: picture {picture}");
            }
            // Strides of these may end elsewhere than the next one begins (a quirk of the reference).
            if let Some(next) = plan.steps.get(index + 1).filter(|_| !matches!(kind, Ddim | Pndm)) {
                let sigma = noise / picture;
                prop_assert!((sigma / next.sigma - 1.0).abs() < allowed, "step {index} of {plan:?}: {sigma}, not {}", next.sigma);
            }
        }
        // These end at the finest training level, or above.
        if !matches!(kind, Ddim | Pndm | Deis | Tcd | Lcm) {
            prop_assert!((walk.x[0] - 1.0).abs() < 1e-6 && noise_of(&walk.x) < 1e-6, "{plan:?}");
        }
    }

    /// DDIM without noise is Euler's method in other units: the same levels give the same picture.
    #[test]
    fn ddim_is_euler((keys, request) in any_plan(), a in -1.0..1.0, b in -1.0..1.0) {
        let keys = keys.replace("\"trailing\"", "\"leading\"").replace("\"linspace\"", "\"leading\"");
        let training = read(&keys);
        let build = |kind| SamplingPlan::build(&training, &PlanRequest { kind, eta: 0.0, ..request });
        let (Ok(ddim), Ok(euler)) = (build(Ddim), build(Euler)) else {
            // Karras' first level of a zero-SNR table is finite, and `leading` never visits the last one.
            panic!("both can: {keys}");
        };
        let (mut vp, mut ve) = (0.7, 0.7 * (euler.steps[0].sigma.powi(2) + 1.0).sqrt());
        let mut largest = 1.0_f64;
        for (step, other) in ddim.steps.iter().zip(&euler.steps) {
            prop_assert!((step.sigma - other.sigma).abs() <= 1e-9 * other.sigma);
            vp = advance(step, vp, a, b);
            ve = advance(other, ve, a, b);
            largest = largest.max(vp.abs());
        }
        prop_assert!((vp - ve).abs() <= 1e-6 * largest, "{vp} and {ve}");
    }

    /// DDIM with as much noise as it can take is DDPM.
    #[test]
    fn ddim_at_eta_one_is_ddpm((keys, request) in any_plan()) {
        let keys = keys.replace("\"trailing\"", "\"leading\"").replace("\"linspace\"", "\"leading\"");
        let training = read(&keys);
        prop_assume!(training.sigmas().is_sorted());
        let build = |kind| SamplingPlan::build(&training, &PlanRequest { kind, eta: 1.0, ..request }).unwrap();
        let (ddim, ddpm) = (build(Ddim), build(Ddpm));
        for (ours, theirs) in ddim.steps.iter().zip(&ddpm.steps) {
            for (x, output) in [(1.0, 0.0), (0.0, 1.0)] {
                let mean = |step: &PlanStep| {
                    let denoised = step.denoised_from.sample * x + step.denoised_from.output * output;
                    step.next.sample * x + step.next.denoised * denoised + step.next.output * output
                };
                let scale = 1.0 + ours.denoised_from.sample.abs();
                prop_assert!((mean(ours) - mean(theirs)).abs() < 1e-9 * scale);
            }
            prop_assert!((ours.next.noise - theirs.next.noise).abs() < 1e-9);
        }
    }
}

/// One step of a network `output = a * input + b`.
fn advance(step: &PlanStep, x: f64, a: f64, b: f64) -> f64 {
    let output = a * step.input_scale * x + b;
    let denoised = step.denoised_from.sample * x + step.denoised_from.output * output;
    step.next.sample * x + step.next.denoised * denoised + step.next.output * output
}
