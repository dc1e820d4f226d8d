//! Picks the next token from logits.
//!
//! Order and meaning of the steps are llama.cpp's: repeat penalty, top-k, top-p, min-p, temperature, then one draw. Everything is
//! decided in f64 over candidates sorted by logit, ties by lower id, and the random numbers are ChaCha8 from the seed: the same
//! logits and seed give the same token on every machine.

use crate::Error;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use std::cmp::Ordering;
use std::collections::VecDeque;

/// Most recent tokens that a repeat penalty may hold for: each is compared with the others, which with so many takes some milliseconds.
const MOST_REPEAT_WINDOW: usize = 4096;

/// What the sampler does; the default is llama.cpp's, except that its dry, typical and xtc steps (off there by default) do not exist here.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Logits are divided by it; 0 takes the likeliest token. llama.cpp: 0.8.
    pub temperature: f32,
    /// Only the likeliest k tokens stay; 0 keeps all. llama.cpp: 40.
    pub top_k: usize,
    /// The likeliest tokens stay until their probabilities sum to p; 1 keeps all. llama.cpp: 0.95.
    pub top_p: f32,
    /// Tokens stay that are at least p times as likely as the likeliest; 0 keeps all. llama.cpp: 0.05.
    pub min_p: f32,
    /// Logits of recent tokens are divided (if positive) or multiplied by it; 1 changes nothing. llama.cpp: 1.
    pub repeat_penalty: f32,
    /// How many recent tokens that holds for, at most 4,096. llama.cpp: 64.
    pub repeat_window: usize,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl Default for SamplerOptions {
    fn default() -> SamplerOptions {
        SamplerOptions {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_window: 64,
            seed: 0,
        }
    }
}

impl SamplerOptions {
    fn check(&self) -> Result<(), Error> {
        let &SamplerOptions { temperature, top_p, min_p, repeat_penalty, repeat_window, .. } = self;
        let is_share = |share: f32| (0.0..=1.0).contains(&share);
        let reals = [
            ("temperature", temperature, "a number of at least 0", temperature.is_finite() && temperature >= 0.0),
            ("top-p", top_p, "0 to 1", is_share(top_p)),
            ("min-p", min_p, "0 to 1", is_share(min_p)),
            (
                "the repeat penalty",
                repeat_penalty,
                "a number over 0",
                repeat_penalty.is_finite() && repeat_penalty > 0.0,
            ),
        ];
        let refuse = |option, found, allowed| Err(Error::Sampling { option, found, allowed });
        if let Some((option, found, allowed, _)) = reals.into_iter().find(|&(.., holds)| !holds) {
            return refuse(option, found.to_string(), allowed.to_owned());
        }
        if repeat_window > MOST_REPEAT_WINDOW {
            return refuse(
                "the repeat window",
                repeat_window.to_string(),
                format!("at most {MOST_REPEAT_WINDOW} tokens"),
            );
        }
        Ok(())
    }
}

/// The sampler of one text.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplerOptions,
    random: ChaCha8Rng,
    recent: VecDeque<u32>,
    candidates: Vec<Candidate>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    logit: f32,
    probability: f64,
}

impl Candidate {
    /// Likeliest first; a total order, since logits are finite.
    fn order(&self, other: &Candidate) -> Ordering {
        other.logit.total_cmp(&self.logit).then(self.token.cmp(&other.token))
    }
}

impl Sampler {
    /// A sampler at the start of a text, for a vocabulary of `vocabulary` tokens.
    ///
    /// # Errors
    /// An option is outside its range.
    pub fn new(options: SamplerOptions, vocabulary: usize) -> Result<Sampler, Error> {
        options.check()?;
        Ok(Sampler {
            random: ChaCha8Rng::seed_from_u64(options.seed),
            recent: VecDeque::with_capacity(options.repeat_window + 1),
            candidates: Vec::with_capacity(vocabulary),
            options,
        })
    }

    /// Notes a token of the text (prompt or generated) for the repeat penalty.
    pub fn accept(&mut self, token: u32) {
        if self.options.repeat_window == 0 {
            return;
        }
        if self.recent.len() == self.options.repeat_window {
            self.recent.pop_front();
        }
        self.recent.push_back(token);
    }

