//! The Box-Muller transform, in the two roundings PyTorch's CPU `normal_` has.
//!
//! For 16 and more values PyTorch calls an AVX2 routine, whose logarithm, sine and cosine are single-precision Cephes
//! polynomials (J. Pommier's `avx_mathfun.h`, after S. Moshier's `logf.c` and `sinf.c`); its AVX-512 build has the very
//! same bits. GCC fuses some of the multiplications and additions there. Here the same polynomials are plain scalar
//! `f32`, with `mul_add` exactly where that build fuses, so that every machine draws the same bits. Which ones fuse was
//! found by comparing with PyTorch 2.15 (`tests/it/golden/noise.rs`).

/// Values the fast routine makes at a time: eight cosines, then eight sines.
pub(super) const BLOCK: usize = 16;

/// Turns 16 uniform numbers in [0, 1) into 16 standard normal ones: `block[j]` and `block[j + 8]` make a pair.
pub(super) fn normal_block(block: &mut [f32; BLOCK]) {
    let (first, second) = block.split_at_mut(BLOCK / 2);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * ln(1.0 - *a)).sqrt();
        let (sin, cos) = sin_cos(std::f32::consts::TAU * *b);
        // The reference multiplies by a standard deviation of 1 and adds a mean of 0: a negative zero becomes positive.
        *a = radius * cos + 0.0;
        *b = radius * sin + 0.0;
    }
}

/// Two uniform numbers in [0, 1) to two independent standard normal ones, in double precision: what PyTorch does for
/// fewer than 16 values.
pub(super) fn normal_pair(u1: f64, u2: f64) -> (f64, f64) {
    let radius = (-2.0 * (-u2).ln_1p()).sqrt();
    let (sin, cos) = (std::f64::consts::TAU * u1).sin_cos();
    (radius * cos, radius * sin)
}

/// Two random words to two independent standard normal values, as cuRAND's `curand_normal4` makes them: the words become
/// numbers in (0, 1] and (0, 2 pi] in single precision, with one rounding as the GPU fuses them.
///
/// The logarithm, the sine and the cosine are those of `f64`, rounded: the GPU's own are within 2^-21 of them (CUDA
/// Programming Guide, `__sincosf`), but nowhere specified to the bit.
pub(super) fn normal_pair_f32(x: u32, y: u32) -> (f32, f32) {
    const UNIT: f32 = 1.0 / 4_294_967_296.0;
    const TURN: f32 = UNIT * std::f32::consts::TAU;
    let u = (x as f32).mul_add(UNIT, UNIT / 2.0);
    let v = f64::from((y as f32).mul_add(TURN, TURN / 2.0));
    let radius = (-2.0 * f64::from(u).ln()).sqrt();
    ((radius * v.sin()) as f32, (radius * v.cos()) as f32)
}

/// Cephes `logf` for x in [2^-126, 1].
fn ln(x: f32) -> f32 {
    const SQRT_HALF: f32 = std::f32::consts::FRAC_1_SQRT_2;
    const POLYNOMIAL: [f32; 9] = [
        0.070_376_836,
        -0.115_146_1,
        0.116_769_984,
        -0.124_201_41,
        0.142_493_23,
        -0.166_680_57,
        0.200_007_14,
        -0.249_999_94,
        0.333_333_3,
    ];
    // ln 2 in two parts, the larger one exact in few bits.
    const LN2_LOW: f32 = -0.000_212_194_44;
    const LN2_HIGH: f32 = 0.693_359_4;

    // x = mantissa * 2^exponent with the mantissa in [sqrt(1/2), sqrt(2)); then ln x = exponent ln 2 + ln(1 + m).
    let mut exponent = (x.to_bits() >> 23) as i32 - 126;
    let mantissa = f32::from_bits((x.to_bits() & 0x007f_ffff) | 0x3f00_0000);
    let mut m = mantissa - 1.0;
    if mantissa < SQRT_HALF {
        exponent -= 1;
        m += mantissa;
    }
    let exponent = exponent as f32;
    let m2 = m * m;
    let mut y = POLYNOMIAL[0];
    for &coefficient in &POLYNOMIAL[1..] {
        y = y.mul_add(m, coefficient);
    }
    y *= m;
    y = y.mul_add(m2, exponent * LN2_LOW);
    y -= 0.5 * m2;
    exponent.mul_add(LN2_HIGH, m + y)
}

/// Cephes `sinf` and `cosf` for x in [0, 2 pi].
fn sin_cos(x: f32) -> (f32, f32) {
    const FOUR_OVER_PI: f32 = 1.273_239_5;
    // pi/4 in three parts, for x - octant * pi/4 without loss.
    const PI_4_PARTS: [f32; 3] = [0.785_156_25, 0.000_241_875_65, 3.774_895e-8];
    const COS: [f32; 3] = [2.443_315_7e-5, -0.001_388_731_6, 0.041_666_646];
    const SIN: [f32; 3] = [-0.000_195_152_96, 0.008_332_161, -0.166_666_55];

    let octant = ((x * FOUR_OVER_PI) as i32 + 1) & !1;
    let turns = octant as f32;
    let mut r = x;
    for part in PI_4_PARTS {
        r = turns.mul_add(-part, r);
    }
    let r2 = r * r;
    let mut cos = COS[0].mul_add(r2, COS[1]).mul_add(r2, COS[2]);
    cos *= r2;
    cos = cos.mul_add(r2, -(0.5 * r2)) + 1.0;
    let mut sin = SIN[0].mul_add(r2, SIN[1]).mul_add(r2, SIN[2]);
    sin *= r2;
    sin = sin.mul_add(r, r);

    // Octants 2 and 6 swap the two; the signs follow the quadrant.
    let (sin, cos) = if octant & 2 == 0 { (sin, cos) } else { (cos, sin) };
    let sin = if octant & 4 == 0 { sin } else { -sin };
    let cos = if (octant - 2) & 4 == 0 { -cos } else { cos };
    (sin, cos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_polynomials_are_what_they_stand_for() {
        // A few units in the last place of the largest value; the bits themselves are held by tests/it/golden/noise.rs.
        for step in 1..=4096_u32 {
            let u = step as f32 / 4096.0;
            assert!((f64::from(ln(u)) - f64::from(u).ln()).abs() < 1e-6, "ln {u}");
            let (sin, cos) = sin_cos(std::f32::consts::TAU * u);
            let angle = f64::from(std::f32::consts::TAU * u);
            assert!((f64::from(sin) - angle.sin()).abs() < 3e-7, "sin {angle}");
            assert!((f64::from(cos) - angle.cos()).abs() < 3e-7, "cos {angle}");
        }
    }

    #[test]
    fn the_ends_of_the_range_are_finite_and_zero_has_no_sign() {
        let mut block = [0.0; BLOCK];
        normal_block(&mut block);
        assert!(block.iter().all(|value| value.to_bits() == 0), "radius 0 gives positive zeros: {block:?}");
        let below_one = 1.0 - f32::EPSILON / 2.0;
        let mut block = [below_one; BLOCK];
        normal_block(&mut block);
        assert!(block.iter().all(|value| value.is_finite() && value.abs() < 6.0), "{block:?}");
        let (a, b) = normal_pair(0.5, 0.0);
        assert_eq!((a.abs(), b.abs()), (0.0, 0.0));
    }
}
