//! Holding a wanted speed: λ of cache-prior moves between 0 and a limit that was measured to be acceptable, never beyond it.
//!
//! Such a run depends on time; it can be repeated only through a record of its selections.

use moce_routing::Policy;
use std::time::{Duration, Instant};

/// Tokens between two looks at the clock.
const PERIOD: usize = 4;
/// Share of the limit that λ moves by when no token comes at all; proportionally less when the speed is nearly right.
const GAIN: f64 = 0.5;

/// A wanted speed, and how far routing may go for it.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Generated tokens a second.
    tokens_per_second: f64,
    /// The strongest policy allowed; it has a λ.
    limit: Policy,
}

impl Pace {
    /// So many generated tokens a second, with at most the λ of `limit`; `None` if that has none.
    pub fn new(tokens_per_second: f64, limit: Policy) -> Option<Pace> {
        limit.with_scaled_lambda(1.0).map(|limit| Pace { tokens_per_second, limit })
    }
}

/// How far routing went to hold a pace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PaceReport {
    /// The tokens a second that were wanted.
    pub tokens_per_second: f64,
    /// λ as a share of the limit's, mean over the generated tokens that were run; 0 if there was none.
    pub mean_share: f64,
    /// The same at the end.
    pub last_share: f64,
}

/// Keeps a pace.
#[derive(Debug)]
pub(crate) struct PaceKeeper {
    pace: Pace,
    /// How much of the limit applies, 0 to 1.
    share: f64,
    /// Tokens since the last look at the clock.
    tokens: usize,
    since: Instant,
    /// Sum of `share` over all tokens, and their number.
    share_sum: f64,
    token_count: usize,
}

impl PaceKeeper {
    /// Starts exact.
    pub(crate) fn new(pace: Pace) -> PaceKeeper {
        PaceKeeper { pace, share: 0.0, tokens: 0, since: Instant::now(), share_sum: 0.0, token_count: 0 }
    }

    /// How far it went so far.
    pub(crate) fn report(&self) -> PaceReport {
        PaceReport {
            tokens_per_second: self.pace.tokens_per_second,
            mean_share: self.share_sum / self.token_count.max(1) as f64,
            last_share: self.share,
        }
    }

    /// The policy to begin with.
    pub(crate) fn policy(&self) -> Policy {
        self.pace.limit.with_scaled_lambda(self.share).expect("the limit has a λ")
    }

    /// A token is done; a policy if another one shall apply from now on.
    pub(crate) fn token(&mut self) -> Option<Policy> {
        self.tokens += 1;
        self.token_count += 1;
        self.share_sum += self.share;
        if self.tokens < PERIOD {
            return None;
        }
        let elapsed = self.since.elapsed();
        self.since = Instant::now();
        self.tokens = 0;
        self.adjust(elapsed).then(|| self.policy())
    }

    /// Moves λ after [`PERIOD`] tokens took `elapsed`; says whether it moved.
    fn adjust(&mut self, elapsed: Duration) -> bool {
        let speed = PERIOD as f64 / elapsed.as_secs_f64().max(1e-9);
        let lack = (1.0 - speed / self.pace.tokens_per_second).max(-1.0);
        let share = (self.share + GAIN * lack).clamp(0.0, 1.0);
        std::mem::replace(&mut self.share, share) != share
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moce_routing::{CachePrior, Lambda};

    /// A pace with at most λ = 0.2.
    fn pace(tokens_per_second: f64) -> Pace {
        Pace::new(tokens_per_second, "cache-prior:lambda=0.2".parse().unwrap()).unwrap()
    }

    /// A machine whose tokens take 100 ms without bonus and 50 ms at the limit.
    fn settle(tokens_per_second: f64) -> f64 {
        let mut keeper = PaceKeeper::new(pace(tokens_per_second));
        for _ in 0..200 {
            let token = 0.1 - 0.05 * keeper.share;
            keeper.adjust(Duration::from_secs_f64(PERIOD as f64 * token));
            assert!((0.0..=1.0).contains(&keeper.share));
        }
        let Policy::CachePrior(CachePrior { lambda: Lambda::Uniform(lambda), .. }) = keeper.policy() else {
            panic!("another policy than the limit's")
        };
        lambda
    }

    #[test]
    fn lambda_settles_where_the_speed_is_right_and_never_passes_the_limit() {
        // 80 ms a token: at 0.4 of the limit.
        let lambda = settle(12.5);
        assert!((lambda - 0.08).abs() < 0.002, "{lambda}");
        assert_eq!(settle(5.0), 0.0);
        assert_eq!(settle(100.0), 0.2);
    }

    #[test]
    fn layers_that_lambda_does_not_act_in_stay_so() {
        let limit = "cache-prior:lambda=0.2:0.4,j=1,except=1".parse().unwrap();
        let mut keeper = PaceKeeper::new(Pace::new(10.0, limit).unwrap());
        keeper.share = 0.5;
        assert_eq!(keeper.policy().to_string(), "cache-prior:lambda=0.1:0.2,j=1,except=1");
        assert!(Pace::new(10.0, "max-rank:except=1".parse().unwrap()).is_none());
    }

    #[test]
    fn the_clock_is_read_every_few_tokens() {
        let mut keeper = PaceKeeper::new(pace(1e12));
        let changes: Vec<bool> = (0..PERIOD).map(|_| keeper.token().is_some()).collect();
        assert_eq!(changes.iter().filter(|&&changed| changed).count(), 1);
        assert!(changes[PERIOD - 1]);
        (0..PERIOD).for_each(|_| drop(keeper.token()));
        // None of the limit, then half, in the end nearly all of it: no speed reaches this one, but a fast loop comes within sight.
        let PaceReport { tokens_per_second, mean_share, last_share } = keeper.report();
        assert_eq!(tokens_per_second, 1e12);
        assert!((mean_share - 0.25).abs() < 0.01 && (last_share - 1.0).abs() < 0.01, "{mean_share} {last_share}");
    }
}
