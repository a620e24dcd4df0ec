//! Which numbers the denoising networks compute with.

use std::fmt;
use std::str::FromStr;

use super::DeviceSpec;

/// What a denoising network holds its weights in and computes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ComputeDtype {
    /// 4 bytes: 24 bits of precision.
    #[default]
    F32,
    /// 2 bytes: 11 bits of precision, up to 65504.
    F16,
    /// 2 bytes: 8 bits of precision, up to 3.4e38.
    Bf16,
}

impl ComputeDtype {
    /// As settings and flags call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// Of a number, in bytes.
    pub fn size_bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

impl fmt::Display for ComputeDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What an operator asks for: `auto`, `f32`, `f16` or `bf16`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DtypeSpec {
    /// What suits the device: f32 on `cpu`, f16 on `cuda:N`.
    #[default]
    Auto,
    /// This one on every device.
    Only(ComputeDtype),
}

impl DtypeSpec {
    /// What that is on a device.
    pub fn on(self, device: DeviceSpec) -> ComputeDtype {
        match (self, device) {
            (Self::Only(dtype), _) => dtype,
            (Self::Auto, DeviceSpec::Cpu) => ComputeDtype::F32,
            (Self::Auto, DeviceSpec::Cuda(_)) => ComputeDtype::F16,
        }
    }

    /// The one that it is on all of these devices; as it is where they differ.
    pub fn among(self, devices: &[DeviceSpec]) -> Self {
        match devices {
            [first, rest @ ..] if rest.iter().all(|device| self.on(*device) == self.on(*first)) => {
                Self::Only(self.on(*first))
            }
            _ => self,
        }
    }
}

impl From<ComputeDtype> for DtypeSpec {
    fn from(dtype: ComputeDtype) -> Self {
        Self::Only(dtype)
    }
}

impl fmt::Display for DtypeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Only(dtype) => dtype.fmt(f),
        }
    }
}

impl FromStr for DtypeSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(ComputeDtype::F32.into()),
            "f16" => Ok(ComputeDtype::F16.into()),
            "bf16" => Ok(ComputeDtype::Bf16.into()),
            _ => Err(format!("`{text}` is no dtype; use `auto`, `f32`, `f16` or `bf16`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_that_agree_decide() {
        let (cpu, gpu) = (DeviceSpec::Cpu, DeviceSpec::Cuda(0));
        assert_eq!(DtypeSpec::Auto.among(&[cpu, cpu]), ComputeDtype::F32.into());
        assert_eq!(DtypeSpec::Auto.among(&[gpu, DeviceSpec::Cuda(1)]), ComputeDtype::F16.into());
        assert_eq!(DtypeSpec::Auto.among(&[cpu, gpu]), DtypeSpec::Auto);
        assert_eq!(DtypeSpec::from(ComputeDtype::Bf16).among(&[cpu, gpu]), ComputeDtype::Bf16.into());
    }

    #[test]
    fn each_is_read_as_it_is_written() {
        for text in ["auto", "f32", "f16", "bf16"] {
            assert_eq!(text.parse::<DtypeSpec>().map(|spec| spec.to_string()).as_deref(), Ok(text));
        }
        for text in ["", "fp16", "F16", "float16", "auto "] {
            let told = text.parse::<DtypeSpec>().expect_err("no dtype");
            assert!(told.contains(&format!("`{text}`")) && told.contains("`bf16`"), "{told}");
        }
    }

    #[test]
    fn auto_is_half_on_gpus_alone() {
        let on = |spec: DtypeSpec| [DeviceSpec::Cpu, DeviceSpec::Cuda(1)].map(|device| spec.on(device));
        assert_eq!(on(DtypeSpec::Auto), [ComputeDtype::F32, ComputeDtype::F16]);
        assert_eq!(on(ComputeDtype::Bf16.into()), [ComputeDtype::Bf16; 2]);
    }
}
