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
        /// Euler on the probability-flow ODE (Karras et al. 2022); diffusers `EulerDiscreteScheduler`.
        Euler => "euler",
        /// Euler with ancestral noise; diffusers `EulerAncestralDiscreteScheduler`.
        EulerAncestral => "euler_a",
        /// DPM-Solver++ (2M) (Lu et al. 2022); diffusers `DPMSolverMultistepScheduler`.
        DpmPp2m => "dpmpp_2m",
    }
}

wire_names! {
    /// Which noise levels a sampler visits.
    SigmaSchedule {
        /// The levels of the checkpoint's own timestep spacing.
        Default => "default",
        /// Karras et al. 2022, equation 5, rho = 7.
        Karras => "karras",
    }
}
