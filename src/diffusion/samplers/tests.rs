//! Tables of what is read, refused and planned. The numbers themselves are held against diffusers by
//! tests/it/golden/samplers.rs.

use super::*;
use SamplerKind::{
    Ddim, Ddpm, Deis, Dpm2, Dpm2Ancestral, DpmPp2m, DpmPp2mSde, DpmPp2sAncestral, DpmPp3mSde, DpmPpSde, DpmSolver,
    Euler, EulerAncestral, Heun, Lcm, Lms, Pndm, Tcd, UniPc,
};

mod properties;

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
    PlanRequest::plain(kind, SigmaSchedule::Default, steps)
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
        (r#""thresholding": true"#, &[Ddpm, Ddim, DpmPp2m, DpmPp2mSde, DpmSolver, UniPc, Deis, Lcm]),
        (r#""variance_type": "learned_range""#, &[Ddpm, DpmPp2m, DpmPp2mSde, DpmSolver]),
        (r#""variance_type": "fixed_large_log""#, &[Ddpm]),
        (
            r#""use_exponential_sigmas": true, "use_beta_sigmas": true"#,
            &[Euler, Heun, Dpm2, Dpm2Ancestral, Lms, DpmSolver, DpmPp2m, DpmPp2mSde, DpmPpSde, UniPc, Deis],
        ),
        (r#""use_exponential_sigmas": true"#, &[]),
        (r#""use_lu_lambdas": true"#, &[DpmPp2m, DpmPp2mSde]),
        (r#""use_flow_sigmas": true"#, &[DpmPp2m, DpmPp2mSde, DpmSolver, UniPc, Deis]),
        (r#""interpolation_type": "log_linear""#, &[Euler]),
        (r#""timestep_type": "continuous", "prediction_type": "v_prediction""#, &[Euler]),
        (r#""prediction_type": "sample""#, &[Pndm]),
        (r#""algorithm_type": "dpmsolver""#, &[DpmPp2m, DpmSolver]),
        (r#""algorithm_type": "sde-dpmsolver++""#, &[Deis]),
        (r#""solver_type": "runge""#, &[DpmPp2m, DpmPp2mSde, DpmSolver, UniPc, Deis]),
        (r#""solver_order": 4"#, &[DpmPp2m, DpmPp2mSde, DpmSolver, UniPc, Deis]),
        (r#""predict_x0": false"#, &[UniPc]),
        (r#""solver_p": {"_class_name": "DDIMScheduler"}"#, &[UniPc]),
        (r#""original_inference_steps": 0"#, &[Lcm, Tcd]),
        (r#""original_inference_steps": 1001"#, &[Lcm, Tcd]),
        (r#""original_inference_steps": 4"#, &[]),
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
        (UniPc, &[999.0, 749.0, 500.0, 250.0]),
        (Heun, &[999.0, 666.0, 666.0, 333.0, 333.0, 0.0, 0.0]),
        (Lms, &[999.0, 666.0, 333.0, 0.0]),
        (Lcm, &[999.0, 759.0, 499.0, 259.0]),
        (Tcd, &[999.0, 759.0, 499.0, 259.0]),
        (Pndm, &[750.0, 625.0, 625.0, 500.0, 500.0, 375.0, 375.0, 250.0, 250.0, 125.0, 125.0, 0.0, 0.0]),
    ];
    for &(kind, expected) in table {
        assert_eq!(timesteps(&training, ask(kind, 4)), expected, "{kind}");
        let clip = SamplingPlan::build(&training, &ask(kind, 4)).unwrap().steps[0].clip_denoised;
        assert_eq!(clip, matches!(kind, Ddpm | Ddim).then_some(1.0), "{kind}");
    }
}

#[test]
fn betas_that_the_file_leaves_out_are_the_classes_own() {
    let first = |kind, json: &str| {
        let training = read(json);
        f64::from(training.read_by(kind).alphas_cumprod()[0])
    };
    for (kinds, beta) in
        [(&[Ddim, Euler, DpmPp2m, Lms, Pndm, DpmPp3mSde][..], 0.0001), (&[Heun, Dpm2, DpmPpSde, Lcm, Tcd], 0.00085)]
    {
        for &kind in kinds {
            assert!((first(kind, "{}") - (1.0 - beta)).abs() < 1e-7, "{kind}");
            assert!((first(kind, PLAIN) - (1.0 - 0.00085)).abs() < 1e-7, "{kind}");
        }
    }
    // These classes do not read that key.
    let zero_snr = plain_and(r#""rescale_betas_zero_snr": true"#);
    for &kind in SamplerKind::ALL {
        let last = *zero_snr.read_by(kind).alphas_cumprod().last().unwrap();
        let ignores = matches!(kind, Heun | Dpm2 | Dpm2Ancestral | DpmPpSde | Lms | Pndm | Deis | DpmSolver);
        assert_eq!(last != 0.0, ignores, "{kind}");
    }
}

#[test]
fn steps_that_a_rule_cannot_take_are_refused() {
    let training = read(PLAIN);
    for kind in [Lcm, Tcd] {
        let error = SamplingPlan::build(&training, &ask(kind, 51)).unwrap_err();
        assert_eq!(error, Error::StepsOfTeacher { kind, steps: 51, most: 50 });
        SamplingPlan::build(&training, &ask(kind, 50)).unwrap();
    }
    let error = SamplingPlan::build(&training, &ask(Pndm, 3)).unwrap_err();
    assert_eq!(error, Error::FewSteps { kind: Pndm, steps: 3, least: 4 });
    SamplingPlan::build(&training, &ask(Pndm, 4)).unwrap();
    SamplingPlan::build(&plain_and(r#""skip_prk_steps": true"#), &ask(Pndm, 1)).unwrap();
}

#[test]
fn rules_of_several_evaluations_count_the_steps_of_people() {
    let training = plain_and(r#""skip_prk_steps": true"#);
    for &kind in SamplerKind::ALL {
        for steps in [1, 2, 7] {
            let plan = SamplingPlan::build(&training, &ask(kind, steps)).unwrap();
            let evaluations = match kind {
                Heun | Dpm2 | Dpm2Ancestral | DpmPp2sAncestral | DpmPpSde => 2 * steps - 1,
                Pndm if steps > 1 => steps + 1,
                _ => steps,
            };
            assert_eq!(plan.steps.len(), evaluations as usize, "{kind}");
            assert_eq!(plan.steps.iter().filter(|step| step.ends_step).count(), steps as usize, "{kind}");
            assert!(plan.steps[plan.steps.len() - 1].ends_step, "{kind}");
        }
    }
    let whole = SamplingPlan::build(&read(PLAIN), &ask(Pndm, 20)).unwrap();
    assert_eq!(whole.steps.len(), 29, "three Runge-Kutta steps take four evaluations");
    assert_eq!(whole.steps.iter().filter(|step| step.ends_step).count(), 20);
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
            if matches!(kind, Lcm | Tcd) {
                continue; // They know no spacing, and at most 50 steps.
            }
            let plan = SamplingPlan::build(&training, &ask(kind, steps)).unwrap();
            assert_eq!(plan.steps.iter().filter(|step| step.ends_step).count(), steps as usize);
            let timesteps: Vec<f64> = plan.steps.iter().map(|step| step.timestep).collect();
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
    for kind in [Lcm, Tcd] {
        assert_eq!(SamplingPlan::build(&keys("leading", "epsilon"), &ask(kind, 10)), Err(Error::ZeroSnr { kind }));
        SamplingPlan::build(&keys("leading", "v_prediction"), &ask(kind, 10)).unwrap();
    }
    for kind in [Euler, EulerAncestral, DpmPp2m, DpmPp2mSde, DpmPp2sAncestral, DpmPp3mSde, UniPc] {
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
        let sigmas = levels(&plan);
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
            super::tests::levels(&SamplingPlan::build(&wishing, &request).unwrap())[5]
        };
        let same = levels(SigmaSchedule::Default) == levels(SigmaSchedule::Karras);
        let reads = !matches!(kind, Ddpm | Ddim | Pndm | EulerAncestral | DpmPp2sAncestral | DpmPp3mSde | Lcm | Tcd);
        assert_eq!(same, reads, "{kind}");
    }
}

/// Where each step that people count begins.
fn levels(plan: &SamplingPlan) -> Vec<f64> {
    let begins = |index: &usize| *index == 0 || plan.steps[index - 1].ends_step;
    (0..plan.steps.len()).filter(begins).map(|index| plan.steps[index].sigma).collect()
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
        (Heun, 1.0, 0),
        (Dpm2, 1.0, 0),
        (Dpm2Ancestral, 0.0, 19),
        (DpmPp2sAncestral, 0.0, 19),
        (DpmPp2mSde, 0.0, 19),
        (DpmPp3mSde, 0.0, 19),
        (DpmPpSde, 0.0, 38),
        (DpmSolver, 1.0, 0),
        (UniPc, 1.0, 0),
        (Deis, 1.0, 0),
        (Lms, 1.0, 0),
        (Pndm, 1.0, 0),
        (Lcm, 0.0, 19),
        (Tcd, 0.0, 0),
        (Tcd, 0.5, 19),
    ] {
        let plan = SamplingPlan::build(&training, &PlanRequest { eta, ..ask(kind, 20) }).unwrap();
        let drawn = plan.steps.iter().filter(|step| step.draws_noise()).count();
        assert_eq!(drawn, noisy, "{kind} with eta {eta}: every step but the last one, or none");
    }
}

#[test]
fn steps_can_be_left_out_but_not_all_of_them() {
    let training = plain_and(r#""skip_prk_steps": true"#);
    for &kind in SamplerKind::ALL {
        let whole = SamplingPlan::build(&training, &ask(kind, 6)).unwrap();
        let late = SamplingPlan::build(&training, &PlanRequest { skip: 2, ..ask(kind, 6) }).unwrap();
        let ends = |plan: &SamplingPlan| plan.steps.iter().filter(|step| step.ends_step).count();
        assert_eq!((ends(&whole), ends(&late)), (6, 4), "{kind}");
        let error = SamplingPlan::build(&training, &PlanRequest { skip: 6, ..ask(kind, 6) }).unwrap_err();
        assert_eq!(error, Error::Skip { skip: 6, steps: 6 }, "{kind}");
    }
    let error = SamplingPlan::build(&read(PLAIN), &PlanRequest { skip: 2, ..ask(Pndm, 8) }).unwrap_err();
    assert_eq!(error, Error::Begin { kind: Pndm, skip: 2 });
}
