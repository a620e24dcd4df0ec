//! Fast CPU primitives behind safe functions, each beside its plain twin and tested against it.
//!
//! Knows no networks. Other devices take the plain twin. Every number is a sum whose terms are added in an order of its own,
//! so its bits depend neither on the other samples of a batch nor on the number of threads.

mod bands;
mod conv2d;
mod exp;
mod group_norm;
mod linear;
mod sums;

pub use conv2d::{PackedConv2d, conv2d_plain};
pub use group_norm::{After, group_norm, group_norm_plain};
pub use linear::{PackedLinear, linear_plain};

use candle_core::{CpuStorage, Layout, Result, bail};

/// The numbers of a contiguous f32 tensor.
fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((from, to))) => Ok(&values[from..to]),
        _ => bail!("this kernel takes contiguous f32"),
    }
}

#[cfg(test)]
fn assert_close(what: &str, fast: &candle_core::Tensor, plain: &candle_core::Tensor, tolerance: f32) {
    let number = |x: candle_core::Result<candle_core::Tensor>| x.and_then(|x| x.to_scalar::<f32>()).expect("a number");
    let worst = number((fast - plain).and_then(|d| d.abs()?.max_all()));
    let range = number(plain.abs().and_then(|x| x.max_all()));
    assert!(worst <= tolerance * range, "{what}: {worst} of {range}");
}
