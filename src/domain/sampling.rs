//! The names of samplers and sigma schedules, as they stand on the wire and on the command line.
//!
//! What they compute lives in `diffusion::samplers`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! wire_names {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident => $wire:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $wire)] $variant,)+ }

        impl $name {
            /// Every value, in the order they are shown to people.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name on the wire.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $wire,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl FromStr for $name {
            type Err = ();

            fn from_str(text: &str) -> Result<Self, ()> {
                Self::ALL.iter().copied().find(|value| value.name() == text).ok_or(())
            }
        }
    };
}
pub(crate) use wire_names;

wire_names! {
    /// The rule that takes a sample from one noise level to the next.
    SamplerKind {
        /// DDPM ancestral sampling (Ho et al. 2020, algorithm 2); diffusers `DDPMScheduler`.
        Ddpm => "ddpm",
        /// DDIM (Song et al. 2021, equation 12), with `eta`; diffusers `DDIMScheduler`.
        Ddim => "ddim",
        /// PNDM, or PLMS with `skip_prk_steps` (Liu et al. 2022); diffusers `PNDMScheduler`.
        Pndm => "pndm",
        /// Euler on the probability-flow ODE (Karras et al. 2022); diffusers `EulerDiscreteScheduler`.
        Euler => "euler",
        /// Euler with ancestral noise; diffusers `EulerAncestralDiscreteScheduler`.
        EulerAncestral => "euler_a",
        /// Heun's method (Karras et al. 2022, algorithm 1), two evaluations a step; diffusers `HeunDiscreteScheduler`.
        Heun => "heun",
        /// DPM-Solver-2 in k-diffusion's form, two evaluations a step; diffusers `KDPM2DiscreteScheduler`.
        Dpm2 => "dpm2",
        /// The same with ancestral noise; diffusers `KDPM2AncestralDiscreteScheduler`.
        Dpm2Ancestral => "dpm2_a",
        /// Linear multistep of order 4; diffusers `LMSDiscreteScheduler`.
        Lms => "lms",
        /// DPM-Solver++, singlestep (Lu et al. 2022); diffusers `DPMSolverSinglestepScheduler`.
        DpmSolver => "dpm_solver",
        /// DPM-Solver++ (2S) with ancestral noise, two evaluations a step; k-diffusion `sample_dpmpp_2s_ancestral`.
        DpmPp2sAncestral => "dpmpp_2s_a",
        /// DPM-Solver++ (2M) (Lu et al. 2022); diffusers `DPMSolverMultistepScheduler`.
        DpmPp2m => "dpmpp_2m",
        /// The same with noise; diffusers `DPMSolverMultistepScheduler` with `algorithm_type="sde-dpmsolver++"`.
        DpmPp2mSde => "dpmpp_2m_sde",
        /// DPM-Solver++ (3M) with noise; k-diffusion `sample_dpmpp_3m_sde`.
        DpmPp3mSde => "dpmpp_3m_sde",
        /// DPM-Solver++ with noise, two evaluations a step; k-diffusion `sample_dpmpp_sde`, diffusers `DPMSolverSDEScheduler`.
        DpmPpSde => "dpmpp_sde",
        /// UniPC, predictor and corrector (Zhao et al. 2023); diffusers `UniPCMultistepScheduler`.
        UniPc => "unipc",
        /// DEIS (Zhang and Chen 2023); diffusers `DEISMultistepScheduler`.
        Deis => "deis",
        /// For latent consistency models (Luo et al. 2023); diffusers `LCMScheduler`.
        Lcm => "lcm",
        /// For models distilled by trajectory consistency (Zheng et al. 2024), with `eta`; diffusers `TCDScheduler`.
        Tcd => "tcd",
    }
}

wire_names! {
    /// Which noise levels a sampler visits.
    SigmaSchedule {
        /// The levels of the checkpoint's own timestep spacing.
        Default => "default",
        /// Karras et al. 2022, equation 5, rho = 7.
        Karras => "karras",
        /// Equal strides of log sigma.
        Exponential => "exponential",
        /// Quantiles of the beta distribution B(0.6, 0.6), over sigma as in diffusers.
        Beta => "beta",
        /// Equal strides through the training levels.
        Simple => "simple",
        /// Equal strides of the timestep, the last one led to 0.
        SgmUniform => "sgm_uniform",
        /// Every k-th training level from the second.
        DdimUniform => "ddim_uniform",
        /// Equal strides of arctan sigma (Sabour et al. 2024).
        KlOptimal => "kl_optimal",
        /// Half the steps linear near the noise, the other half quadratic (Mochi).
        LinearQuadratic => "linear_quadratic",
        /// Optimised for Stable Diffusion 1.x (Sabour et al. 2024).
        AlignYourSteps => "align_your_steps",
    }
}

