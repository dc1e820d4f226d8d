//! exp, ln, sin, cos and powers, one source each for every platform: never the C library's, whose last bits differ.
//!
//! The f32 exp is ours, so that it runs on lanes; the f64 functions are those of the `libm` crate, plain Rust with errors under one unit in the last place.

use crate::arch::scalar::lanes::Scalar;
use crate::lanes::Lanes;

/// e^x in f32: at most 1.01 units in the last place off (the largest error over all f32 is 1.0086, at -27.379135), subnormals
/// included, 0 from -104 down, infinite from 88.73 up.
pub fn exp(x: f32) -> f32 {
    exp_lanes(Scalar, [x; 16])[0]
}

/// e^x in f64.
pub fn exp_f64(x: f64) -> f64 {
    libm::exp(x)
}

/// The natural logarithm in f64.
pub fn ln_f64(x: f64) -> f64 {
    libm::log(x)
}

/// The sine of an angle in radians, in f64.
pub fn sin_f64(x: f64) -> f64 {
    libm::sin(x)
}

/// The cosine of an angle in radians, in f64.
pub fn cos_f64(x: f64) -> f64 {
    libm::cos(x)
}

/// `x` to the power `y`, in f64.
pub fn pow_f64(x: f64, y: f64) -> f64 {
    libm::pow(x, y)
}

/// e^x on lanes: x = n·ln 2 + r with |r| <= ln 2 / 2, e^x = e^r · 2^n.
///
/// e^r = 1 + r + r²·q(r), q of degree 4 fitted for the least largest relative error, 2^-28.3 (near-minimax: least squares
/// re-weighted until the errors level out). ln 2 is taken as two floats; the first step is exact: n·LN_2 and x are both multiples of
/// 2^-24 where n is not 0, and their difference is under 1/2.
#[inline(always)]
pub(crate) fn exp_lanes<L: Lanes>(l: L, x: L::F) -> L::F {
    const LN_2: f32 = std::f32::consts::LN_2;
    const LN_2_REST: f32 = (std::f64::consts::LN_2 - LN_2 as f64) as f32;
    const Q: [f32; 5] = [0.499_999_94, 0.166_665_21, 0.041_668_39, 0.008_368_745, 0.001_381_453_9];
    // The constant first: a NaN in x stays.
    let x = l.max(l.splat(-104.0), x);
    let x = l.min(l.splat(89.0), x);
    let n = l.round(l.mul(x, l.splat(std::f32::consts::LOG2_E)));
    let r = l.fma(n, l.splat(-LN_2), x);
    let r = l.fma(n, l.splat(-LN_2_REST), r);
    let mut q = l.splat(Q[4]);
    for &coefficient in Q[..4].iter().rev() {
        q = l.fma(q, r, l.splat(coefficient));
    }
    let e = l.add(l.splat(1.0), l.fma(q, l.mul(r, r), r));
    l.scale(e, n)
}

/// e^x in f64 for x <= 0 (right a little above, too, where a logarithm was rounded), without a branch: x = n·ln 2 + r with |r| <= ln 2 / 2, e^x = e^r · 2^n, e^r by its Taylor series, whose first term left
/// out is under 2^-57. The relative error is under 2^-51; below -708 it stays at e^-708.
#[inline(always)]
pub(crate) fn exp_nonpositive(x: f64) -> f64 {
    const LN_2: f64 = std::f64::consts::LN_2;
    const LN_2_REST: f64 = 2.319_046_813_846_299_6e-17;
    /// Added to a number under 2^51, leaves it rounded to an integer in the sum's last bits.
    const ROUND: f64 = 1.5 * (1u64 << 52) as f64;
    const TAYLOR: [f64; 14] = {
        let mut coefficients = [1.0; 14];
        let mut k = 1;
        while k < coefficients.len() {
            coefficients[k] = coefficients[k - 1] / k as f64;
            k += 1;
        }
        coefficients
    };
    let x = if x < -708.0 { -708.0 } else { x };
    let rounded = x.mul_add(std::f64::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN_2_REST, n.mul_add(-LN_2, x));
    let mut e = TAYLOR[13];
    for &coefficient in TAYLOR[..13].iter().rev() {
        e = e.mul_add(r, coefficient);
    }
    e * f64::from_bits(rounded.to_bits().wrapping_add(1023) << 52)
}

