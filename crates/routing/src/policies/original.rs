//! `original`: the model's own choice, the K best by score. The only lossless policy.

use super::{Rule, Token};
use crate::{Error, Policy};

/// No parameters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Original;

impl Rule for Original {
    fn validate(&self, _experts: usize, _experts_per_token: usize) -> Result<(), Error> {
        Ok(())
    }

    fn resolved(&self, _experts: usize, _experts_per_token: usize) -> Policy {
        Policy::Original
    }

    fn choose(&self, token: &mut Token<'_>, chosen: &mut Vec<u32>) {
        chosen.extend(token.own.iter().map(|own| own.expert));
    }
}

impl std::fmt::Display for Original {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("original")
    }
}
