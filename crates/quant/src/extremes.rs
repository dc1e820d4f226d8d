//! The extreme weights of a quant block, from which its scale follows. A NaN among the weights is always the result: a
//! block with a NaN gets a NaN for scale, and shows it when it is decoded, instead of a made-up finite weight.

/// The weight of the largest magnitude, with its sign; the first of equals.
pub(crate) fn of_largest_magnitude(values: &[f32; 32]) -> f32 {
    let mut extreme = values[0];
    for &value in values {
        if value.is_nan() {
            return value;
        }
        if value.abs() > extreme.abs() {
            extreme = value;
        }
    }
    extreme
}

/// The least and the greatest weight; both NaN if any is.
pub(crate) fn least_and_greatest(values: &[f32; 32]) -> (f32, f32) {
    let (mut least, mut greatest) = (values[0], values[0]);
    for &value in values {
        if value.is_nan() {
            return (value, value);
        }
        // Strict comparisons: of equals (zeros of both signs) the first stays.
        if value < least {
            least = value;
        }
        if value > greatest {
            greatest = value;
        }
    }
    (least, greatest)
}

/// `1 / scale`, and 0 for a block of zeros.
pub(crate) fn reciprocal(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}
