//! `swap`: the choice at one rank is replaced by a random expert that was not chosen. For the sensitivity study, which asks
//! how much each rank matters; it does not look at the cache.

use std::fmt;

use super::{Rule, Token, parameter_error};
use crate::ranking::at_place;
use crate::spec::Spec;
use crate::splitmix::draw;
use crate::{Error, Policy};

/// Parameters of `swap`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Swap {
    /// Which choice is replaced, from 1 (the strongest) to K.
    pub rank: usize,
    /// Seed of the replacements.
    pub seed: u64,
}

impl Swap {
    pub(super) fn parse(spec: &mut Spec<'_>) -> Result<Self, Error> {
        let (ranks, seeds) = ("a whole number from 1 to the model's experts per token", "a whole number below 2^64");
        let rank = spec.whole("rank", ranks)?.ok_or_else(|| spec.missing("rank", ranks))?;
        let seed = spec.whole("seed", seeds)?.ok_or_else(|| spec.missing("seed", seeds))?;
        spec.finish("rank, seed, except")?;
        Ok(Self { rank, seed })
    }
}

impl Rule for Swap {
    fn validate(&self, experts: usize, experts_per_token: usize) -> Result<(), Error> {
        if (1..=experts_per_token).contains(&self.rank) {
            return Ok(());
        }
        let (given, allowed) = (self.rank.to_string(), format!("1 to {experts_per_token}"));
        Err(parameter_error("swap: rank", given, allowed, experts, experts_per_token))
    }

    fn resolved(&self, _experts: usize, _experts_per_token: usize) -> Policy {
        Policy::Swap(*self)
    }

    fn choose(&self, token: &mut Token<'_>, chosen: &mut Vec<u32>) {
        let own = token.own;
        if token.candidates == own.len() {
            return chosen.extend(own.iter().map(|own| own.expert));
        }
        let others = (token.candidates - own.len()) as u64;
        let other = own.len() + (draw(self.seed, token.layer, token.position) % others) as usize;
        chosen.extend(own.iter().map(|own| own.expert));
        chosen.remove(self.rank - 1);
        // It ranks below all of the model's own choices.
        chosen.push(at_place(token.scores, other, &mut token.scratch.keys));
    }
}

impl fmt::Display for Swap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "swap:rank={},seed={}", self.rank, self.seed)
    }
}
