//! `lru`: the least recently touched expert leaves. The reference for all others.

use super::{Eviction, Observed};
use crate::bits::Bits;
use crate::order::Order;

/// Needs nothing beyond the recency order that every layer keeps.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lru;

impl Eviction for Lru {
    fn observe(&mut self, _token: &Observed<'_>) {}

    fn touch(&mut self, _expert: u32, _cached: bool) {}

    fn victim(&mut self, recency: &Order, chosen: &Bits) -> u32 {
        recency
            .iter()
            .find(|&expert| !chosen.contains(expert))
            .expect("a cache over its capacity holds more than the token's K experts")
    }

    fn clear(&mut self) {}
}
