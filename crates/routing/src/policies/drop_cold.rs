//! `drop-cold`: of the model's own choices the J strongest and the cached run, the rest is dropped.

use std::fmt;

use super::{Rule, Token, parameter_error, protected, validate_protected};
use crate::spec::Spec;
use crate::{Error, Policy};

/// Parameters of `drop-cold`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DropCold {
    /// How many of the strongest always run: 1 to N, in effect at most K; by default 1 if N <= 16, else 2.
    pub j: Option<usize>,
}

impl DropCold {
    pub(super) fn parse(spec: &mut Spec<'_>) -> Result<Self, Error> {
        let j = spec.whole("j", "a whole number from 1 to the layer's experts")?;
        spec.finish("j, except")?;
        Ok(Self { j })
    }
}

impl Rule for DropCold {
    fn validate(&self, experts: usize, experts_per_token: usize) -> Result<(), Error> {
        const J: &str = "drop-cold: j";
        if self.j == Some(0) {
            let allowed = format!("1 to {experts}");
            return Err(parameter_error(J, "0".to_owned(), allowed, experts, experts_per_token));
        }
        validate_protected(J, self.j, experts, experts_per_token)
    }

    fn resolved(&self, experts: usize, experts_per_token: usize) -> Policy {
        Policy::DropCold(Self { j: Some(protected(self.j, experts, experts_per_token)) })
    }

    fn choose(&self, token: &mut Token<'_>, chosen: &mut Vec<u32>) {
        let j = protected(self.j, token.scores.len(), token.own.len());
        let runs = |(rank, expert): (usize, u32)| (rank < j || token.cached[expert as usize]).then_some(expert);
        chosen.extend(token.own.iter().map(|own| own.expert).enumerate().filter_map(runs));
    }
}

impl fmt::Display for DropCold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("drop-cold")?;
        self.j.map_or(Ok(()), |j| write!(f, ":j={j}"))
    }
}
