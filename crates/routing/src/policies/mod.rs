//! Routing policies: which experts run for one token in one layer (METHOD.md, "Policies"). One policy, one file.
//!
//! A policy sees scores and the logical cache as it stands before the token, and nothing else: no time, no other session. It
//! never touches the cache and never makes routing weights.

mod original;

use std::fmt;
use std::str::FromStr;

use crate::Error;
use crate::ranking::Ranked;
use crate::spec::Spec;

/// A routing policy with its parameters.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub enum Policy {
    /// The model's own choice.
    #[default]
    Original,
}

/// What a policy may look at.
pub(crate) struct Token<'a> {
    /// The model's own choice r[1..K], strongest first.
    pub(crate) own: &'a [Ranked],
}

impl Policy {
    /// Checks the parameters against a layer of `experts` of which `experts_per_token` are chosen.
    ///
    /// # Errors
    /// [`Error::Parameter`] names the parameter, what was given and what this layer allows.
    pub fn validate(&self, _experts: usize, _experts_per_token: usize) -> Result<(), Error> {
        match self {
            Self::Original => Ok(()),
        }
    }

    /// Writes the chosen experts to the empty `chosen`, in the order of their original rank.
    pub(crate) fn choose(&self, token: &Token<'_>, chosen: &mut Vec<u32>) {
        match self {
            Self::Original => original::choose(token, chosen),
        }
    }
}

impl FromStr for Policy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let spec = Spec::split("routing", text)?;
        match spec.name {
            "original" | "exact" => {
                spec.finish("no parameter")?;
                Ok(Self::Original)
            }
            _ => Err(Error::Spec {
                option: "routing".to_owned(),
                given: text.to_owned(),
                allowed: "original (exact)".to_owned(),
            }),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Original => f.write_str("original"),
        }
    }
}