    /// The next token. `logits` are finite, by token id, and not empty.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        self.candidates.clear();
        let candidates = logits.iter().enumerate();
        self.candidates.extend(candidates.map(|(id, &logit)| Candidate { token: id as u32, logit, probability: 0.0 }));
        self.penalise();
        if self.options.temperature <= 0.0 {
            let best = self.candidates.iter().min_by(|a, b| a.order(b));
            return best.expect("a vocabulary is never empty").token;
        }
        self.keep_top_k();
        self.keep_top_p();
        self.keep_min_p();
        self.draw()
    }

    fn penalise(&mut self) {
        let penalty = self.options.repeat_penalty;
        if penalty == 1.0 {
            return;
        }
        for (index, &token) in self.recent.iter().enumerate() {
            // Each token once, however often it stands in the window.
            if self.recent.iter().take(index).any(|&earlier| earlier == token) {
                continue;
            }
            if let Some(candidate) = self.candidates.get_mut(token as usize) {
                let logit = candidate.logit;
                let penalised = if logit > 0.0 { logit / penalty } else { logit * penalty };
                candidate.logit = penalised.clamp(f32::MIN, f32::MAX); // finite with extreme penalties, too
            }
        }
    }

    /// Sorts, and keeps the likeliest k.
    fn keep_top_k(&mut self) {
        let k = self.options.top_k;
        if k > 0 && k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(k - 1, Candidate::order);
            self.candidates.truncate(k);
        }
        self.candidates.sort_unstable_by(Candidate::order);
    }

    fn keep_top_p(&mut self) {
        if self.options.top_p >= 1.0 {
            return;
        }
        self.set_probabilities(1.0);
        let mut sum = 0.0;
        let kept = self.candidates.iter().position(|candidate| {
            sum += candidate.probability;
            sum >= f64::from(self.options.top_p)
        });
        self.candidates.truncate(kept.map_or(self.candidates.len(), |last| last + 1));
    }

    fn keep_min_p(&mut self) {
        if self.options.min_p <= 0.0 {
            return;
        }
        // p_i >= min_p · p_max, in logits.
        let least = f64::from(self.candidates[0].logit) + libm::log(f64::from(self.options.min_p));
        let kept = self.candidates.partition_point(|candidate| f64::from(candidate.logit) >= least);
        self.candidates.truncate(kept.max(1));
    }

    fn draw(&mut self) -> u32 {
        self.set_probabilities(f64::from(self.options.temperature));
        // 53 random bits: uniform in [0, 1).
        let mut left = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        for candidate in &self.candidates {
            left -= candidate.probability;
            if left < 0.0 {
                return candidate.token;
            }
        }
        self.candidates[self.candidates.len() - 1].token
    }

    /// Softmax of logits / temperature over the sorted candidates.
    fn set_probabilities(&mut self, temperature: f64) {
        let max = f64::from(self.candidates[0].logit);
        let mut sum = 0.0;
        for candidate in &mut self.candidates {
            candidate.probability = libm::exp((f64::from(candidate.logit) - max) / temperature);
            sum += candidate.probability;
        }
        for candidate in &mut self.candidates {
            candidate.probability /= sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(options: SamplerOptions) -> Sampler {
        Sampler::new(options, 8).unwrap()
    }

    const ALL: SamplerOptions = SamplerOptions {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repeat_penalty: 1.0,
        repeat_window: 64,
        seed: 1,
    };

    #[test]
    fn options_outside_their_range_are_refused() {
        let bad = [
            SamplerOptions { temperature: f32::NAN, ..ALL },
            SamplerOptions { temperature: f32::INFINITY, ..ALL },
            SamplerOptions { temperature: -1.0, ..ALL },
            SamplerOptions { top_p: f32::NAN, ..ALL },
            SamplerOptions { min_p: 1.5, ..ALL },
            SamplerOptions { repeat_penalty: 0.0, ..ALL },
            SamplerOptions { repeat_penalty: f32::NAN, ..ALL },
            SamplerOptions { repeat_window: usize::MAX, ..ALL },
        ];
        for options in bad {
            let message = Sampler::new(options.clone(), 8).map(|_| ()).unwrap_err().to_string();
            assert!(message.starts_with("sampling: ") && message.contains("allowed is"), "{options:?}: {message}");
        }
        assert!(Sampler::new(SamplerOptions { repeat_window: MOST_REPEAT_WINDOW, ..ALL }, 8).is_ok());
    }

    #[test]
    fn an_extreme_penalty_leaves_a_choice() {
        for repeat_penalty in [f32::MIN_POSITIVE, f32::MAX] {
            let mut sampler = sampler(SamplerOptions { repeat_penalty, ..ALL });
            [0, 1].into_iter().for_each(|token| sampler.accept(token));
            assert!([[9.0, 8.0], [-9.0, -8.0]].iter().all(|logits| sampler.sample(logits) < 2));
            assert!(sampler.candidates.iter().all(|candidate| candidate.probability.is_finite()));
        }
    }

    #[test]
    fn temperature_zero_takes_the_likeliest_and_the_lower_id_of_two() {
        let mut greedy = sampler(SamplerOptions { temperature: 0.0, ..ALL });
        assert_eq!(greedy.sample(&[0.0, 3.0, 3.0, 1.0]), 1);
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens_and_another_gives_others() {
        let logits: Vec<f32> = (0..64).map(|i| (i * 37 % 64) as f32 / 16.0).collect();
        let draw = |seed| {
            let mut sampler = sampler(SamplerOptions { seed, ..ALL });
            (0..32).map(|_| sampler.sample(&logits)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [0.0f32, 1.0, 2.0];
        let mut sampler = sampler(ALL);
        let mut counts = [0u32; 3];
        for _ in 0..30_000 {
            counts[sampler.sample(&logits) as usize] += 1;
        }
        let sum: f64 = logits.iter().map(|&z| libm::exp(z.into())).sum();
        for (count, logit) in counts.iter().zip(logits) {
            let expected = libm::exp(logit.into()) / sum;
            // Five standard deviations of a binomial with 30,000 draws.
            let bound = 5.0 * (expected * (1.0 - expected) / 30_000.0).sqrt();
            assert!((f64::from(*count) / 30_000.0 - expected).abs() < bound, "{counts:?}");
        }
    }

    #[test]
    fn truncations_keep_what_they_say() {
        let logits = [0.0f32, 4.0, 2.0, 3.0, 1.0]; // likeliest first: 1, 3, 2, 4, 0
        let seen = |options: SamplerOptions| {
            let mut sampler = sampler(options);
            let mut seen: Vec<u32> = (0..4_000).map(|_| sampler.sample(&logits)).collect();
            seen.sort_unstable();
            seen.dedup();
            seen
        };
        assert_eq!(seen(ALL), [0, 1, 2, 3, 4]);
        assert_eq!(seen(SamplerOptions { top_k: 2, ..ALL }), [1, 3]);
        // Probabilities: 0.64, 0.23, 0.09, ...: 0.64 + 0.23 is over 0.8.
        assert_eq!(seen(SamplerOptions { top_p: 0.8, ..ALL }), [1, 3]);
        // exp(-2) = 0.135, exp(-3) = 0.05 of the likeliest.
        assert_eq!(seen(SamplerOptions { min_p: 0.1, ..ALL }), [1, 2, 3]);
    }

    #[test]
    fn the_repeat_penalty_lowers_each_recent_token_once() {
        let mut greedy = sampler(SamplerOptions { temperature: 0.0, repeat_penalty: 2.0, ..ALL });
        greedy.accept(1);
        greedy.accept(1);
        // 3 / 2 = 1.5 stays above 1, 3 / 4 would not.
        assert_eq!(greedy.sample(&[1.0, 3.0]), 1);
        assert_eq!(greedy.sample(&[1.6, 3.0]), 0);
        // A negative logit is multiplied.
        assert_eq!(greedy.sample(&[-3.0, -2.0]), 0);
    }

    #[test]
    fn the_repeat_window_forgets() {
        let options = SamplerOptions { temperature: 0.0, repeat_penalty: 2.0, repeat_window: 1, ..ALL };
        let mut greedy = sampler(options);
        greedy.accept(1);
        greedy.accept(0);
        assert_eq!(greedy.sample(&[2.0, 1.5]), 1);
    }
}
