//! `max-rank`: among the M best, cached experts come before uncached ones; the J strongest always run.

use std::fmt;

use super::{Rule, Token, parameter_error, protected, validate_protected};
use crate::ranking::{Ranked, rank};
use crate::spec::Spec;
use crate::{Error, Policy};

/// Parameters of `max-rank`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MaxRank {
    /// Down to which rank a cached expert may come first: 0 to N, by default 2K (at most N).
    pub m: Option<usize>,
    /// How many of the strongest always run: 0 to N, in effect at most K; by default 1 if N <= 16, else 2.
    pub j: Option<usize>,
}

impl MaxRank {
    pub(super) fn parse(spec: &mut Spec<'_>) -> Result<Self, Error> {
        let m = spec.whole("m", "a whole number from 0 to the layer's experts")?;
        let j = spec.whole("j", "a whole number from 0 to the layer's experts")?;
        spec.finish("m, j, except")?;
        Ok(Self { m, j })
    }

    fn m(&self, experts: usize, experts_per_token: usize) -> usize {
        self.m.unwrap_or((2 * experts_per_token).min(experts))
    }
}

impl Rule for MaxRank {
    fn validate(&self, experts: usize, experts_per_token: usize) -> Result<(), Error> {
        if let Some(m) = self.m.filter(|&m| m > experts) {
            let allowed = format!("0 to {experts}");
            return Err(parameter_error("max-rank: m", m.to_string(), allowed, experts, experts_per_token));
        }
        validate_protected("max-rank: j", self.j, experts, experts_per_token)
    }

    fn resolved(&self, experts: usize, experts_per_token: usize) -> Policy {
        let j = protected(self.j, experts, experts_per_token);
        Policy::MaxRank(Self { m: Some(self.m(experts, experts_per_token)), j: Some(j) })
    }

    fn choose(&self, token: &mut Token<'_>, chosen: &mut Vec<u32>) {
        let (experts, k) = (token.scores.len(), token.own.len());
        let scratch = &mut *token.scratch;
        rank(token.scores, self.m(experts, k).max(k), &mut scratch.keys, &mut scratch.ranked);
        promote(&scratch.ranked, k, protected(self.j, experts, k), token.cached, chosen);
    }
}

/// Chooses `k` of `ranked` (r[1..M], M >= k): the first `j`, then the cached, then the others; written in rank order.
pub(super) fn promote(ranked: &[Ranked], k: usize, j: usize, cached: &[bool], chosen: &mut Vec<u32>) {
    let is_cached = |one: &&Ranked| cached[one.expert as usize];
    let mut warm = ranked[j..].iter().filter(is_cached).count().min(k - j);
    let mut cold = k - j - warm;
    chosen.extend(ranked[..j].iter().map(|one| one.expert));
    for one in &ranked[j..] {
        let places = if is_cached(&one) { &mut warm } else { &mut cold };
        if *places > 0 {
            *places -= 1;
            chosen.push(one.expert);
        }
    }
}

impl fmt::Display for MaxRank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("max-rank")?;
        match (self.m, self.j) {
            (None, None) => Ok(()),
            (Some(m), None) => write!(f, ":m={m}"),
            (None, Some(j)) => write!(f, ":j={j}"),
            (Some(m), Some(j)) => write!(f, ":m={m},j={j}"),
        }
    }
}
