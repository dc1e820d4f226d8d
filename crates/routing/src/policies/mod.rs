//! Routing policies: which experts run for one token in one layer (METHOD.md, "Policies"). One policy, one file; all behind
//! [`Rule`].
//!
//! A policy sees scores and the logical cache as it stands before the token, and nothing else: no time, no other session. It
//! never touches the cache and never makes routing weights.

mod cache_prior;
mod cumulative;
mod drop_cold;
mod except;
mod max_rank;
mod original;
mod prune;
mod swap;

use std::fmt;
use std::str::FromStr;

use crate::ranking::Ranked;
use crate::spec::Spec;
use crate::{Error, LayerShape};

pub use cache_prior::{CachePrior, Lambda};
pub use cumulative::Cumulative;
pub use drop_cold::DropCold;
pub use except::Except;
pub use max_rank::MaxRank;
use original::Original;
pub use prune::Prune;
pub use swap::Swap;

const NAMES: &str = "original (exact), balanced, fast, prune:k=, drop-cold:j=, swap:rank=,seed=, max-rank:m=,j=, \
                     cumulative:p=,j=, cache-prior:lambda=,j=; all but original: except=, layers that keep the model's choice";

/// A routing policy with its parameters. `Display` prints the specification that reads back as the same policy.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub enum Policy {
    /// The model's own choice.
    #[default]
    Original,
    /// Only the k best.
    Prune(Prune),
    /// Own choices that are not cached are dropped, beyond the J best.
    DropCold(DropCold),
    /// One choice replaced by a random expert.
    Swap(Swap),
    /// Cached experts first among the M best.
    MaxRank(MaxRank),
    /// Cached experts first among those that hold the share p.
    Cumulative(Cumulative),
    /// A bonus for cached experts.
    CachePrior(CachePrior),
    /// Another policy, but in some layers the model's own choice.
    Except(Except),
}

impl Policy {
    /// Reads a specification such as `balanced` or `cache-prior:lambda=0.15,j=2,except=0`. `read_file` gives the text of the file that
    /// a λ which is no number names; [`str::parse`] is the same without files.
    ///
    /// # Errors
    /// [`Error::Spec`] or [`Error::Missing`] names the option, what was given and what is allowed.
    pub fn parse(text: &str, mut read_file: impl FnMut(&str) -> Result<String, String>) -> Result<Self, Error> {
        let mut spec = Spec::split("routing", text)?;
        let except = spec.text("except");
        let lambda = |lambda| Self::CachePrior(CachePrior { lambda: Lambda::Uniform(lambda), j: None });
        let policy = match spec.name {
            "original" | "exact" => Self::Original,
            "balanced" => lambda(0.1),
            "fast" => lambda(0.2),
            "prune" => Self::Prune(Prune::parse(&mut spec)?),
            "drop-cold" => Self::DropCold(DropCold::parse(&mut spec)?),
            "swap" => Self::Swap(Swap::parse(&mut spec)?),
            "max-rank" => Self::MaxRank(MaxRank::parse(&mut spec)?),
            "cumulative" => Self::Cumulative(Cumulative::parse(&mut spec)?),
            "cache-prior" => Self::CachePrior(CachePrior::parse(&mut spec, &mut read_file)?),
            name => {
                let (option, given) = ("routing".to_owned(), name.to_owned());
                return Err(Error::Spec { option, given, allowed: NAMES.to_owned() });
            }
        };
        spec.finish(if policy == Self::Original { "no parameter" } else { "except" })?;
        match (except, policy) {
            (Some(layers), Self::Original) => Err(spec.error("except", layers, "no parameter")),
            (Some(layers), policy) => Ok(policy.except(Except::parse(&spec, layers)?)),
            (None, policy) => Ok(policy),
        }
    }

    /// This policy in all layers but these (0-based, among the MoE layers), which keep the model's own choice.
    #[must_use]
    pub fn except(self, layers: Vec<usize>) -> Self {
        match self {
            Self::Original => self,
            _ if layers.is_empty() => self,
            Self::Except(inner) => Self::Except(inner.and(layers)),
            policy => Self::Except(Except::new(policy, layers)),
        }
    }

    /// The policy with every λ times `share`, 0 being original routing; `None` for one that has no λ.
    pub fn with_scaled_lambda(&self, share: f64) -> Option<Self> {
        match self {
            Self::CachePrior(CachePrior { lambda, j }) => {
                Some(Self::CachePrior(CachePrior { lambda: lambda.scaled(share), j: *j }))
            }
            Self::Except(except) => Some(except.policy().with_scaled_lambda(share)?.except(except.layers().to_vec())),
            _ => None,
        }
    }

    /// Whether what it chooses depends on what is cached.
    pub fn looks_at_the_cache(&self) -> bool {
        match self {
            Self::Original | Self::Prune(_) | Self::Swap(_) => false,
            Self::DropCold(_) | Self::MaxRank(_) | Self::Cumulative(_) | Self::CachePrior(_) => true,
            Self::Except(except) => except.policy().looks_at_the_cache(),
        }
    }

    /// Checks the parameters against a layer of `experts` of which the model chooses `experts_per_token`.
    ///
    /// # Errors
    /// [`Error::Parameter`] names the parameter, what was given and what this layer allows.
    pub fn validate(&self, experts: usize, experts_per_token: usize) -> Result<(), Error> {
        self.rule().validate(experts, experts_per_token)
    }

