//! `cumulative`: max-rank whose M is the smallest number of best experts that hold the share p of the
//! candidates' probability.

use std::fmt;

use super::max_rank::promote;
use super::{Rule, Token, parameter_error, protected, validate_protected};
use crate::ranking::rank;
use crate::softmax::softmax;
use crate::spec::{Spec, ratio};
use crate::{Error, Policy};

/// Parameters of `cumulative`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cumulative {
    /// The share of probability, 0 to 1.
    pub p: f64,
    /// How many of the strongest always run: 0 to N, in effect at most K; by default 1 if N <= 16, else 2.
    pub j: Option<usize>,
}

impl Default for Cumulative {
    fn default() -> Self {
        Self { p: 0.7, j: None }
    }
}

impl Cumulative {
    pub(super) fn parse(spec: &mut Spec<'_>) -> Result<Self, Error> {
        let allowed = "a share from 0 to 1, or in percent";
        let p = match spec.text("p") {
            None => Self::default().p,
            Some(text) => ratio(text).filter(|p| *p <= 1.0).ok_or_else(|| spec.error("p", text, allowed))?,
        };
        let j = spec.whole("j", "a whole number from 0 to the layer's experts")?;
        spec.finish("p, j, except")?;
        Ok(Self { p, j })
    }
}

impl Rule for Cumulative {
    fn validate(&self, experts: usize, experts_per_token: usize) -> Result<(), Error> {
        if !(0.0..=1.0).contains(&self.p) {
            let (given, allowed) = (self.p.to_string(), "0 to 1".to_owned());
            return Err(parameter_error("cumulative: p", given, allowed, experts, experts_per_token));
        }
        validate_protected("cumulative: j", self.j, experts, experts_per_token)
    }

    fn resolved(&self, experts: usize, experts_per_token: usize) -> Policy {
        Policy::Cumulative(Self { p: self.p, j: Some(protected(self.j, experts, experts_per_token)) })
    }

    fn choose(&self, token: &mut Token<'_>, chosen: &mut Vec<u32>) {
        let (experts, k) = (token.scores.len(), token.own.len());
        let scratch = &mut *token.scratch;
        rank(token.scores, experts, &mut scratch.keys, &mut scratch.ranked);
        softmax(token.scores, &mut scratch.probabilities);
        let mut sum = 0.0;
        let reached = scratch.ranked.iter().position(|one| {
            sum += scratch.probabilities[one.expert as usize];
            sum >= self.p
        });
        let m = reached.map_or(scratch.ranked.len(), |at| at + 1).max(k);
        promote(&scratch.ranked[..m], k, protected(self.j, experts, k), token.cached, chosen);
    }
}

impl fmt::Display for Cumulative {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cumulative:p={}", self.p)?;
        self.j.map_or(Ok(()), |j| write!(f, ",j={j}"))
    }
}
