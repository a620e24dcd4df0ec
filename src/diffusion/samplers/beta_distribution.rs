//! Quantiles of the beta distribution with both parameters 0.6 (scipy's `beta.ppf(p, 0.6, 0.6)`).

const A: f64 = 0.6;

/// Where the distribution's integral from 0 reaches `p`, both from 0 to 1.
pub(super) fn beta_quantile(p: f64) -> f64 {
    if p > 0.5 {
        // The density is symmetric about one half.
        return 1.0 - beta_quantile(1.0 - p);
    }
    if p <= 0.0 {
        return 0.0;
    }
    // The share below x, p(x), grows like x^A: its A-th root is nearly straight, so Newton's steps on it converge from
    // anywhere in (0, 1/2].
    let whole = 2.0 * integral(0.5);
    let target = p * whole;
    let mut x = 0.5 * (2.0 * p).powf(1.0 / A);
    for _ in 0..MOST_STEPS {
        let value = integral(x);
        let slope = ((1.0 - x) * x).powf(A - 1.0);
        // d(value^(1/A))/dx = value^(1/A - 1) / A * slope
        let step = A * (value - target.powf(1.0 / A) * value.powf(1.0 - 1.0 / A)) / slope;
        x = (x - step).clamp(f64::MIN_POSITIVE, 0.5);
        if step.abs() <= f64::EPSILON * x {
            break;
        }
    }
    x
}

/// Five are enough from 1e-12 to one half.
const MOST_STEPS: usize = 50;

/// The integral of `t^(A - 1) * (1 - t)^(A - 1)` from 0 to `x` (at most 1/2): the power series of the second factor,
/// integrated term by term.
fn integral(x: f64) -> f64 {
    // coefficient of t^k: (1 - A)(2 - A) ... (k - A) / k!
    let (mut coefficient, mut power, mut sum) = (1.0, x.powf(A), 0.0);
    for k in 0..MOST_TERMS {
        let term = coefficient * power / (A + k as f64);
        sum += term;
        if term <= f64::EPSILON * 0.1 * sum {
            break;
        }
        coefficient *= (k as f64 + 1.0 - A) / (k as f64 + 1.0);
        power *= x;
    }
    sum
}

/// Each term is less than half of the one before.
const MOST_TERMS: usize = 70;

#[cfg(test)]
mod tests {
    use super::*;

    /// scipy 1.17's numbers.
    #[test]
    fn quantiles_are_scipys() {
        for (p, expected) in QUANTILES {
            let (ours, mirrored) = (beta_quantile(p), beta_quantile(1.0 - p));
            assert!((ours - expected).abs() <= 1e-13 * expected, "{p}: {ours}, there {expected}");
            assert!((ours + mirrored - 1.0).abs() < 1e-13, "{p}: {ours} and {mirrored}");
        }
        assert_eq!((beta_quantile(0.0), beta_quantile(1.0)), (0.0, 1.0));
        assert_eq!(beta_quantile(0.5), 0.5);
    }

    const QUANTILES: [(f64, f64); 6] = [
        (1e-9, 1.85588246249141e-15),
        (0.001, 1.855873851745199e-5),
        (0.05263157894736842, 0.013671081564469266),
        (0.2, 0.12292175045833292),
        (0.37, 0.3227940020973615),
        (0.499, 0.49861275046460674),
    ];
}
