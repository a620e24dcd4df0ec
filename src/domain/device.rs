//! Which device a worker owns.

use std::fmt;
use std::str::FromStr;

/// A device by name: `cpu`, `cuda:0`, `cuda:1`, ...
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceSpec {
    /// The processor; several workers may share it.
    Cpu,
    /// An NVIDIA GPU by its number.
    Cuda(usize),
}

impl DeviceSpec {
    /// Whether both are of one kind: what one began, another may go on with.
    pub fn is_like(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl FromStr for DeviceSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            Some(("cuda", number)) if number.parse::<usize>().is_ok() => Ok(Self::Cuda(number.parse().unwrap_or(0))),
            _ => Err(format!("`{text}` is no device; use `cpu` or `cuda:0`, `cuda:1`, ...")),
        }
    }
}