wire_names! {
    /// Whose random numbers a seed means.
    NoiseSource {
        /// PyTorch's CPU generator, as diffusers with `torch.Generator("cpu")`.
        TorchCpu => "torch-cpu",
        /// PyTorch's CUDA generator, as diffusers with `torch.Generator("cuda")` and A1111 on an NVIDIA GPU.
        TorchCuda => "torch-cuda",
    }
}

/// What requests meant before they could say.
impl Default for NoiseSource {
    fn default() -> Self {
        Self::TorchCpu
    }
}

impl SamplerKind {
    /// What A1111 calls it, or would.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ddpm => "DDPM",
            Self::Ddim => "DDIM",
            Self::Pndm => "PLMS",
            Self::Euler => "Euler",
            Self::EulerAncestral => "Euler a",
            Self::Heun => "Heun",
            Self::Dpm2 => "DPM2",
            Self::Dpm2Ancestral => "DPM2 a",
            Self::Lms => "LMS",
            Self::DpmSolver => "DPM++ 2S",
            Self::DpmPp2sAncestral => "DPM++ 2S a",
            Self::DpmPp2m => "DPM++ 2M",
            Self::DpmPp2mSde => "DPM++ 2M SDE",
            Self::DpmPp3mSde => "DPM++ 3M SDE",
            Self::DpmPpSde => "DPM++ SDE",
            Self::UniPc => "UniPC",
            Self::Deis => "DEIS",
            Self::Lcm => "LCM",
            Self::Tcd => "TCD",
        }
    }

    /// diffusers' class; `None` where it has none of its own (`dpmpp_2m_sde` is an option of the class of `dpmpp_2m`).
    pub const fn diffusers_class(self) -> Option<&'static str> {
        match self {
            Self::Ddpm => Some("DDPMScheduler"),
            Self::Ddim => Some("DDIMScheduler"),
            Self::Pndm => Some("PNDMScheduler"),
            Self::Euler => Some("EulerDiscreteScheduler"),
            Self::EulerAncestral => Some("EulerAncestralDiscreteScheduler"),
            Self::Heun => Some("HeunDiscreteScheduler"),
            Self::Dpm2 => Some("KDPM2DiscreteScheduler"),
            Self::Dpm2Ancestral => Some("KDPM2AncestralDiscreteScheduler"),
            Self::Lms => Some("LMSDiscreteScheduler"),
            Self::DpmSolver => Some("DPMSolverSinglestepScheduler"),
            Self::DpmPp2m => Some("DPMSolverMultistepScheduler"),
            Self::DpmPpSde => Some("DPMSolverSDEScheduler"),
            Self::UniPc => Some("UniPCMultistepScheduler"),
            Self::Deis => Some("DEISMultistepScheduler"),
            Self::Lcm => Some("LCMScheduler"),
            Self::Tcd => Some("TCDScheduler"),
            Self::DpmPp2sAncestral | Self::DpmPp2mSde | Self::DpmPp3mSde => None,
        }
    }
}

impl SigmaSchedule {
    /// What A1111 calls it, or would.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Default => "Automatic",
            Self::Karras => "Karras",
            Self::Exponential => "Exponential",
            Self::Beta => "Beta",
            Self::Simple => "Simple",
            Self::SgmUniform => "SGM Uniform",
            Self::DdimUniform => "DDIM",
            Self::KlOptimal => "KL Optimal",
            Self::LinearQuadratic => "Linear Quadratic",
            Self::AlignYourSteps => "Align Your Steps",
        }
    }

    /// By its name on the wire, or as A1111 calls it (in small or capital letters).
    pub fn named(text: &str) -> Option<Self> {
        let labelled = || Self::ALL.iter().copied().find(|schedule| schedule.label().eq_ignore_ascii_case(text));
        text.parse().ok().or_else(labelled)
    }
}

/// A sampler as people name it elsewhere, which may say the sigma schedule too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedSampler {
    /// The rule.
    pub kind: SamplerKind,
    /// The levels, where the name says them.
    pub sigma_schedule: Option<SigmaSchedule>,
}

