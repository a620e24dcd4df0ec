//! What the network's output means, and how a denoised sample comes of it.

use super::DenoisedFrom;

/// What the network was trained to say of its noisy input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// The velocity `alpha * noise - sigma * x0` (Salimans and Ho 2022, appendix D).
    V,
    /// The picture without noise.
    Sample,
}

impl PredictionType {
    /// For latents `x = alpha * x0 + sigma * n` with `alpha^2 + sigma^2 = 1`; not finite for epsilon where alpha is 0.
    pub(super) fn denoised_vp(self, alpha: f64, sigma: f64) -> DenoisedFrom {
        match self {
            Self::Epsilon => DenoisedFrom { sample: 1.0 / alpha, output: -sigma / alpha },
            Self::V => DenoisedFrom { sample: alpha, output: -sigma },
            Self::Sample => DenoisedFrom { sample: 0.0, output: 1.0 },
        }
    }

    /// The noise in such latents, as weights of `x` and of the output.
    pub(super) fn noise_vp(self, alpha: f64, sigma: f64) -> DenoisedFrom {
        match self {
            Self::Epsilon => DenoisedFrom { sample: 0.0, output: 1.0 },
            Self::V => DenoisedFrom { sample: sigma, output: alpha },
            Self::Sample => DenoisedFrom { sample: 1.0 / sigma, output: -alpha / sigma },
        }
    }

    /// For latents `x = x0 + sigma * n`, whose network input is `x / sqrt(sigma^2 + 1)`.
    pub(super) fn denoised_ve(self, sigma: f64) -> DenoisedFrom {
        let variance = sigma * sigma + 1.0;
        match self {
            Self::Epsilon => DenoisedFrom { sample: 1.0, output: -sigma },
            Self::V => DenoisedFrom { sample: 1.0 / variance, output: -sigma / variance.sqrt() },
            Self::Sample => DenoisedFrom { sample: 0.0, output: 1.0 },
        }
    }
}
