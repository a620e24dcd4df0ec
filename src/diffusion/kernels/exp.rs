//! The exponential function in operations that vectors have.

/// e^x to within 2e-7 of its value between -87 and 88; beyond, the value there.
///
/// x = n ln 2 + r with a whole n and |r| <= ln 2 / 2; e^r by the polynomial of Cephes' `expf`.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// Adding it rounds to whole numbers, which then are the low bits.
    const ROUNDING: f32 = 12_582_912.0;
    /// ln 2 in two parts; the first has few enough bits for exact products.
    const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    const POLYNOMIAL: [f32; 6] = [1.987_569_2e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

    let x = x.clamp(-87.0, 88.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUNDING;
    let whole = rounded - ROUNDING;
    let rest = x - whole * LN_2.0 - whole * LN_2.1;
    let polynomial = POLYNOMIAL.iter().fold(0.0, |sum, factor| sum * rest + factor);
    let exponent = rounded.to_bits().wrapping_sub(ROUNDING.to_bits()).wrapping_add(127) << 23;
    (polynomial * rest * rest + rest + 1.0) * f32::from_bits(exponent)
}

#[cfg(test)]
mod tests {
    #[test]
    fn is_close_to_the_true_value() {
        for step in -87_000..=88_000 {
            let x = step as f32 / 1000.0;
            let (fast, exact) = (f64::from(super::exp(x)), f64::from(x).exp());
            assert!((fast / exact - 1.0).abs() < 2e-7, "e^{x}: {fast}, not {exact}");
        }
        assert_eq!(super::exp(0.0), 1.0);
        assert_eq!((super::exp(-1e30), super::exp(1e30)), (super::exp(-87.0), super::exp(88.0)));
        assert!(super::exp(f32::NAN).is_nan());
    }
}
