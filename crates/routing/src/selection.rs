//! What routing one token in one layer gave: which experts run, which of them were cached, and what left the cache.

use crate::bits::Bits;

/// The outcome of one token in one layer. Reused from token to token: only the first uses of it allocate.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Selection {
    pub(crate) ranked: Vec<u32>,
    pub(crate) ranked_hits: Vec<bool>,
    pub(crate) ascending: Vec<u32>,
    pub(crate) ascending_hits: Vec<bool>,
    pub(crate) evicted: Vec<u32>,
    pub(crate) changed: usize,
    pub(crate) range: f64,
}

impl Selection {
    /// An empty selection with room for `experts_per_token` experts.
    pub fn with_capacity(experts_per_token: usize) -> Self {
        Self {
            ranked: Vec::with_capacity(experts_per_token),
            ranked_hits: Vec::with_capacity(experts_per_token),
            ascending: Vec::with_capacity(experts_per_token),
            ascending_hits: Vec::with_capacity(experts_per_token),
            evicted: Vec::with_capacity(experts_per_token),
            changed: 0,
            range: 0.0,
        }
    }

    /// The chosen experts in the order of their original scores, strongest first.
    pub fn ranked(&self) -> &[u32] {
        &self.ranked
    }

    /// For each of [`ranked`](Self::ranked): was it cached before the token?
    pub fn ranked_hits(&self) -> &[bool] {
        &self.ranked_hits
    }

    /// The chosen experts by ascending id: the order in which their outputs are added.
    pub fn ascending(&self) -> &[u32] {
        &self.ascending
    }

    /// For each of [`ascending`](Self::ascending): was it cached before the token?
    pub fn ascending_hits(&self) -> &[bool] {
        &self.ascending_hits
    }

    /// The misses, strongest first: what has to be read.
    pub fn misses(&self) -> impl Iterator<Item = u32> + '_ {
        self.ranked.iter().zip(&self.ranked_hits).filter(|(_, hit)| !**hit).map(|(&expert, _)| expert)
    }

    /// Experts that left the logical cache with this token, in the order in which they left.
    pub fn evicted(&self) -> &[u32] {
        &self.evicted
    }

    /// How many of the model's own K choices did not run: displaced or dropped.
    pub fn changed(&self) -> usize {
        self.changed
    }

    /// Δ, the running mean of max(z) - min(z) including this token.
    pub fn range(&self) -> f64 {
        self.range
    }

    /// Judges the experts of `ranked`, which are those of `chosen`, by what was `cached`; nothing is evicted yet.
    pub(crate) fn judge(&mut self, chosen: &Bits, cached: &[bool]) {
        self.evicted.clear();
        self.ranked_hits.clear();
        self.ranked_hits.extend(self.ranked.iter().map(|&expert| cached[expert as usize]));
        self.ascending.clear();
        self.ascending.extend(chosen.iter());
        self.ascending_hits.clear();
        self.ascending_hits.extend(self.ascending.iter().map(|&expert| cached[expert as usize]));
    }
}
