//! Causal attention over the KV cache, several query heads to one key head (Ainslie et al. 2023, arXiv 2305.13245).
//!
//! A *query* is one query head of one token. For each: scores over its visible positions, their softmax without the
//! division, the mix of values, then the division. Queries are the parallel unit; positions are never split. The
//! queries of one key head are taken in small tiles, so that a key or value in a register serves several of them; each
//! query's own order of operations is that of NUMBERS.md whatever tile it falls into. The arithmetic of a tile is in `tile`.
//!
//! This file checks shapes and shares the queries out.

mod tile;

use crate::kv::{Element, F16, F32, KvCache, KvHead, KvType, Q8};
use crate::lanes::{LANES, Lanes, Operation};
use crate::parts::Parts;
use crate::{Cpu, KvShape};
use std::ops::Range;
use tile::{TILE, Tile};

/// The attention of one layer for the tokens of one step, whose keys and values are already stored.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Where keys and values are.
    pub cache: &'a KvCache,
    /// The layer.
    pub layer: usize,
    /// Query heads: a multiple of the key heads; consecutive ones share a key head.
    pub heads: usize,
    /// What q·k is multiplied with, usually 1 / √key_dim.
    pub scale: f32,
    /// The position of the first token; token `i` sees positions 0 to `first_position + i`.
    pub first_position: usize,
}

impl Cpu {
    /// Length of the scratch that [`Cpu::attention`] needs for caches of this shape.
    pub fn attention_scratch_len(&self, shape: &KvShape) -> usize {
        self.threads() * thread_scratch_len(shape)
    }

    /// `out = softmax(q · kᵀ · scale) · v` for each query: `q` is `[tokens, heads, key_dim]`, `out` `[tokens, heads, value_dim]`.
    ///
    /// # Panics
    /// The shapes do not fit, a position is outside the context, or `scratch` is shorter than
    /// [`Cpu::attention_scratch_len`].
    pub fn attention(&self, attention: &Attention<'_>, q: &[f32], scratch: &mut [f32], out: &mut [f32]) {
        let &Attention { cache, heads, first_position, .. } = attention;
        let &KvShape { context, kv_heads, key_dim, value_dim, .. } = cache.shape();
        assert!(heads > 0 && heads.is_multiple_of(kv_heads), "{heads} query heads for {kv_heads} key heads");
        let tokens = q.len() / (heads * key_dim);
        assert_eq!(q.len(), tokens * heads * key_dim, "queries of {tokens} tokens");
        assert_eq!(out.len(), tokens * heads * value_dim, "outputs of {tokens} tokens");
        assert!(
            first_position <= context && tokens <= context - first_position,
            "{tokens} tokens from position {first_position} on in a context of {context}"
        );
        let scratch_len = thread_scratch_len(cache.shape());
        let needed = self.attention_scratch_len(cache.shape());
        assert!(scratch.len() >= needed, "scratch of {}, needed {needed}", scratch.len());
        if tokens == 0 {
            return;
        }
        let order = Order { kv_heads, tokens, heads_each: heads / kv_heads, first_position };
        let (scratch, out) = (Parts::new(scratch), Parts::new(out));
        let attend = |part: usize, queries: Range<usize>| {
            // SAFETY: each part has its own scratch.
            let scratch = unsafe { scratch.part(part * scratch_len..(part + 1) * scratch_len) };
            let job = Job { attention, order, q, scratch, out: &out, queries };
            match cache.shape().kv_type {
                KvType::F32 => self.on_lanes(Attend::<F32>(job, std::marker::PhantomData)),
                KvType::F16 => self.on_lanes(Attend::<F16>(job, std::marker::PhantomData)),
                KvType::Q8_0 => self.on_lanes(Attend::<Q8>(job, std::marker::PhantomData)),
            }
        };
        let operations = order.total_cost().saturating_mul(key_dim + value_dim);
        if self.threads() > 1 && order.queries() > 1 && self.is_worth_a_region(operations) {
            self.pool.run(&|part| attend(part, order.share(self.threads(), part)));
        } else {
            attend(0, 0..order.queries());
        }
    }
}

