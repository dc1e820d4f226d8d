//! How sure a figure is: intervals for shares and for sums over windows, and tests of two runs against each other.
//!
//! All intervals are at 95 %. Nothing here knows what was measured.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

/// The 0.975 quantile of the normal distribution.
const NORMAL_QUANTILE: f64 = 1.959_963_984_540_054;
/// Resamples of a bootstrap: with so many, chance moves the ends by about 2 % of the interval's width.
const RESAMPLES: usize = 10_000;
/// Seed of every bootstrap, so that the same measurements give the same interval.
const SEED: u64 = 0x6D6F_6365;

/// Between these two the true figure lies, with 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// Wilson's score interval for a share: `successes` of `trials`; 0 to 1 without trials.
pub fn wilson(successes: u64, trials: u64) -> Interval {
    if trials == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let (n, share) = (trials as f64, successes as f64 / trials as f64);
    let z2 = NORMAL_QUANTILE * NORMAL_QUANTILE;
    let centre = (share + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = NORMAL_QUANTILE / (1.0 + z2 / n) * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
    Interval { low: (centre - half).max(0.0), high: (centre + half).min(1.0) }
}

/// McNemar's exact test: how likely it is by chance alone that of the questions which exactly one of two runs got right, the shares
/// are as uneven as `only_first` and `only_second`, or more. Two-sided: 2 · P(X <= min) for X binomial with p = 1/2, at most 1.
pub fn mcnemar(only_first: u64, only_second: u64) -> f64 {
    let n = only_first + only_second;
    let log_factorial = |k: u64| libm::lgamma(k as f64 + 1.0);
    let log_chance =
        |k: u64| log_factorial(n) - log_factorial(k) - log_factorial(n - k) - n as f64 * std::f64::consts::LN_2;
    let tail: f64 = (0..=only_first.min(only_second)).map(|k| libm::exp(log_chance(k))).sum();
    (2.0 * tail).min(1.0)
}

/// Percentile bootstrap over `units` (windows, questions): `statistic` gets the indices of a sample drawn with replacement, as many
/// as there are units, and the interval holds the middle 95 % of what it returns. Paired, if the statistic compares two runs
/// on the same units. `None` for less than two units: nothing is known of the spread.
pub fn bootstrap(units: usize, mut statistic: impl FnMut(&[usize]) -> f64) -> Option<Interval> {
    if units < 2 {
        return None;
    }
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let mut sample = vec![0; units];
    let mut values: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            // Multiply and shift: the bias is below units / 2^64.
            sample.fill_with(|| ((u128::from(random.next_u64()) * units as u128) >> 64) as usize);
            statistic(&sample)
        })
        .collect();
    values.sort_by(f64::total_cmp);
    Some(Interval { low: quantile(&values, 0.025), high: quantile(&values, 0.975) })
}

/// On a straight line between the two values around the place `q · (n - 1)` of a sorted list that is not empty.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = q * (sorted.len() - 1) as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (place - below as f64) * (sorted[above] - sorted[below])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn close(given: f64, wanted: f64, within: f64) {
        assert!((given - wanted).abs() <= within, "{given} is not {wanted}");
    }

    #[test]
    fn wilson_gives_the_published_intervals() {
        // Newcombe 1998 (Statistics in Medicine 17), table I, method 3.
        for (successes, trials, low, high) in
            [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
        {
            let interval = wilson(successes, trials);
            close(interval.low, low, 5e-5);
            close(interval.high, high, 5e-5);
        }
        assert_eq!(wilson(0, 0), Interval { low: 0.0, high: 1.0 });
    }

    #[test]
    fn mcnemar_counts_both_tails_of_the_binomial() {
        // By hand: 2 · (1 + 10 + 45) / 2^10, and 2 · 1 / 2^6.
        close(mcnemar(2, 8), 112.0 / 1024.0, 1e-12);
        close(mcnemar(6, 0), 2.0 / 64.0, 1e-12);
        assert_eq!((mcnemar(0, 0), mcnemar(5, 5)), (1.0, 1.0));
        assert_eq!(mcnemar(3, 17), mcnemar(17, 3));
        // Large counts: 4,900 against 5,100 is two standard deviations off; normal with continuity correction: 0.0466.
        close(mcnemar(4_900, 5_100), 0.0466, 2e-4);
    }

    #[test]
    fn bootstrap_of_a_mean_agrees_with_its_standard_error() {
        // 400 values with mean 0.5 and variance 1/12: the interval is 0.5 ± 1.96 · sqrt(1/12/400).
        let values: Vec<f64> = (0..400).map(|index| (f64::from(index) + 0.5) / 400.0).collect();
        let mean = |sample: &[usize]| sample.iter().map(|&index| values[index]).sum::<f64>() / 400.0;
        let interval = bootstrap(400, mean).unwrap();
        let half = NORMAL_QUANTILE * (1.0f64 / 12.0 / 400.0).sqrt();
        close(interval.low, 0.5 - half, 0.05 * half);
        close(interval.high, 0.5 + half, 0.05 * half);
        assert_eq!(Some(interval), bootstrap(400, mean), "the same measurements give the same interval");
    }

    #[test]
    fn one_window_says_nothing_about_the_spread() {
        assert_eq!(bootstrap(1, |_| 3.0), None);
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        close(quantile(&[1.0, 2.0, 4.0], 0.5), 2.0, 0.0);
        close(quantile(&[1.0, 2.0, 4.0], 0.75), 3.0, 1e-12);
    }
}