impl NamedSampler {
    /// By its name on the wire (`dpmpp_2m`), diffusers' class (`DPMSolverMultistepScheduler`), or A1111's label with or
    /// without a sigma schedule after it (`DPM++ 2M`, `DPM++ 2M Karras`; in small or capital letters).
    pub fn parse(text: &str) -> Option<Self> {
        let bare = |kind| Self { kind, sigma_schedule: None };
        if let Ok(kind) = text.parse() {
            return Some(bare(kind));
        }
        if let Some(kind) = SamplerKind::ALL.iter().find(|kind| kind.diffusers_class() == Some(text)) {
            return Some(bare(*kind));
        }
        if let Some(kind) = labelled(text) {
            return Some(bare(kind));
        }
        // The schedule's label is the end of the name: "DPM++ 2M SDE" + " " + "SGM Uniform".
        SigmaSchedule::ALL.iter().find_map(|schedule| {
            let at = text.len().checked_sub(schedule.label().len())?;
            let (rest, end) = (text.get(..at)?, text.get(at..)?);
            let kind = labelled(rest.strip_suffix(' ')?)?;
            end.eq_ignore_ascii_case(schedule.label()).then_some(Self { kind, sigma_schedule: Some(*schedule) })
        })
    }
}

fn labelled(text: &str) -> Option<SamplerKind> {
    // A1111 has it under the name of its second half.
    let text = if text.eq_ignore_ascii_case("PNDM") { "PLMS" } else { text };
    SamplerKind::ALL.iter().copied().find(|kind| kind.label().eq_ignore_ascii_case(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samplers_answer_to_their_names_elsewhere() {
        use SamplerKind::{DpmPp2m, DpmPp2mSde, DpmPp3mSde, DpmPpSde, EulerAncestral, Lms, Pndm, UniPc};
        let table = [
            ("dpmpp_2m", DpmPp2m, None),
            ("DPMSolverMultistepScheduler", DpmPp2m, None),
            ("DPM++ 2M", DpmPp2m, None),
            ("DPM++ 2M Karras", DpmPp2m, Some(SigmaSchedule::Karras)),
            ("dpm++ 2m karras", DpmPp2m, Some(SigmaSchedule::Karras)),
            ("DPM++ 2M SDE", DpmPp2mSde, None),
            ("DPM++ 2M SDE Karras", DpmPp2mSde, Some(SigmaSchedule::Karras)),
            ("DPM++ 2M SDE SGM Uniform", DpmPp2mSde, Some(SigmaSchedule::SgmUniform)),
            ("DPM++ 3M SDE Exponential", DpmPp3mSde, Some(SigmaSchedule::Exponential)),
            ("DPM++ SDE Karras", DpmPpSde, Some(SigmaSchedule::Karras)),
            ("DPMSolverSDEScheduler", DpmPpSde, None),
            ("Euler a", EulerAncestral, None),
            ("EulerAncestralDiscreteScheduler", EulerAncestral, None),
            ("LMS Karras", Lms, Some(SigmaSchedule::Karras)),
            ("UniPC", UniPc, None),
            ("PLMS", Pndm, None),
            ("PNDM", Pndm, None),
        ];
        for (text, kind, sigma_schedule) in table {
            assert_eq!(NamedSampler::parse(text), Some(NamedSampler { kind, sigma_schedule }), "{text}");
        }
        for text in ["", " ", "Karras", " Karras", "Euler  a", "eulr", "DPM++ 2MKarras", "DPM++ 2M Karrás", "é Karras"]
        {
            assert_eq!(NamedSampler::parse(text), None, "{text}");
        }
    }

    #[test]
    fn no_two_samplers_or_schedules_share_a_name() {
        for kind in SamplerKind::ALL {
            for name in [Some(kind.name()), Some(kind.label()), kind.diffusers_class()].into_iter().flatten() {
                assert_eq!(
                    NamedSampler::parse(name),
                    Some(NamedSampler { kind: *kind, sigma_schedule: None }),
                    "{name}"
                );
            }
        }
        for schedule in SigmaSchedule::ALL {
            assert_eq!(SigmaSchedule::named(schedule.name()), Some(*schedule));
            assert_eq!(SigmaSchedule::named(&schedule.label().to_uppercase()), Some(*schedule));
        }
        assert_eq!(SigmaSchedule::named("karass"), None);
    }
}