/// A tile's scores, accumulated outputs and packed queries.
fn thread_scratch_len(shape: &KvShape) -> usize {
    let scores = shape.context.next_multiple_of(LANES);
    let outputs = shape.value_dim.next_multiple_of(LANES);
    TILE * (scores + outputs + shape.key_dim)
}

/// The order in which queries are counted: key head, token, query head of that key head.
#[derive(Clone, Copy)]
struct Order {
    kv_heads: usize,
    tokens: usize,
    /// Query heads to a key head.
    heads_each: usize,
    first_position: usize,
}

impl Order {
    fn queries(&self) -> usize {
        self.kv_heads * self.queries_each()
    }

    /// Queries to a key head.
    fn queries_each(&self) -> usize {
        self.tokens * self.heads_each
    }

    /// Positions that a token sees.
    fn visible(&self, token: usize) -> usize {
        self.first_position + token + 1
    }

    /// Positions seen by the tokens before `token`, summed.
    fn visible_before(&self, token: usize) -> usize {
        token * self.first_position + token * (token + 1) / 2
    }

    /// Positions seen, summed over all queries.
    fn total_cost(&self) -> usize {
        self.kv_heads * self.heads_each * self.visible_before(self.tokens)
    }

    /// The queries of one of `parts` parts: contiguous, and as even in positions seen as whole queries allow.
    fn share(&self, parts: usize, index: usize) -> Range<usize> {
        self.boundary(parts, index)..self.boundary(parts, index + 1)
    }

    /// The first query before which at least `index / parts` of the cost lies.
    fn boundary(&self, parts: usize, index: usize) -> usize {
        let target = (self.total_cost() as u128 * index as u128).div_ceil(parts as u128) as usize;
        let head_cost = self.heads_each * self.visible_before(self.tokens);
        let (kv_head, rest) = (target / head_cost, target % head_cost);
        // The last token with no more than `rest` before it.
        let (mut token, mut above) = (0, self.tokens);
        while above - token > 1 {
            let middle = token.midpoint(above);
            if self.heads_each * self.visible_before(middle) <= rest { token = middle } else { above = middle }
        }
        let rest = rest - self.heads_each * self.visible_before(token);
        kv_head * self.queries_each() + token * self.heads_each + rest.div_ceil(self.visible(token))
    }
}

/// One part of a region.
struct Job<'a> {
    attention: &'a Attention<'a>,
    order: Order,
    q: &'a [f32],
    scratch: &'a mut [f32],
    out: &'a Parts<'a, f32>,
    queries: Range<usize>,
}

struct Attend<'a, E>(Job<'a>, std::marker::PhantomData<E>);

impl<E: Element> Operation for Attend<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Job { attention, order, q, scratch, out, queries } = self.0;
        let &KvShape { key_dim, value_dim, .. } = attention.cache.shape();
        let (mut tile, rest) = Tile::new(scratch, key_dim, value_dim);
        let scores = rest;
        let mut next = queries.start;
        while next < queries.end {
            let kv_head = next / order.queries_each();
            let within = next % order.queries_each();
            let count = L::TILE.min(order.queries_each() - within).min(queries.end - next);
            let head: KvHead<'_, E> = attention.cache.head(attention.layer, kv_head);
            // (token, query head) of the tile's queries
            let query = |i: usize| {
                let (token, head) = ((within + i) / order.heads_each, (within + i) % order.heads_each);
                (token, (token * order.kv_heads + kv_head) * order.heads_each + head)
            };
            for i in 0..count {
                let (token, row) = query(i);
                tile.set_query(i, &q[row * key_dim..][..key_dim], order.visible(token));
            }
            tile.attend(l, &head, count, attention.scale, scores);
            for i in 0..count {
                let (_, row) = query(i);
                // SAFETY: each query has its own row of outputs and belongs to one part.
                let out = unsafe { out.part(row * value_dim..(row + 1) * value_dim) };
                out.copy_from_slice(tile.output(i));
            }
            next += count;
        }
    }
}

#[cfg(test)]
mod tests;