/// 1 / (1 + e^-x) on lanes.
#[inline(always)]
pub(crate) fn sigmoid_lanes<L: Lanes>(l: L, x: L::F) -> L::F {
    l.div(l.splat(1.0), l.add(l.splat(1.0), exp_lanes(l, l.neg(x))))
}

/// x / (1 + e^-x) on lanes.
#[inline(always)]
pub(crate) fn silu_lanes<L: Lanes>(l: L, x: L::F) -> L::F {
    l.div(x, l.add(l.splat(1.0), exp_lanes(l, l.neg(x))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The distance of `got` from the true value in units of the last place of the f32 next to it.
    fn error_in_ulps(got: f32, truth: f64) -> f64 {
        let (_, exponent) = libm::frexp(truth);
        let ulp = libm::ldexp(1.0, (exponent - 24).max(-149));
        (f64::from(got) - truth).abs() / ulp
    }

    #[test]
    fn exp_is_within_its_stated_error_everywhere() {
        let (mut worst, mut at) = (0.0, 0.0);
        // A stride without common factors meets every binade at ever new places: 2.1 million of the 2^31 values.
        for bits in (0..=u32::MAX).step_by(2011) {
            let x = f32::from_bits(bits);
            if !(-103.9..=88.7).contains(&x) {
                continue;
            }
            let error = error_in_ulps(exp(x), exp_f64(f64::from(x)));
            if error > worst {
                (worst, at) = (error, x);
            }
        }
        assert!(worst < 1.01, "{worst} at {at:e}");
        assert!(worst > 0.5, "an error under half a unit means that nothing was compared");
    }

    #[test]
    fn exp_at_its_ends() {
        for (x, expected) in [
            (f32::NEG_INFINITY, 0.0),
            (-1e30, 0.0),
            (-104.0, 0.0),
            (-103.9, f32::from_bits(1)),
            (-0.0, 1.0),
            (0.0, 1.0),
            (1e-30, 1.0),
            (88.722_83, f32::MAX),
            (88.73, f32::INFINITY),
            (1e30, f32::INFINITY),
            (f32::INFINITY, f32::INFINITY),
        ] {
            let got = exp(x);
            if expected == f32::MAX {
                assert!(got.is_finite() && got > 3.402e38, "{x}: {got:e}");
            } else {
                assert_eq!(got.to_bits(), expected.to_bits(), "{x}: {got:e}");
            }
        }
        assert!(exp(f32::NAN).is_nan() && exp(-f32::NAN).is_nan());
        // Monotone across the place where subnormals begin.
        let mut last = 0.0;
        for i in 0..20_000 {
            let now = exp(-104.0 + i as f32 * 0.001);
            assert!(now >= last);
            last = now;
        }
    }

    #[test]
    fn exp_nonpositive_is_near_its_truth_and_ends_where_it_says() {
        let mut worst: f64 = 0.0;
        for i in 0..2_000_000 {
            let x = -708.0 * (f64::from(i) / 2e6).powi(3);
            worst = worst.max((exp_nonpositive(x) / exp_f64(x) - 1.0).abs());
        }
        assert!(worst < 2.0 * f64::EPSILON, "{worst:e}");
        assert!(worst > 0.0, "no difference at all means that nothing was compared");
        assert_eq!(exp_nonpositive(0.0), 1.0);
        assert!((exp_nonpositive(1e-12) / exp_f64(1e-12) - 1.0).abs() < 2.0 * f64::EPSILON);
        assert_eq!(exp_nonpositive(f64::NEG_INFINITY), exp_nonpositive(-708.0));
        assert!(exp_nonpositive(f64::NAN).is_nan());
    }

    #[test]
    fn sigmoid_and_silu_are_near_their_truth() {
        for i in -2000..=2000 {
            let x = i as f32 * 0.05;
            let e = exp_f64(-f64::from(x));
            let sigmoid = sigmoid_lanes(Scalar, [x; 16])[0];
            let silu = silu_lanes(Scalar, [x; 16])[0];
            // exp 1, then a sum and a quotient of half a unit each: 2 units in all, which may straddle a binade.
            if x > -87.0 {
                assert!(error_in_ulps(sigmoid, 1.0 / (1.0 + e)) < 4.0, "{x}");
                assert!(error_in_ulps(silu, f64::from(x) / (1.0 + e)) < 4.0, "{x}");
            } else {
                assert!(sigmoid < 1e-37 && silu.abs() < 1e-35, "{x}");
            }
        }
    }
}
