//! What diffusers' class of each sampler takes for granted where `scheduler_config.json` says nothing, and which keys it
//! does not read although others do (diffusers 0.42).

use super::betas::BetaSchedule;
use crate::domain::SamplerKind;

/// One class's defaults and habits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Class {
    pub(super) beta_schedule: BetaSchedule,
    pub(super) beta_start: f64,
    pub(super) beta_end: f64,
    /// Reads `rescale_betas_zero_snr`; the others sample such a checkpoint on the plain table.
    pub(super) reads_zero_snr: bool,
    /// Reads `use_karras_sigmas`, `use_exponential_sigmas` and `use_beta_sigmas`.
    pub(super) reads_sigma_wishes: bool,
    /// Minds `sigma_min` and `sigma_max` with Karras' levels (with exponential and beta ones all do).
    pub(super) karras_minds_bounds: bool,
    /// Rounds the timesteps of Karras' levels down where the betas are the cosine schedule's.
    pub(super) truncates_cosine: bool,
    /// Keeps fractional timesteps in double precision where the others round them to single.
    pub(super) double_timesteps: bool,
    /// Whether it clips the denoised sample when the file is silent; `None` where it knows no clipping.
    pub(super) clips: Option<bool>,
    /// Whether the last step ends without noise when the file is silent.
    pub(super) set_alpha_to_one: bool,
}

impl Class {
    /// `dpmpp_2s_a` and `dpmpp_3m_sde` have no class there: they visit the levels of `EulerDiscreteScheduler`.
    pub(super) fn of(kind: SamplerKind) -> Self {
        use SamplerKind::{
            Ddim, Ddpm, Deis, Dpm2, Dpm2Ancestral, DpmPp2m, DpmPp2mSde, DpmPp2sAncestral, DpmPp3mSde, DpmPpSde,
            DpmSolver, Euler, EulerAncestral, Heun, Lcm, Lms, Pndm, Tcd, UniPc,
        };

        let common = Self {
            beta_schedule: BetaSchedule::Linear,
            beta_start: 0.0001,
            beta_end: 0.02,
            reads_zero_snr: false,
            reads_sigma_wishes: true,
            karras_minds_bounds: true,
            truncates_cosine: false,
            double_timesteps: false,
            clips: None,
            set_alpha_to_one: true,
        };
        // Stable Diffusion's betas.
        let latent = Self { beta_start: 0.00085, beta_end: 0.012, ..common };
        match kind {
            Ddpm | Ddim => Self { reads_zero_snr: true, reads_sigma_wishes: false, clips: Some(true), ..common },
            Euler | UniPc => Self { reads_zero_snr: true, ..common },
            DpmPp2m | DpmPp2mSde => Self { reads_zero_snr: true, truncates_cosine: true, ..common },
            EulerAncestral | DpmPp2sAncestral | DpmPp3mSde => {
                Self { reads_zero_snr: true, reads_sigma_wishes: false, ..common }
            }
            Heun => Self { clips: Some(false), ..latent },
            Dpm2 | Dpm2Ancestral => latent,
            DpmPpSde => Self { karras_minds_bounds: false, double_timesteps: true, ..latent },
            Lms => Self { karras_minds_bounds: false, ..common },
            Pndm => Self { reads_sigma_wishes: false, set_alpha_to_one: false, ..common },
            Deis | DpmSolver => common,
            Lcm | Tcd => Self {
                beta_schedule: BetaSchedule::ScaledLinear,
                reads_zero_snr: true,
                reads_sigma_wishes: false,
                clips: (kind == Lcm).then_some(false),
                ..latent
            },
        }
    }
}
