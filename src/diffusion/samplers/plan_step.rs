//! One row of a plan: a model evaluation and what is made of it.

/// One model evaluation and the update after it; the room's head comment has the formula.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanStep {
    /// What the network is told, in the units of the training schedule (0 to 999 for 1000 steps; may be fractional).
    pub timestep: f64,
    /// Noise level of what the network is shown, as sigma of `x0 + sigma * n`; about 4096 where it is infinite (zero terminal
    /// SNR): for people, no rule uses it.
    pub sigma: f64,
    /// How a clean picture's latents stand here: what a run that begins here begins with.
    pub noised: Noised,
    /// The network's input is this times `x`.
    pub input_scale: f64,
    /// How `x` and the network's output give the denoised sample.
    pub denoised_from: DenoisedFrom,
    /// Clip the denoised sample to plus/minus this (diffusers `clip_sample_range`).
    pub clip_denoised: Option<f64>,
    /// The next `x`.
    pub next: Mix,
    /// What to hold from now on; `None` leaves what is held.
    pub hold: Option<Mix>,
    /// What to put before the remembered tensors; `None` leaves them.
    pub remember: Option<Mix>,
    /// Whether a step that people count ends here, and not only one of its evaluations.
    pub ends_step: bool,
}

/// A weighted sum of what one evaluation has at hand, all of it as it was before the evaluation's update.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mix {
    /// Weight of `x`, the sample whose scaled copy the network was shown.
    pub sample: f64,
    /// Weight of the held tensor.
    pub held: f64,
    /// Weight of the (clipped) denoised sample.
    pub denoised: f64,
    /// Weight of the network's raw (guided) output.
    pub output: f64,
    /// Weights of the remembered tensors, the latest first.
    pub remembered: Vec<f64>,
    /// Weight of fresh standard normal noise; 0 draws none.
    pub noise: f64,
    /// Weight of the noise that was drawn last before this evaluation.
    pub earlier_noise: f64,
}

/// `signal * z + noise * n`: clean latents `z` with noise `n` in them, as this sampler's latents are at one level (diffusers
/// `add_noise`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noised {
    /// Weight of the clean latents.
    pub signal: f64,
    /// Weight of standard normal noise.
    pub noise: f64,
}

/// `denoised = sample * x + output * network_output`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DenoisedFrom {
    /// Weight of `x`.
    pub sample: f64,
    /// Weight of the network's output.
    pub output: f64,
}

impl PlanStep {
    /// A step that does nothing yet.
    pub(super) fn at(timestep: f64, sigma: f64, noised: Noised, denoised_from: DenoisedFrom) -> Self {
        Self {
            timestep,
            sigma,
            noised,
            input_scale: 1.0,
            denoised_from,
            clip_denoised: None,
            next: Mix::default(),
            hold: None,
            remember: None,
            ends_step: true,
        }
    }

    /// Its weighted sums.
    pub(super) fn mixes(&self) -> impl Iterator<Item = &Mix> {
        std::iter::once(&self.next).chain(&self.hold).chain(&self.remember)
    }

    /// Whether noise is drawn: one draw serves all its sums.
    pub fn draws_noise(&self) -> bool {
        self.mixes().any(|mix| mix.noise != 0.0)
    }

    pub(super) fn numbers(&self) -> impl Iterator<Item = f64> {
        let fixed = [
            self.timestep,
            self.sigma,
            self.noised.signal,
            self.noised.noise,
            self.input_scale,
            self.denoised_from.sample,
            self.denoised_from.output,
            self.clip_denoised.unwrap_or(0.0),
        ];
        fixed.into_iter().chain(self.mixes().flat_map(Mix::numbers))
    }
}

impl Noised {
    /// Latents `x0 + sigma * n`.
    pub(super) fn ve(sigma: f64) -> Self {
        Self { signal: 1.0, noise: sigma }
    }

    /// Latents of unit variance with this share of signal (`alpha_cumprod`).
    pub(super) fn vp(share: f64) -> Self {
        Self { signal: share.sqrt(), noise: (1.0 - share).sqrt() }
    }
}

impl Mix {
    /// `x` as it is.
    pub(super) fn sample() -> Self {
        Self { sample: 1.0, ..Self::default() }
    }

    /// The denoised sample as it is.
    pub(super) fn denoised() -> Self {
        Self { denoised: 1.0, ..Self::default() }
    }

    fn numbers(&self) -> impl Iterator<Item = f64> {
        let fixed = [self.sample, self.held, self.denoised, self.output, self.noise, self.earlier_noise];
        fixed.into_iter().chain(self.remembered.iter().copied())
    }
}
