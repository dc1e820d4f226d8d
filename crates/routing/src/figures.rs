//! What is counted while routing: hits and misses, changed selections, retention of the strongest, lifetimes, expert usage
//! (METHOD.md, "Figures").
//!
//! Plain sums of integers, so that phases, layers and shards can be added in any order.

use std::ops::{AddAssign, Sub};

/// Counts of one layer, or of several added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tokens times layers.
    pub tokens: u64,
    /// Experts the model itself would have run: tokens · layers · K. What rates are shares of.
    pub own_selections: u64,
    /// Experts that ran: fewer than `own_selections` under `prune` and `drop-cold`.
    pub selections: u64,
    /// Selections that were cached before their token.
    pub hits: u64,
    /// Selections that were not.
    pub misses: u64,
    /// The model's own choices that did not run.
    pub changed: u64,
    /// The model's strongest choices looked at for retention: tokens · layers · (1 if N <= 16, else 2, at most K).
    pub strongest: u64,
    /// How many of `strongest` ran.
    pub strongest_kept: u64,
}

impl Counts {
    /// misses / (tokens · layers · K); 0 without tokens.
    pub fn miss_rate(&self) -> f64 {
        ratio(self.misses, self.own_selections)
    }

    /// hits / selections: of the experts that ran, so that dropped ones are neither hits nor misses; 0 without tokens.
    pub fn hit_rate(&self) -> f64 {
        ratio(self.hits, self.selections)
    }

    /// Share of the model's own choices that did not run; 0 without tokens.
    pub fn changed_share(&self) -> f64 {
        ratio(self.changed, self.own_selections)
    }

    /// Share of the model's strongest choices that ran; 0 without tokens.
    pub fn top_kept(&self) -> f64 {
        ratio(self.strongest_kept, self.strongest)
    }
}

impl Sub for Counts {
    type Output = Counts;

    /// What came after `earlier`.
    fn sub(self, earlier: Counts) -> Counts {
        Counts {
            tokens: self.tokens - earlier.tokens,
            own_selections: self.own_selections - earlier.own_selections,
            selections: self.selections - earlier.selections,
            hits: self.hits - earlier.hits,
            misses: self.misses - earlier.misses,
            changed: self.changed - earlier.changed,
            strongest: self.strongest - earlier.strongest,
            strongest_kept: self.strongest_kept - earlier.strongest_kept,
        }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.own_selections += other.own_selections;
        self.selections += other.selections;
        self.hits += other.hits;
        self.misses += other.misses;
        self.changed += other.changed;
        self.strongest += other.strongest;
        self.strongest_kept += other.strongest_kept;
    }
}

impl std::iter::Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |mut sum, more| {
            sum += more;
            sum
        })
    }
}

/// How many tokens experts stayed cached, from the end of the token that admitted each to the end of the token that
/// evicted it, or to the end of the run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lifetimes {
    /// Stays counted, those still going on included.
    pub count: u64,
    /// Of these, still cached when counted.
    pub still_cached: u64,
    /// Sum of the stays in tokens.
    pub sum: u64,
    /// Sum of their squares.
    pub sum_of_squares: u128,
}

impl Lifetimes {
    /// Adds one stay.
    pub(crate) fn add(&mut self, tokens: u64, still_cached: bool) {
        self.count += 1;
        self.still_cached += u64::from(still_cached);
        self.sum += tokens;
        self.sum_of_squares += u128::from(tokens) * u128::from(tokens);
    }

    /// Mean stay in tokens; 0 if there was none.
    pub fn mean(&self) -> f64 {
        ratio(self.sum, self.count)
    }

    /// Standard deviation of the stays (of the population); 0 if there was none.
    pub fn standard_deviation(&self) -> f64 {
        if self.count == 0 {
            return 0.0;
        }
        let mean = self.mean();
        libm::sqrt((self.sum_of_squares as f64 / self.count as f64 - mean * mean).max(0.0))
    }
}

impl AddAssign for Lifetimes {
    fn add_assign(&mut self, other: Self) {
        self.count += other.count;
        self.still_cached += other.still_cached;
        self.sum += other.sum;
        self.sum_of_squares += other.sum_of_squares;
    }
}

/// exp of the entropy of selection counts: how many experts a layer uses in effect; 0 if none was ever chosen.
pub fn effective_experts(usage: &[u64]) -> f64 {
    let total: u64 = usage.iter().sum();
    if total == 0 {
        return 0.0;
    }
    let entropy: f64 = usage
        .iter()
        .filter(|&&count| count > 0)
        .map(|&count| {
            let share = ratio(count, total);
            -share * libm::log(share)
        })
        .sum();
    libm::exp(entropy)
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_have_mean_and_deviation() {
        let mut lifetimes = Lifetimes::default();
        for tokens in [2, 4, 4, 4, 5, 5, 7, 9] {
            lifetimes.add(tokens, tokens == 9);
        }
        assert_eq!((lifetimes.mean(), lifetimes.standard_deviation(), lifetimes.still_cached), (5.0, 2.0, 1));
        assert_eq!(Lifetimes::default().mean(), 0.0);
    }

    #[test]
    fn even_usage_is_the_number_of_experts() {
        assert!((effective_experts(&[5, 5, 0, 5, 5]) - 4.0).abs() < 1e-12);
        assert_eq!(effective_experts(&[0, 9, 0]), 1.0);
        assert_eq!(effective_experts(&[0, 0]), 0.0);
    }
}
