//! Evictions: which cached expert leaves when a layer's logical cache is over its capacity (METHOD.md, "Evictions"). One
//! eviction, one file; all behind [`Eviction`].
//!
//! An eviction never chooses an expert of the token being routed. It keeps its data for uncached experts too.

mod lru;

use std::fmt;
use std::str::FromStr;

use crate::Error;
use crate::order::Order;
use crate::spec::Spec;

use lru::Lru;

/// An eviction with its parameters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EvictionSpec {
    /// The least recently touched leaves.
    #[default]
    Lru,
}

impl FromStr for EvictionSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let spec = Spec::split("eviction", text)?;
        match spec.name {
            "lru" => {
                spec.finish("no parameter")?;
                Ok(Self::Lru)
            }
            _ => Err(Error::Spec { option: "eviction".to_owned(), given: text.to_owned(), allowed: "lru".to_owned() }),
        }
    }
}

impl fmt::Display for EvictionSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lru => f.write_str("lru"),
        }
    }
}

/// What an eviction learns of a token before its experts are touched.
pub(crate) struct Observed<'a> {
    /// The chosen experts.
    pub(crate) chosen: &'a [u32],
}

/// One layer's eviction state. Per token: `observe`, then `touch` for each chosen expert, then `victim` while over capacity.
pub(crate) trait Eviction {
    /// A token was routed.
    fn observe(&mut self, token: &Observed<'_>);

    /// A chosen expert is touched; `cached`: it was in the cache already, otherwise it enters now.
    fn touch(&mut self, expert: u32, cached: bool);

    /// The cached expert that leaves, never one marked in `chosen`; the caller takes it out of `recency`.
    fn victim(&mut self, recency: &Order, chosen: &[bool]) -> u32;

    /// Forgets everything, as at the start of a session.
    fn clear(&mut self);
}

/// The evictions there are, so that a layer can be cloned and called without indirection.
#[derive(Debug, Clone)]
pub(crate) enum AnyEviction {
    Lru(Lru),
}

impl AnyEviction {
    pub(crate) fn new(spec: EvictionSpec) -> Self {
        match spec {
            EvictionSpec::Lru => Self::Lru(Lru),
        }
    }
}

impl Eviction for AnyEviction {
    fn observe(&mut self, token: &Observed<'_>) {
        match self {
            Self::Lru(lru) => lru.observe(token),
        }
    }

    fn touch(&mut self, expert: u32, cached: bool) {
        match self {
            Self::Lru(lru) => lru.touch(expert, cached),
        }
    }

    fn victim(&mut self, recency: &Order, chosen: &[bool]) -> u32 {
        match self {
            Self::Lru(lru) => lru.victim(recency, chosen),
        }
    }

    fn clear(&mut self) {
        match self {
            Self::Lru(lru) => lru.clear(),
        }
    }
}
