//! What single samplers cannot honour of a `scheduler_config.json`, by the keys their diffusers classes read.

use super::Result;
use super::classes::Class;
use super::keys::Keys;
use super::training::SIGMA_WISHES;
use crate::domain::SamplerKind::{
    self, Ddim, Ddpm, Deis, DpmPp2m, DpmPp2mSde, DpmSolver, Euler, Lcm, Pndm, Tcd, UniPc,
};

/// A key one sampler's class reads and cannot be given here.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Refusal {
    pub(super) kind: SamplerKind,
    pub(super) key: &'static str,
    pub(super) value: String,
    pub(super) supported: &'static str,
}

struct Refusals<'a> {
    keys: &'a Keys,
    found: Vec<Refusal>,
}

/// All of them, in the order of the keys.
pub(super) fn refusals(keys: &Keys, num_train_timesteps: usize) -> Result<Vec<Refusal>> {
    let mut refusals = Refusals { keys, found: Vec::new() };
    refusals.flags()?;
    refusals.sigma_wishes()?;
    refusals.variance();
    refusals.words();
    refusals.solvers();
    refusals.distilled(num_train_timesteps);
    Ok(refusals.found)
}

impl Refusals<'_> {
    fn refuse(&mut self, kinds: &[SamplerKind], key: &'static str, supported: &'static str) {
        let value = self.keys.shown(key);
        self.found.extend(kinds.iter().map(|&kind| Refusal { kind, key, value: value.clone(), supported }));
    }

    fn word(&self, key: &str) -> Option<&str> {
        self.keys.get(key).map(|value| value.as_str().unwrap_or_default())
    }

    fn flags(&mut self) -> Result<()> {
        for (key, readers) in [
            ("thresholding", &[Ddpm, Ddim, DpmPp2m, DpmPp2mSde, DpmSolver, UniPc, Deis, Lcm][..]),
            ("use_lu_lambdas", &[DpmPp2m, DpmPp2mSde]),
            ("use_flow_sigmas", &[DpmPp2m, DpmPp2mSde, DpmSolver, UniPc, Deis]),
        ] {
            if self.keys.flag(key)? == Some(true) {
                self.refuse(readers, key, "false");
            }
        }
        if self.keys.flag("predict_x0")? == Some(false) {
            self.refuse(&[UniPc], "predict_x0", "true");
        }
        Ok(())
    }

    /// The reference's classes take one of them at most.
    fn sigma_wishes(&mut self) -> Result<()> {
        let mut asked = Vec::new();
        for (key, _) in SIGMA_WISHES {
            if self.keys.flag(key)? == Some(true) {
                asked.push(*key);
            }
        }
        let readers: Vec<SamplerKind> =
            SamplerKind::ALL.iter().copied().filter(|kind| Class::of(*kind).reads_sigma_wishes).collect();
        for key in asked.into_iter().skip(1) {
            self.refuse(&readers, key, "false beside another key that asks for a sigma schedule");
        }
        Ok(())
    }

    fn variance(&mut self) {
        if !self.keys.contains("variance_type") || self.keys.shown("variance_type") == "null" {
            return;
        }
        let variance = self.word("variance_type").unwrap_or_default().to_owned();
        if !["fixed_small", "fixed_small_log", "fixed_large"].contains(&variance.as_str()) {
            self.refuse(&[Ddpm], "variance_type", "null, \"fixed_small\", \"fixed_small_log\", \"fixed_large\"");
        }
        if variance.starts_with("learned") {
            self.refuse(&[DpmPp2m, DpmPp2mSde, DpmSolver], "variance_type", "null");
        }
    }

    fn words(&mut self) {
        if self.word("interpolation_type").is_some_and(|word| word != "linear") {
            self.refuse(&[Euler], "interpolation_type", "\"linear\"");
        }
        if self.word("timestep_type") == Some("continuous") && self.word("prediction_type") == Some("v_prediction") {
            self.refuse(&[Euler], "timestep_type", "\"discrete\"");
        }
        if self.word("prediction_type") == Some("sample") {
            self.refuse(&[Pndm], "prediction_type", "\"epsilon\", \"v_prediction\"");
        }
    }

    fn solvers(&mut self) {
        // "deis" is another class's word, which diffusers reads as "dpmsolver++"; and the other way round.
        if self.word("algorithm_type").is_some_and(|word| !["dpmsolver++", "sde-dpmsolver++", "deis"].contains(&word)) {
            self.refuse(&[DpmPp2m, DpmSolver], "algorithm_type", "\"dpmsolver++\", \"sde-dpmsolver++\"");
        }
        if self.word("algorithm_type").is_some_and(|word| !["dpmsolver++", "dpmsolver", "deis"].contains(&word)) {
            self.refuse(&[Deis], "algorithm_type", "\"deis\"");
        }
        // Each class reads the others' words as its own default.
        if self.word("solver_type").is_some_and(|word| !["midpoint", "heun", "logrho", "bh1", "bh2"].contains(&word)) {
            self.refuse(&[DpmPp2m, DpmPp2mSde, DpmSolver], "solver_type", "\"midpoint\", \"heun\"");
            self.refuse(&[UniPc], "solver_type", "\"bh1\", \"bh2\"");
            self.refuse(&[Deis], "solver_type", "\"logrho\"");
        }
        let order = self.keys.get("solver_order");
        if order.is_some_and(|order| ![Some(1), Some(2), Some(3)].contains(&order.as_u64())) {
            self.refuse(&[DpmPp2m, DpmPp2mSde, DpmSolver, UniPc, Deis], "solver_order", "1, 2, 3");
        }
        if self.keys.get("solver_p").is_some_and(|solver| !solver.is_null()) {
            self.refuse(&[UniPc], "solver_p", "null");
        }
    }

    fn distilled(&mut self, num_train_timesteps: usize) {
        let within = |steps: u64| (1..=num_train_timesteps as u64).contains(&steps);
        let steps = self.keys.get("original_inference_steps").map_or(Some(50), |steps| steps.as_u64());
        if !steps.is_some_and(within) {
            self.refuse(&[Lcm, Tcd], "original_inference_steps", "1 to `num_train_timesteps`; 50 when absent");
        }
    }
}