    /// The same policy with every default written out for such a layer, as summaries print it.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn resolved(&self, experts: usize, experts_per_token: usize) -> Result<Self, Error> {
        self.validate(experts, experts_per_token)?;
        Ok(self.rule().resolved(experts, experts_per_token))
    }

    /// Checks what the policy says of single layers, by index or in a list, against a model of so many MoE layers.
    ///
    /// # Errors
    /// [`Error::LayerCount`] or [`Error::Spec`].
    pub fn check_layers(&self, layers: usize) -> Result<(), Error> {
        self.rule().check_layers(layers)
    }

    /// Checks the policy for all layers of a model, and writes out the defaults where they are the same in all of them.
    pub(crate) fn resolved_for<'s>(
        &self,
        shapes: impl ExactSizeIterator<Item = &'s LayerShape>,
    ) -> Result<Self, Error> {
        self.check_layers(shapes.len())?;
        let resolved = shapes.map(|shape| self.resolved(shape.experts, shape.experts_per_token));
        let mut resolved = resolved.collect::<Result<Vec<_>, _>>()?;
        resolved.dedup();
        match resolved.len() {
            1 => Ok(resolved.swap_remove(0)),
            _ => Ok(self.clone()),
        }
    }

    /// Writes the chosen experts to the empty `chosen`, in the order of their original rank. The policy is valid for the layer.
    pub(crate) fn choose(&self, token: &mut Token<'_>, chosen: &mut Vec<u32>) {
        self.rule().choose(token, chosen);
    }

    fn rule(&self) -> &dyn Rule {
        match self {
            Self::Original => &Original,
            Self::Prune(rule) => rule,
            Self::DropCold(rule) => rule,
            Self::Swap(rule) => rule,
            Self::MaxRank(rule) => rule,
            Self::Cumulative(rule) => rule,
            Self::CachePrior(rule) => rule,
            Self::Except(rule) => rule,
        }
    }
}

impl FromStr for Policy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text, |_| Err("no file can be read here".to_owned()))
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rule().fmt(f)
    }
}

/// What every policy can do.
trait Rule: fmt::Display {
    fn validate(&self, experts: usize, experts_per_token: usize) -> Result<(), Error>;
    fn resolved(&self, experts: usize, experts_per_token: usize) -> Policy;
    fn choose(&self, token: &mut Token<'_>, chosen: &mut Vec<u32>);

    /// Whether the policy fits a model of so many MoE layers.
    fn check_layers(&self, _layers: usize) -> Result<(), Error> {
        Ok(())
    }
}

/// What a policy may look at, and room to work in.
pub(crate) struct Token<'a> {
    /// Index among the MoE layers.
    pub(crate) layer: usize,
    /// Tokens that the layer has seen in this session before this one.
    pub(crate) position: u64,
    /// One per expert; minus infinity for an expert that is no candidate.
    pub(crate) scores: &'a [f32],
    /// How many experts are candidates, at least K.
    pub(crate) candidates: usize,
    /// The model's own choice r[1..K], strongest first.
    pub(crate) own: &'a [Ranked],
    /// Δ, this token included.
    pub(crate) range: f64,
    /// One flag per expert: in the logical cache before the token?
    pub(crate) cached: &'a [bool],
    pub(crate) scratch: &'a mut Scratch,
}

/// Room for the work of one choice, so that none of it allocates.
#[derive(Debug, Clone)]
pub(crate) struct Scratch {
    keys: Vec<u64>,
    ranked: Vec<Ranked>,
    probabilities: Vec<f64>,
    lifted: Vec<f32>,
    others: Vec<f32>,
    best_lifted: Vec<Ranked>,
    best_others: Vec<Ranked>,
    merged: Vec<Ranked>,
}

impl Scratch {
    /// Room for layers of at most `experts`, of which at most `experts_per_token` are chosen.
    pub(crate) fn new(experts: usize, experts_per_token: usize) -> Self {
        Self {
            keys: Vec::with_capacity(experts),
            ranked: Vec::with_capacity(experts),
            probabilities: Vec::with_capacity(experts),
            lifted: vec![0.0; experts],
            others: vec![0.0; experts],
            best_lifted: Vec::with_capacity(experts_per_token),
            best_others: Vec::with_capacity(experts_per_token),
            merged: Vec::with_capacity(experts_per_token),
        }
    }
}

/// J where none is given: 1 if N <= 16, else 2, at most K.
pub fn default_protected(experts: usize, experts_per_token: usize) -> usize {
    let j = if experts <= 16 { 1 } else { 2 };
    j.min(experts_per_token)
}

/// J in effect.
fn protected(j: Option<usize>, experts: usize, experts_per_token: usize) -> usize {
    j.unwrap_or(default_protected(experts, experts_per_token)).min(experts_per_token)
}

fn validate_protected(
    parameter: &'static str,
    j: Option<usize>,
    experts: usize,
    experts_per_token: usize,
) -> Result<(), Error> {
    match j {
        Some(j) if j > experts => {
            Err(parameter_error(parameter, j.to_string(), format!("0 to {experts}"), experts, experts_per_token))
        }
        _ => Ok(()),
    }
}

fn parameter_error(
    parameter: &'static str,
    given: String,
    allowed: String,
    experts: usize,
    experts_per_token: usize,
) -> Error {
    Error::Parameter { parameter, given, allowed, experts, experts_per_token }
}
