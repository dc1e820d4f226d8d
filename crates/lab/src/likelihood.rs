//! What logits say of tokens, and how the likelihoods of two runs compare. Sums in f64, ids ascending.

use crate::Error;
use crate::statistics::{Interval, bootstrap};
use moce_engine::Cpu;

/// -ln softmax(logits)[target]
pub(crate) fn negative_log_likelihood(cpu: &Cpu, logits: &[f32], target: u32) -> f64 {
    cpu.log_sum_exp(logits) - f64::from(logits[target as usize])
}

/// More nats a token have no perplexity: e^710 is beyond f64.
const MOST_NATS: f64 = 700.0;

/// The sum over a window of so many tokens, if it has a perplexity.
pub(crate) fn window_nll(nll: f64, window_tokens: usize) -> Result<f64, Error> {
    let nats_per_token = nll / window_tokens as f64;
    if nats_per_token <= MOST_NATS { Ok(nll) } else { Err(Error::NoPerplexity { nats_per_token }) }
}

/// The id of the largest logit; the lowest such id. 0 where there are none.
pub(crate) fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

/// How much higher one run's perplexity is than another's over the same windows, as a share: exp(mean difference of the negative log
/// likelihoods) - 1.
pub(crate) struct PerplexityRise {
    differences: Vec<f64>,
    window_tokens: usize,
}

impl PerplexityRise {
    /// Of runs with these sums, window by window, over windows of so many tokens.
    ///
    /// # Panics
    /// The runs have different numbers of windows.
    pub(crate) fn new(nll: &[f64], original_nll: &[f64], window_tokens: usize) -> PerplexityRise {
        assert_eq!(nll.len(), original_nll.len(), "windows of two runs on one text");
        let differences = nll.iter().zip(original_nll).map(|(one, other)| one - other).collect();
        PerplexityRise { differences, window_tokens }
    }

    /// Over all windows.
    pub(crate) fn rise(&self) -> f64 {
        self.of(0..self.differences.len())
    }

    /// The 95 % interval, by paired bootstrap over blocks of windows; `None` where there are too few.
    pub(crate) fn interval(&self) -> Option<Interval> {
        bootstrap(self.differences.len(), |sample| self.of(sample.iter().copied()))
    }

    fn of(&self, windows: impl ExactSizeIterator<Item = usize>) -> f64 {
        let tokens = windows.len() * self.window_tokens;
        libm::expm1(windows.map(|window| self.differences[window]).sum::<f64>() / tokens as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moce_engine::CpuOptions;

    fn nll(logits: &[f32], target: u32) -> f64 {
        negative_log_likelihood(&Cpu::new(&CpuOptions::default()).unwrap(), logits, target)
    }

    #[test]
    fn a_window_without_a_perplexity_is_an_error() {
        assert_eq!(window_nll(1400.0, 2).unwrap(), 1400.0);
        for nll in [1400.1, f64::INFINITY, f64::NAN] {
            assert!(matches!(window_nll(nll, 2), Err(Error::NoPerplexity { .. })), "{nll}");
        }
    }

    #[test]
    fn nll_of_a_uniform_choice_is_the_log_of_its_size() {
        assert!((nll(&[7.5; 10], 3) - 10f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn nll_of_a_lead_of_ln_three_is_that_of_three_quarters() {
        let lead = 3f64.ln() as f32;
        assert!((nll(&[0.0, lead], 1) + 0.75f64.ln()).abs() < 1e-7);
        assert!((nll(&[0.0, lead], 0) + 0.25f64.ln()).abs() < 1e-7);
    }

    #[test]
    fn of_equal_logits_the_lowest_id_is_likeliest() {
        assert_eq!(likeliest(&[1.0, 3.0, 3.0, -1.0]), 1);
    }
}
