//! Evictions: which cached expert leaves when a layer's logical cache is over its capacity (METHOD.md, "Evictions"). One
//! eviction, one file; all behind [`Eviction`].
//!
//! An eviction never chooses an expert of the token being routed, and keeps its data for uncached experts too.

mod lfu;
mod lru;
mod s3fifo;
mod score;

use std::fmt;
use std::str::FromStr;

use crate::bits::Bits;
use crate::order::Order;
use crate::spec::Spec;
use crate::{Error, LayerShape, RouterScores};

use lfu::Lfu;
use lru::Lru;
use s3fifo::S3Fifo;
use score::Score;

/// An eviction with its parameters. `Display` prints the specification that reads back as the same eviction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EvictionSpec {
    /// The least recently touched leaves.
    #[default]
    Lru,
    /// The least often chosen leaves, old choices fading.
    Lfu {
        /// Tokens after which a choice has faded to 1/e, at least 1.
        memory: u32,
    },
    /// The one with the least average probability leaves.
    Score {
        /// Tokens that the average reaches back, at least 1.
        memory: u32,
    },
    /// Small, main and ghost queue.
    S3Fifo,
}

impl EvictionSpec {
    /// Whether it reads router scores, so that a trace of selections alone is not enough.
    pub fn needs_scores(self) -> bool {
        matches!(self, Self::Score { .. })
    }

    /// # Errors
    /// If a memory is 0.
    pub(crate) fn validate(self) -> Result<(), Error> {
        match self {
            Self::Lfu { memory: 0 } | Self::Score { memory: 0 } => Err(Error::Spec {
                option: "eviction".to_owned(),
                given: self.to_string(),
                allowed: "a memory of 1 or more tokens".to_owned(),
            }),
            _ => Ok(()),
        }
    }
}

impl FromStr for EvictionSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut spec = Spec::split("eviction", text)?;
        let memory = "a whole number of tokens, 1 or more";
        let (eviction, known) = match spec.name {
            "lru" => (Self::Lru, "no parameter"),
            "lfu" => (Self::Lfu { memory: spec.whole("memory", memory)?.unwrap_or(256) }, "memory"),
            "score" => (Self::Score { memory: spec.whole("memory", memory)?.unwrap_or(32) }, "memory"),
            "s3fifo" => (Self::S3Fifo, "no parameter"),
            name => {
                return Err(Error::Spec {
                    option: "eviction".to_owned(),
                    given: name.to_owned(),
                    allowed: "lru, lfu[:memory=N], score[:memory=N], s3fifo".to_owned(),
                });
            }
        };
        spec.finish(known)?;
        eviction.validate()?;
        Ok(eviction)
    }
}

impl fmt::Display for EvictionSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lru => f.write_str("lru"),
            Self::Lfu { memory } => write!(f, "lfu:memory={memory}"),
            Self::Score { memory } => write!(f, "score:memory={memory}"),
            Self::S3Fifo => f.write_str("s3fifo"),
        }
    }
}

/// What an eviction learns of a token before its experts are touched.
pub(crate) struct Observed<'a> {
    /// The chosen experts.
    pub(crate) chosen: &'a [u32],
    /// The router's output; `None` where a selection is replayed without it.
    pub(crate) scores: Option<RouterScores<'a>>,
}

/// One layer's eviction state. Per token: `observe`, then `touch` for each chosen expert, then `victim` while over capacity.
pub(crate) trait Eviction {
    /// A token was routed.
    fn observe(&mut self, token: &Observed<'_>);

    /// A chosen expert is touched; `cached`: it was in the cache already, otherwise it enters now.
    fn touch(&mut self, expert: u32, cached: bool);

    /// The cached expert that leaves, never one in `chosen`; the caller takes it out of `recency`.
    fn victim(&mut self, recency: &Order, chosen: &Bits) -> u32;

    /// Forgets everything, as at the start of a session.
    fn clear(&mut self);
}

/// The evictions there are, so that a layer can be cloned and called without indirection.
#[derive(Debug, Clone)]
pub(crate) enum AnyEviction {
    Lru(Lru),
    Lfu(Lfu),
    Score(Score),
    S3Fifo(Box<S3Fifo>),
}

impl AnyEviction {
    pub(crate) fn new(spec: EvictionSpec, shape: LayerShape) -> Self {
        match spec {
            EvictionSpec::Lru => Self::Lru(Lru),
            EvictionSpec::Lfu { memory } => Self::Lfu(Lfu::new(shape.experts, memory)),
            EvictionSpec::Score { memory } => Self::Score(Score::new(shape.experts, memory)),
            EvictionSpec::S3Fifo => Self::S3Fifo(Box::new(S3Fifo::new(shape.experts, shape.capacity))),
        }
    }
}

/// Calls the same method of whichever eviction it is.
macro_rules! each {
    ($any:ident, $eviction:ident => $call:expr) => {
        match $any {
            AnyEviction::Lru($eviction) => $call,
            AnyEviction::Lfu($eviction) => $call,
            AnyEviction::Score($eviction) => $call,
            AnyEviction::S3Fifo($eviction) => $call,
        }
    };
}

impl Eviction for AnyEviction {
    fn observe(&mut self, token: &Observed<'_>) {
        each!(self, eviction => eviction.observe(token));
    }

    fn touch(&mut self, expert: u32, cached: bool) {
        each!(self, eviction => eviction.touch(expert, cached));
    }

    fn victim(&mut self, recency: &Order, chosen: &Bits) -> u32 {
        each!(self, eviction => eviction.victim(recency, chosen))
    }

    fn clear(&mut self) {
        each!(self, eviction => eviction.clear());
    }
}

/// The cached expert outside `chosen` with the least weight; ties: the least recently touched.
fn least_weight(weights: &[f64], recency: &Order, chosen: &Bits) -> u32 {
    let mut outside = recency.iter().filter(|&expert| !chosen.contains(expert));
    let mut victim = outside.next().expect("a cache over its capacity holds more than the token's K experts");
    for expert in outside {
        if weights[expert as usize] < weights[victim as usize] {
            victim = expert;
        }
    }
    victim
}
