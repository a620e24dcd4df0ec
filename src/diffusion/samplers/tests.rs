//! Tables of what is read, refused and planned, and properties that hold for every plan. The numbers themselves are held
//! against diffusers by tests/it/golden/samplers.rs.

use proptest::prelude::*;

use super::*;
use SamplerKind::{Ddim, Ddpm, DpmPp2m, Euler, EulerAncestral};

const PLAIN: &str =
    r#"{"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": false}"#;

fn read(json: &str) -> TrainingSchedule {
    TrainingSchedule::from_json(json).unwrap()
}

/// `PLAIN` with further keys.
fn plain_and(keys: &str) -> TrainingSchedule {
    read(&PLAIN.replace('}', &format!(", {keys}}}")))
}

fn ask(kind: SamplerKind, steps: u32) -> PlanRequest {
    PlanRequest { kind, sigma_schedule: SigmaSchedule::Default, steps, eta: 0.0 }
}

fn timesteps(training: &TrainingSchedule, request: PlanRequest) -> Vec<f64> {
    SamplingPlan::build(training, &request).unwrap().steps.iter().map(|step| step.timestep).collect()
}

#[test]
fn a_file_no_sampler_can_honour_is_refused_with_key_value_and_choice() {
    let table = [
        (r#"{"beta_schedule": "sigmoid"}"#, "`beta_schedule` is \"sigmoid\"; supported: \"linear\", \"scaled_linear\""),
        (
            r#"{"prediction_type": "flow_prediction"}"#,
            "`prediction_type` is \"flow_prediction\"; supported: \"epsilon\"",
        ),
        (r#"{"prediction_type": null}"#, "`prediction_type` is null"),
        (r#"{"timestep_spacing": 3}"#, "`timestep_spacing` is 3; supported: \"leading\", \"trailing\", \"linspace\""),
        (r#"{"final_sigmas_type": "one"}"#, "`final_sigmas_type` is \"one\"; supported: \"zero\", \"sigma_min\""),
        (r#"{"num_train_timesteps": 0}"#, "`num_train_timesteps` is 0; supported: 1 to 100000"),
        (r#"{"num_train_timesteps": 1e9}"#, "`num_train_timesteps` is 1000000000.0"),
        (r#"{"steps_offset": -1}"#, "`steps_offset` is -1; supported: a whole number"),
        (r#"{"beta_end": 1.5}"#, "`beta_end` is 1.5; supported: a number between 0 and 1"),
        (
            r#"{"trained_betas": [0.1, 0.2]}"#,
            "`trained_betas` is [0.1,0.2]; supported: null, or `num_train_timesteps` = 1000",
        ),
        (r#"{"trained_betas": "x"}"#, "`trained_betas` is \"x\""),
        (r#"{"clip_sample": "yes"}"#, "`clip_sample` is \"yes\"; supported: true, false"),
        (r#"{"clip_sample_range": NaN}"#, "`clip_sample_range` is \"NaN\""),
        (r#"{"lambda_min_clipped": NaN}"#, "`lambda_min_clipped` is \"NaN\""),
        (r#"{"sigma_min": -1}"#, "`sigma_min` is -1; supported: null, or a number above 0"),
        (r#"{"num_train_timesteps": 1, "rescale_betas_zero_snr": true}"#, "`rescale_betas_zero_snr` is true"),
        (r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}"#, "`_class_name` is \"FlowMatch"),
        ("[]", "expected an object"),
    ];
    for (json, message) in table {
        let error = TrainingSchedule::from_json(json).unwrap_err().to_string();
        assert!(error.contains(message), "{json}: {error}");
    }
}

#[test]
fn what_one_class_reads_and_we_lack_refuses_that_sampler_alone() {
    let table: &[(&str, &[SamplerKind])] = &[
        (r#""thresholding": true"#, &[Ddpm, Ddim, DpmPp2m]),
        (r#""variance_type": "learned_range""#, &[Ddpm, DpmPp2m]),
        (r#""variance_type": "fixed_large_log""#, &[Ddpm]),
        (r#""use_exponential_sigmas": true"#, &[Euler, DpmPp2m]),
        (r#""use_beta_sigmas": true"#, &[Euler, DpmPp2m]),
        (r#""use_lu_lambdas": true"#, &[DpmPp2m]),
        (r#""use_flow_sigmas": true"#, &[DpmPp2m]),
        (r#""interpolation_type": "log_linear""#, &[Euler]),
        (r#""timestep_type": "continuous", "prediction_type": "v_prediction""#, &[Euler]),
        (r#""algorithm_type": "dpmsolver""#, &[DpmPp2m]),
        (r#""solver_type": "runge""#, &[DpmPp2m]),
        (r#""solver_order": 4"#, &[DpmPp2m]),
        (r#""_class_name": "NoSuchScheduler", "skip_prk_steps": true, "unheard_of": [1]"#, &[]),
        (r#""variance_type": null, "trained_betas": null, "lambda_min_clipped": -Infinity"#, &[]),
    ];
    for (keys, refused) in table {
        let training = plain_and(keys);
        for &kind in SamplerKind::ALL {
            for &schedule in SigmaSchedule::ALL {
                let supported = SamplingPlan::supports(&training, kind, schedule);
                assert_eq!(supported, !refused.contains(&kind), "{keys}: {kind} {schedule}");
            }
        }
    }
    let error = SamplingPlan::build(&plain_and(r#""algorithm_type": "dpmsolver""#), &ask(DpmPp2m, 5)).unwrap_err();
    let message = error.to_string();
    for part in ["`dpmpp_2m`", "`algorithm_type` = \"dpmsolver\"", "\"sde-dpmsolver++\""] {
        assert!(message.contains(part), "{part} is not in: {message}");
    }
}

#[test]
fn each_class_fills_in_its_own_defaults() {
    let training = read("{}");
    let table: &[(SamplerKind, &[f64])] = &[
        (Ddpm, &[750.0, 500.0, 250.0, 0.0]),
        (Ddim, &[750.0, 500.0, 250.0, 0.0]),
        (Euler, &[999.0, 666.0, 333.0, 0.0]),
        (EulerAncestral, &[999.0, 666.0, 333.0, 0.0]),
        (DpmPp2m, &[999.0, 749.0, 500.0, 250.0]),
    ];
    for &(kind, expected) in table {
        assert_eq!(timesteps(&training, ask(kind, 4)), expected, "{kind}");
        let clip = SamplingPlan::build(&training, &ask(kind, 4)).unwrap().steps[0].clip_denoised;
        assert_eq!(clip, matches!(kind, Ddpm | Ddim).then_some(1.0), "{kind}");
    }
}

#[test]
fn the_pipelines_mending_reaches_only_keys_the_file_names() {
    let named = read(r#"{"steps_offset": 0, "clip_sample": true}"#).mended_for_stable_diffusion();
    assert_eq!(timesteps(&named, ask(Ddim, 2)), [501.0, 1.0]);
    assert_eq!(named.clip_denoised(), None);
    let silent = read("{}").mended_for_stable_diffusion();
    assert_eq!(timesteps(&silent, ask(Ddim, 2)), [500.0, 0.0]);
    assert_eq!(silent.clip_denoised(), Some(1.0));
}

#[test]
fn requests_out_of_range_are_refused() {
    let training = read(PLAIN);
    for &kind in SamplerKind::ALL {
        for steps in [0, 1001, u32::MAX] {
            let error = SamplingPlan::build(&training, &ask(kind, steps)).unwrap_err();
            assert_eq!(error, Error::Steps { steps, most: 1000 }, "{kind}");
        }
        for eta in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            let error = SamplingPlan::build(&training, &PlanRequest { eta, ..ask(kind, 5) }).unwrap_err();
            assert!(matches!(error, Error::Eta { .. }), "{kind} {eta}");
        }
    }
}

#[test]
fn a_timestep_beyond_the_schedule_is_refused_where_the_reference_fails() {
    let training = plain_and(r#""steps_offset": 1"#);
    for kind in [Ddpm, Ddim] {
        let error = SamplingPlan::build(&training, &ask(kind, 1000)).unwrap_err();
        assert_eq!(error, Error::Beyond { kind, steps: 1000, timestep: 1000, last: 999, offset: 1 });
        SamplingPlan::build(&training, &ask(kind, 999)).unwrap();
    }
}

#[test]
fn steps_of_a_multistep_rule_that_stand_still_are_refused() {
    // A thousand steps and one level more do not fit a thousand timesteps.
    for spacing in ["leading", "linspace"] {
        let training = plain_and(&format!(r#""timestep_spacing": "{spacing}""#));
        let error = SamplingPlan::build(&training, &ask(DpmPp2m, 1000)).unwrap_err();
        assert!(matches!(error, Error::Unsound { .. }), "{spacing}: {error}");
        assert!(error.to_string().contains("`steps` 1000 with sampler `dpmpp_2m`"), "{error}");
    }
}

#[test]
fn trailing_gives_the_steps_asked_for() {
    // numpy's range has one entry too many for these counts, at timestep -1.
    let training = plain_and(r#""timestep_spacing": "trailing""#);
    for steps in [61, 103, 121, 244] {
        for &kind in SamplerKind::ALL {
            let timesteps = timesteps(&training, ask(kind, steps));
            assert_eq!(timesteps.len(), steps as usize);
            assert!(timesteps.iter().all(|timestep| (0.0..1000.0).contains(timestep)), "{kind} {steps}");
        }
    }
}

#[test]
fn zero_terminal_snr_never_divides_by_zero() {
    let keys = |spacing: &str, prediction: &str| {
        plain_and(&format!(
            r#""rescale_betas_zero_snr": true, "timestep_spacing": "{spacing}", "prediction_type": "{prediction}""#
        ))
    };
    for kind in [Ddpm, Ddim] {
        // Pure noise, of which an epsilon network says nothing: refused. With `leading` the last level is not visited.
        for spacing in ["trailing", "linspace"] {
            let blind = SamplingPlan::build(&keys(spacing, "epsilon"), &ask(kind, 10));
            assert_eq!(blind, Err(Error::ZeroSnr { kind }), "{spacing}");
            assert!(!SamplingPlan::supports(&keys(spacing, "epsilon"), kind, SigmaSchedule::Default));
        }
        SamplingPlan::build(&keys("leading", "epsilon"), &ask(kind, 10)).unwrap();
        let plan = SamplingPlan::build(&keys("trailing", "v_prediction"), &ask(kind, 10)).unwrap();
        assert_eq!(plan.steps[0].denoised_from, DenoisedFrom { sample: 0.0, output: -1.0 });
        assert!((plan.steps[0].sigma - 4096.0).abs() < 1e-3, "finite, as if 2^-24 of the signal were left");
    }
    for kind in [Euler, EulerAncestral, DpmPp2m] {
        for prediction in ["epsilon", "v_prediction", "sample"] {
            let plan = SamplingPlan::build(&keys("trailing", prediction), &ask(kind, 10)).unwrap();
            assert!((plan.steps[0].sigma - 4096.0).abs() < 1e-3, "{kind}");
        }
    }
}

#[test]
fn karras_runs_from_the_noisiest_level_to_the_finest_for_every_sampler() {
    let training = plain_and(r#""timestep_spacing": "linspace""#);
    for &kind in SamplerKind::ALL {
        let request = PlanRequest { sigma_schedule: SigmaSchedule::Karras, ..ask(kind, 12) };
        let plan = SamplingPlan::build(&training, &request).unwrap();
        let sigmas: Vec<f64> = plan.steps.iter().map(|step| step.sigma).collect();
        assert!((sigmas[0] - 14.6146).abs() < 1e-3 && (sigmas[11] - 0.0292).abs() < 1e-4, "{kind}: {sigmas:?}");
        // Equal strides of sigma^(1/7).
        let roots: Vec<f64> = sigmas.iter().map(|sigma| sigma.powf(1.0 / 7.0)).collect();
        for pair in roots.windows(3) {
            assert!((pair[0] - 2.0 * pair[1] + pair[2]).abs() < 1e-9, "{kind}: {sigmas:?}");
        }
    }
    // The file's own wish counts where the reference's class reads it.
    let wishing = plain_and(r#""use_karras_sigmas": true"#);
    for &kind in SamplerKind::ALL {
        let levels = |schedule| {
            let request = PlanRequest { sigma_schedule: schedule, ..ask(kind, 12) };
            SamplingPlan::build(&wishing, &request).unwrap().steps[5].sigma
        };
        let same = levels(SigmaSchedule::Default) == levels(SigmaSchedule::Karras);
        assert_eq!(same, matches!(kind, Euler | DpmPp2m), "{kind}");
    }
}

#[test]
fn only_stochastic_rules_draw_noise() {
    let training = read(PLAIN);
    for (kind, eta, noisy) in [
        (Ddpm, 0.0, 19),
        (Ddim, 0.0, 0),
        (Ddim, 0.5, 19),
        (Euler, 0.5, 0),
        (EulerAncestral, 0.0, 19),
        (DpmPp2m, 1.0, 0),
    ] {
        let plan = SamplingPlan::build(&training, &PlanRequest { eta, ..ask(kind, 20) }).unwrap();
        let drawn = plan.steps.iter().filter(|step| step.noise != 0.0).count();
        assert_eq!(drawn, noisy, "{kind} with eta {eta}: every step but the last one, or none");
    }
}

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
                "solver_type": "{solver}", "algorithm_type": "{algorithm}"}}"#
        );
        // At most a third of the timesteps, so that the offset stays inside and no two levels coincide.
        let steps = (1.0 + share * (count / 3 - 1) as f64) as u32;
        (keys, PlanRequest { kind, sigma_schedule, steps, eta })
    })
}

/// Whether the latents are `alpha * x0 + sigma * n` with squares that add up to 1, and not `x0 + sigma * n`.
fn unit_variance(request: &PlanRequest) -> bool {
    !matches!(request.kind, Euler | EulerAncestral)
}

/// What a network that knows the picture says, as parts of (picture, noise), and what comes of a step.
struct Truth {
    /// Latents as parts of (picture, noise).
    x: [f64; 2],
    output: [f64; 2],
}

impl Truth {
    fn at(training: &TrainingSchedule, request: &PlanRequest, step: &PlanStep) -> Self {
        // `sigma` stands for a finite level where the true one is infinite: with a table that ends at 0, where DDPM and
        // DDIM begin at its end.
        let reads_table = matches!(request.kind, Ddpm | Ddim) && request.sigma_schedule == SigmaSchedule::Default;
        let pure_noise = reads_table && training.alphas_cumprod()[step.timestep as usize] == 0.0;
        let alpha = if pure_noise { 0.0 } else { 1.0 / (step.sigma * step.sigma + 1.0).sqrt() };
        let sigma = (1.0 - alpha * alpha).sqrt();
        let output = match training.prediction_type() {
            PredictionType::Epsilon => [0.0, 1.0],
            PredictionType::V => [-sigma, alpha],
            PredictionType::Sample => [1.0, 0.0],
        };
        let x = if unit_variance(request) { [alpha, sigma] } else { [1.0, step.sigma] };
        Self { x, output }
    }

    fn denoised(&self, step: &PlanStep) -> [f64; 2] {
        std::array::from_fn(|k| step.denoised_from.sample * self.x[k] + step.denoised_from.output * self.output[k])
    }

    /// Earlier denoised samples were the picture too.
    fn after(&self, step: &PlanStep) -> [f64; 2] {
        let denoised = self.denoised(step);
        let history = [step.history.iter().sum::<f64>(), 0.0];
        std::array::from_fn(|k| {
            step.sample * self.x[k] + step.denoised * denoised[k] + step.output * self.output[k] + history[k]
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    /// With a network that knows the picture, each step gives the picture with the next level's noise: the variances of
    /// what is left and of what is fresh add up, and the last step gives the picture itself.
    #[test]
    fn every_step_keeps_the_marginal((keys, request) in any_plan()) {
        let training = read(&keys);
        let plan = match SamplingPlan::build(&training, &request) {
            Err(Error::ZeroSnr { .. }) => {
                prop_assert!(matches!(request.kind, Ddpm | Ddim) && keys.contains("\"epsilon\""), "{keys}");
                return Ok(());
            }
            Err(Error::Unsound { .. }) => {
                // Fresh noise cannot be added where the levels rise: at the lifted end of a table that is nearly 0 before.
                prop_assert!(!training.sigmas().is_sorted(), "{keys} {request:?}");
                return Ok(());
            }
            plan => plan.unwrap(),
        };
        prop_assert_eq!(plan.steps.len(), request.steps as usize);
        for (index, step) in plan.steps.iter().enumerate() {
            prop_assert!(step.numbers().all(f64::is_finite));
            let truth = Truth::at(&training, &request, step);
            let denoised = truth.denoised(step);
            prop_assert!((denoised[0] - 1.0).abs() < 1e-6 && denoised[1].abs() < 1e-6, "step {index} of {plan:?}");
            let [picture, noise] = truth.after(step);
            if unit_variance(&request) {
                let variance = picture * picture + noise * noise + step.noise * step.noise;
                prop_assert!((variance - 1.0).abs() < 1e-6, "step {index}: variance {variance}");
            } else {
                prop_assert!((picture - 1.0).abs() < 1e-6, "step {index}: picture {picture}");
            }
        }
        // DDIM strides may end above the finest level (a quirk of the reference); the others end without noise.
        if request.kind != Ddim {
            let step = &plan.steps[plan.steps.len() - 1];
            let [picture, noise] = Truth::at(&training, &request, step).after(step);
            prop_assert!((picture - 1.0).abs() < 1e-6 && noise.abs() < 1e-6 && step.noise < 1e-6);
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
        let build = |kind| SamplingPlan::build(&training, &PlanRequest { kind, eta: 1.0, ..request }).unwrap();
        let (ddim, ddpm) = (build(Ddim), build(Ddpm));
        for (ours, theirs) in ddim.steps.iter().zip(&ddpm.steps) {
            for (x, output) in [(1.0, 0.0), (0.0, 1.0)] {
                let mean = |step: &PlanStep| {
                    let denoised = step.denoised_from.sample * x + step.denoised_from.output * output;
                    step.sample * x + step.denoised * denoised + step.output * output
                };
                let scale = 1.0 + ours.denoised_from.sample.abs();
                prop_assert!((mean(ours) - mean(theirs)).abs() < 1e-9 * scale);
            }
            prop_assert!((ours.noise - theirs.noise).abs() < 1e-9);
        }
    }
}

/// One step of a network `output = a * input + b`.
fn advance(step: &PlanStep, x: f64, a: f64, b: f64) -> f64 {
    let output = a * step.input_scale * x + b;
    let denoised = step.denoised_from.sample * x + step.denoised_from.output * output;
    step.sample * x + step.denoised * denoised + step.output * output
}
