//! The policy state of one layer as plain data, for saving and restoring a warm cache. The file format is not here.
//!
//! What comes back from a file may be wrong or malicious: it is checked before anything is taken over.

use crate::Error;
use crate::evictions::AnyEviction;
use crate::layer::Layer;
use crate::scores::check_ids;
use serde::{Deserialize, Serialize};

/// More tokens than a session can have seen; counting on from here cannot overflow.
const MOST_TOKENS: u64 = 1 << 53;

/// Everything that routing decisions of a layer depend on besides scores and options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerState {
    /// The cached experts, least recently touched first.
    pub cached: Vec<u32>,
    /// Tokens that the layer has seen.
    pub tokens: u64,
    /// Σ of max(z) - min(z).
    pub range_sum: f64,
    /// Over how many tokens.
    pub range_count: u64,
    /// The eviction's data.
    pub eviction: EvictionState,
}

/// An eviction's data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum EvictionState {
    /// `lru`: nothing beyond the order of the cached experts.
    Lru,
    /// `lfu`: the faded count of each expert.
    Lfu(Vec<f64>),
    /// `score`: the average probability of each expert.
    Score(Vec<f64>),
    /// `s3fifo`: its queues, oldest first.
    S3Fifo {
        /// Newcomers with their frequencies.
        small: Vec<(u32, u8)>,
        /// The others with their frequencies.
        main: Vec<(u32, u8)>,
        /// Ids that left the small queue.
        ghost: Vec<u32>,
    },
}

impl Layer {
    pub(crate) fn state(&self) -> LayerState {
        LayerState {
            cached: self.recency.iter().collect(),
            tokens: self.tokens,
            range_sum: self.range_sum,
            range_count: self.range_count,
            eviction: match &self.eviction {
                AnyEviction::Lru(_) => EvictionState::Lru,
                AnyEviction::Lfu(lfu) => EvictionState::Lfu(lfu.counts.clone()),
                AnyEviction::Score(score) => EvictionState::Score(score.averages.clone()),
                AnyEviction::S3Fifo(s3fifo) => s3fifo.state(),
            },
        }
    }

    /// Takes over a saved state; on an error the layer stays as it was.
    pub(crate) fn restore(&mut self, layer: usize, state: &LayerState) -> Result<(), Error> {
        let error = |problem: String| Err(Error::Experts { layer, what: "the saved state", problem });
        check_ids(layer, "the saved state's cached experts", &state.cached, self.shape.experts)?;
        if state.cached.len() > self.shape.capacity {
            return error(format!("{} cached experts for a capacity of {}", state.cached.len(), self.shape.capacity));
        }
        let LayerState { range_sum, range_count, tokens, .. } = state;
        let widest = *range_count as f64 * 2.0 * f64::from(f32::MAX);
        if !(0.0..=widest).contains(range_sum) || range_count > tokens || *tokens > MOST_TOKENS {
            return error(format!("a range of {range_sum} over {range_count} of {tokens} tokens"));
        }
        let weights = |weights: &[f64]| match weights.iter().find(|weight| !(weight.is_finite() && **weight >= 0.0)) {
            Some(weight) => error(format!("an eviction weight of {weight}, expected 0 or more")),
            None if weights.len() != self.shape.experts => {
                error(format!("{} eviction weights for {} experts", weights.len(), self.shape.experts))
            }
            None => Ok(()),
        };
        match (&mut self.eviction, &state.eviction) {
            (AnyEviction::Lru(_), EvictionState::Lru) => {}
            (AnyEviction::Lfu(lfu), EvictionState::Lfu(saved)) => {
                weights(saved)?;
                lfu.counts.clone_from(saved);
            }
            (AnyEviction::Score(score), EvictionState::Score(saved)) => {
                weights(saved)?;
                score.averages.clone_from(saved);
            }
            (AnyEviction::S3Fifo(s3fifo), EvictionState::S3Fifo { small, main, ghost }) => {
                s3fifo.restore(layer, &state.cached, small, main, ghost)?;
            }
            _ => return error("data of another eviction".to_owned()),
        }
        self.range_sum = state.range_sum;
        self.range_count = state.range_count;
        self.restore_cache(state.tokens, &state.cached);
        Ok(())
    }
}
