//! One cache for the experts of all layers, by bytes: what a system without a cache per layer would do. For comparison only; the engine's
//! caches are per layer.
//!
//! The rule is that of published replays: a batch is what one layer needs for one or several tokens. It makes one lookup for each different
//! expert; repeated ones only become more recent. Misses enter. After the batch the least recent leave until the budget is kept, but none
//! that the batch needed.

use crate::order::Order;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Lookups of one batch, or of several added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lookups {
    /// Experts found.
    pub hits: u64,
    /// Experts not found.
    pub misses: u64,
}

impl std::ops::AddAssign for Lookups {
    fn add_assign(&mut self, other: Lookups) {
        self.hits += other.hits;
        self.misses += other.misses;
    }
}

/// The shape that both caches work on.
#[derive(Debug, Clone)]
pub struct GlobalShape {
    /// N, experts of a layer.
    pub experts: usize,
    /// Bytes of one expert, by layer.
    pub expert_bytes: Vec<u64>,
    /// Bytes of experts that are held between batches.
    pub capacity_bytes: u64,
}

impl GlobalShape {
    fn key(&self, layer: usize, expert: u32) -> usize {
        layer * self.experts + expert as usize
    }

    fn keys(&self) -> usize {
        self.experts * self.expert_bytes.len()
    }
}

/// The global cache with LRU.
#[derive(Debug, Clone)]
pub struct GlobalLru {
    shape: GlobalShape,
    recency: Order,
    held_bytes: u64,
    /// The batch that last needed each expert.
    last_batch: Vec<u64>,
    batch: u64,
}

impl GlobalLru {
    /// An empty cache.
    pub fn new(shape: GlobalShape) -> GlobalLru {
        let keys = shape.keys();
        GlobalLru { shape, recency: Order::new(keys), held_bytes: 0, last_batch: vec![0; keys], batch: 0 }
    }

    /// Empties the cache.
    pub fn clear(&mut self) {
        self.recency.clear();
        self.held_bytes = 0;
    }

    /// Looks up what a layer needs for some tokens, token after token, each by rank; repeated experts are allowed.
    ///
    /// # Panics
    /// There is no such layer or expert.
    pub fn look_up(&mut self, layer: usize, experts: impl IntoIterator<Item = u32>) -> Lookups {
        self.batch += 1;
        let mut found = Lookups::default();
        for expert in experts {
            let key = self.shape.key(layer, expert);
            let cached = self.recency.contains(key as u32);
            if cached {
                self.recency.remove(key as u32);
            } else {
                self.held_bytes += self.shape.expert_bytes[layer];
            }
            self.recency.push_back(key as u32);
            if std::mem::replace(&mut self.last_batch[key], self.batch) != self.batch {
                found += Lookups { hits: cached.into(), misses: (!cached).into() };
            }
        }
        while self.held_bytes > self.shape.capacity_bytes {
            let Some(victim) = self.recency.iter().next() else { break };
            // The batch's experts are the most recent: behind the first of them there is no other.
            if self.last_batch[victim as usize] == self.batch {
                break;
            }
            self.recency.remove(victim);
            self.held_bytes -= self.shape.expert_bytes[victim as usize / self.shape.experts];
        }
        found
    }
}

/// A batch of a trace that is known to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The layer.
    pub layer: usize,
    /// What it needs, each expert once.
    pub experts: Vec<u32>,
}

/// The lookups of each batch under the clairvoyant eviction: what is needed latest leaves. With experts of one size no eviction has fewer
/// misses; with several sizes it is close to the least, and no bound.
///
/// # Panics
/// A batch names a layer or expert that is not there.
pub fn global_belady(shape: &GlobalShape, batches: &[Batch]) -> Vec<Lookups> {
    const NEVER: u64 = u64::MAX;
    // For each request the next batch that asks for the same expert; filled backwards.
    let mut upcoming = vec![NEVER; shape.keys()];
    let mut following: Vec<Vec<u64>> = Vec::with_capacity(batches.len());
    for (index, batch) in batches.iter().enumerate().rev() {
        let next = |&expert: &u32| std::mem::replace(&mut upcoming[shape.key(batch.layer, expert)], index as u64);
        following.push(batch.experts.iter().map(next).collect());
    }
    following.reverse();

    let mut next_use = vec![None; shape.keys()];
    // Latest use first; an entry is old if `next_use` says otherwise by now.
    let mut latest = BinaryHeap::new();
    let mut held_bytes = 0;
    let mut found = Vec::with_capacity(batches.len());
    for (batch, following) in batches.iter().zip(&following) {
        let mut lookups = Lookups::default();
        for (&expert, &next) in batch.experts.iter().zip(following) {
            let key = shape.key(batch.layer, expert);
            match next_use[key].replace(next) {
                Some(_) => lookups.hits += 1,
                None => {
                    lookups.misses += 1;
                    held_bytes += shape.expert_bytes[batch.layer];
                }
            }
            latest.push((next, Reverse(key)));
        }
        while held_bytes > shape.capacity_bytes {
            let (next, Reverse(key)) = latest.pop().expect("what is held has an entry");
            if next_use[key] == Some(next) {
                next_use[key] = None;
                held_bytes -= shape.expert_bytes[key / shape.experts];
            }
        }
        found.push(lookups);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shape(capacity_bytes: u64) -> GlobalShape {
        GlobalShape { experts: 4, expert_bytes: vec![10, 20], capacity_bytes }
    }

    #[test]
    fn a_batch_looks_up_once_and_evicts_none_of_its_own() {
        let mut cache = GlobalLru::new(shape(30));
        assert_eq!(cache.look_up(0, [1, 2, 1]), Lookups { hits: 0, misses: 2 });
        // 20 more bytes: 2 is the least recent and leaves, 1 was promoted and stays.
        assert_eq!(cache.look_up(1, [3]), Lookups { hits: 0, misses: 1 });
        assert_eq!(cache.look_up(0, [1, 2]), Lookups { hits: 1, misses: 1 });
        // Larger than the budget: kept until the next batch.
        assert_eq!(cache.look_up(1, [0, 1, 2]), Lookups { hits: 0, misses: 3 });
        assert_eq!(cache.look_up(1, [2]), Lookups { hits: 1, misses: 0 });
        assert_eq!(cache.look_up(1, [0, 2]), Lookups { hits: 1, misses: 1 });
        cache.clear();
        assert_eq!(cache.look_up(1, [2]), Lookups { hits: 0, misses: 1 });
    }

    proptest! {
        #[test]
        fn belady_bounds_lru_where_experts_are_of_one_size(
            batches in prop::collection::vec((0_usize..3, prop::collection::btree_set(0_u32..6, 1..4)), 1..80),
            capacity_bytes in 3_u64..12,
        ) {
            let shape = GlobalShape { experts: 6, expert_bytes: vec![1; 3], capacity_bytes };
            let batches: Vec<Batch> = batches
                .into_iter()
                .map(|(layer, experts)| Batch { layer, experts: experts.into_iter().collect() })
                .collect();
            let mut lru = GlobalLru::new(shape.clone());
            let mut online = 0;
            for batch in &batches {
                let found = lru.look_up(batch.layer, batch.experts.iter().copied());
                prop_assert_eq!(found.hits + found.misses, batch.experts.len() as u64);
                online += found.misses;
            }
            let bound: u64 = global_belady(&shape, &batches).iter().map(|found| found.misses).sum();
            prop_assert!(bound <= online, "{} misses, LRU has {}", bound, online);
        }
    }
}
