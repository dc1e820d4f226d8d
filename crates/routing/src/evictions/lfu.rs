//! `lfu`: the expert chosen least often leaves, where old choices fade: each token of the layer multiplies every count by
//! 1 - 1/memory, then adds 1 to the chosen. Small memories behave like LRFU.

use super::{Eviction, Observed, least_weight};
use crate::bits::Bits;
use crate::order::Order;

/// Faded counts, cached or not.
#[derive(Debug, Clone)]
pub(crate) struct Lfu {
    keep: f64,
    pub(crate) counts: Vec<f64>,
}

impl Lfu {
    pub(super) fn new(experts: usize, memory: u32) -> Self {
        Self { keep: 1.0 - 1.0 / f64::from(memory), counts: vec![0.0; experts] }
    }
}

impl Eviction for Lfu {
    fn observe(&mut self, token: &Observed<'_>) {
        for count in &mut self.counts {
            *count *= self.keep;
        }
        for &expert in token.chosen {
            self.counts[expert as usize] += 1.0;
        }
    }

    fn touch(&mut self, _expert: u32, _cached: bool) {}

    fn victim(&mut self, recency: &Order, chosen: &Bits) -> u32 {
        least_weight(&self.counts, recency, chosen)
    }

    fn clear(&mut self) {
        self.counts.fill(0.0);
    }
}
