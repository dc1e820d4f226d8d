//! What a session's routing is made from: layer shapes, phases, touch order.

use std::fmt;
use std::str::FromStr;

use crate::{Error, EvictionSpec, Policy, Start};

/// Ids are packed beside scores; no model comes near.
const MOST_EXPERTS: usize = 65_535;

/// One MoE layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerShape {
    /// N, the routed experts of the layer.
    pub experts: usize,
    /// K, how many the model chooses for a token.
    pub experts_per_token: usize,
    /// C, how many are logically cached: K to N, or 0 for none ever.
    pub capacity: usize,
}

impl LayerShape {
    pub(crate) fn validate(&self, layer: usize) -> Result<(), Error> {
        let Self { experts, experts_per_token, capacity } = *self;
        let error = |what, given, allowed| Err(Error::Shape { layer, what, given, allowed });
        if experts == 0 || experts > MOST_EXPERTS {
            return error("the number of experts", experts, format!("1 to {MOST_EXPERTS}"));
        }
        if experts_per_token == 0 || experts_per_token > experts {
            return error("the number of experts per token", experts_per_token, format!("1 to {experts}"));
        }
        if capacity != 0 && !(experts_per_token..=experts).contains(&capacity) {
            return error("the capacity", capacity, format!("0, or {experts_per_token} to {experts}"));
        }
        Ok(())
    }
}

/// How a session routes. The default is the model's own choice with an LRU cache that starts empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RoutingOptions {
    /// The policy for generated tokens.
    pub policy: Policy,
    /// The policy for prompt tokens.
    pub prompt_policy: Policy,
    /// Which cached expert leaves.
    pub eviction: EvictionSpec,
    /// In which order the experts of a token become most recent.
    pub touch: TouchOrder,
    /// What is cached before the first token.
    pub start: Start,
}

/// Whether a token belongs to the prompt or was generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A token that was given.
    Prompt,
    /// A token that the model wrote.
    Generation,
}

/// The order in which a token's experts are touched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TouchOrder {
    /// By rank, so that the weakest ends most recent: the paper's.
    #[default]
    StrongFirst,
    /// Against the rank, so that the strongest ends most recent.
    WeakFirst,
}

impl FromStr for TouchOrder {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "strong-first" => Ok(Self::StrongFirst),
            "weak-first" => Ok(Self::WeakFirst),
            _ => Err(Error::Spec {
                option: "touch".to_owned(),
                given: text.to_owned(),
                allowed: "strong-first or weak-first".to_owned(),
            }),
        }
    }
}

impl fmt::Display for TouchOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StrongFirst => "strong-first",
            Self::WeakFirst => "weak-first",
        })
    }
}
