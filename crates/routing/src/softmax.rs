//! Softmax in f64 over router scores, for the `cumulative` policy and the `score` eviction. Not the routing weights, which
//! are f32 and the engine's.
//!
//! exp is `libm`'s, never the platform's, so that choices are the same everywhere; the normaliser is summed by ascending id.

/// Writes softmax(scores) to `probabilities`; a score of minus infinity (no candidate) gets 0. One score must be finite.
pub(crate) fn softmax(scores: &[f32], probabilities: &mut Vec<f64>) {
    let highest = f64::from(scores.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    probabilities.clear();
    probabilities.extend(scores.iter().map(|&score| libm::exp(f64::from(score) - highest)));
    let sum: f64 = probabilities.iter().sum();
    for probability in probabilities {
        *probability /= sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_to_one_and_skips_what_is_no_candidate() {
        let mut probabilities = Vec::new();
        softmax(&[0.0, f32::NEG_INFINITY, 0.0, -0.0, 0.0], &mut probabilities);
        assert_eq!(probabilities, [0.25, 0.0, 0.25, 0.25, 0.25]);
        softmax(&[1.0, 2.0], &mut probabilities);
        assert!((probabilities[1] / probabilities[0] - std::f64::consts::E).abs() < 1e-15);
    }
}
