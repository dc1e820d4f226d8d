//! `prune`: only the k best experts run.

use std::fmt;

use super::{Rule, Token, parameter_error};
use crate::spec::Spec;
use crate::{Error, Policy};

/// Parameters of `prune`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Prune {
    /// How many experts run: 0 to K, by default K - 1.
    pub k: Option<usize>,
}

impl Prune {
    pub(super) fn parse(spec: &mut Spec<'_>) -> Result<Self, Error> {
        let k = spec.whole("k", "a whole number from 0 to the model's experts per token")?;
        spec.finish("k, except")?;
        Ok(Self { k })
    }
}

impl Rule for Prune {
    fn validate(&self, experts: usize, experts_per_token: usize) -> Result<(), Error> {
        let error = |given, allowed| Err(parameter_error("prune: k", given, allowed, experts, experts_per_token));
        match self.k {
            Some(k) if k > experts_per_token => error(k.to_string(), format!("0 to {experts_per_token}")),
            // K - 1 = 0 would run no expert at all, which nobody means without saying so.
            None if experts_per_token == 1 => error("not given".to_owned(), "k=0 or k=1".to_owned()),
            _ => Ok(()),
        }
    }

    fn resolved(&self, _experts: usize, experts_per_token: usize) -> Policy {
        Policy::Prune(Self { k: Some(self.k.unwrap_or(experts_per_token - 1)) })
    }

    fn choose(&self, token: &mut Token<'_>, chosen: &mut Vec<u32>) {
        let k = self.k.unwrap_or(token.own.len() - 1);
        chosen.extend(token.own[..k].iter().map(|own| own.expert));
    }
}

impl fmt::Display for Prune {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("prune")?;
        self.k.map_or(Ok(()), |k| write!(f, ":k={k}"))
    }
}
