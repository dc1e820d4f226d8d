//! The arithmetic of a few queries that share a key head.
//!
//! Loops are plain and no vector passes through a closure: the compiler inlines a closure only if it likes to, and one left
//! outside is not compiled for the instruction set: every instruction in it becomes a call. (`nm` on a release binary shows
//! such calls as `_mm...` symbols.)

#![allow(clippy::needless_range_loop)] // blocks of registers are indexed in step, as the formulas are

use crate::kv::{Element, KeyGroup, KvHead};
use crate::lanes::{Chunk, LANES, Lanes, largest};
use crate::softmax::exponentials;

/// The most queries in a tile.
pub(super) const TILE: usize = 6;

/// Queries with what is accumulated for them, in borrowed scratch.
pub(super) struct Tile<'a> {
    /// `[key_dim][TILE]`: what one dimension of a key is multiplied with lies together.
    queries: &'a mut [[f32; TILE]],
    /// `[TILE][value_dim padded to 16]`
    outputs: &'a mut [f32],
    value_dim: usize,
    visible: [usize; TILE],
}

impl<'a> Tile<'a> {
    /// And the rest of the scratch, for scores.
    pub(super) fn new(scratch: &'a mut [f32], key_dim: usize, value_dim: usize) -> (Tile<'a>, &'a mut [f32]) {
        let (queries, rest) = scratch.split_at_mut(TILE * key_dim);
        let (outputs, rest) = rest.split_at_mut(TILE * value_dim.next_multiple_of(LANES));
        (Tile { queries: queries.as_chunks_mut().0, outputs, value_dim, visible: [0; TILE] }, rest)
    }

    /// Query `i` and how many positions it sees: not fewer than query `i - 1`.
    pub(super) fn set_query(&mut self, i: usize, q: &[f32], visible: usize) {
        debug_assert!(i == 0 || self.visible[i - 1] <= visible);
        self.queries.iter_mut().zip(q).for_each(|(to, q)| to[i] = *q);
        self.visible[i] = visible;
    }

    /// The output of query `i`.
    pub(super) fn output(&self, i: usize) -> &[f32] {
        &self.outputs[i * self.value_dim.next_multiple_of(LANES)..][..self.value_dim]
    }

    /// Computes the outputs of the first `count` queries; `scores` has room for `count` scores at each position.
    #[inline(always)]
    pub(super) fn attend<L: Lanes, E: Element>(
        &mut self,
        l: L,
        head: &KvHead<'_, E>,
        count: usize,
        scale: f32,
        scores: &mut [f32],
    ) {
        // Then: how many partial sums of R16 are computed together, as many as registers hold, and in how many passes.
        match count {
            1 if L::TILE == 1 => self.attend_rows::<L, E, 1, 16, 1>(l, head, scale, scores),
            1 if L::TILE == 6 => self.attend_rows::<L, E, 1, 4, 4>(l, head, scale, scores),
            2 if L::TILE == 6 => self.attend_rows::<L, E, 2, 2, 8>(l, head, scale, scores),
            3 if L::TILE == 6 => self.attend_rows::<L, E, 3, 2, 8>(l, head, scale, scores),
            4 if L::TILE == 6 => self.attend_rows::<L, E, 4, 1, 16>(l, head, scale, scores),
            5 if L::TILE == 6 => self.attend_rows::<L, E, 5, 1, 16>(l, head, scale, scores),
            6 if L::TILE == 6 => self.attend_rows::<L, E, 6, 1, 16>(l, head, scale, scores),
            1 if L::TILE == 4 => self.attend_rows::<L, E, 1, 16, 1>(l, head, scale, scores),
            2 if L::TILE == 4 => self.attend_rows::<L, E, 2, 8, 2>(l, head, scale, scores),
            3 if L::TILE == 4 => self.attend_rows::<L, E, 3, 4, 4>(l, head, scale, scores),
            4 if L::TILE == 4 => self.attend_rows::<L, E, 4, 4, 4>(l, head, scale, scores),
            _ => unreachable!("{count} queries in a tile"),
        }
    }

    /// Scores lie as `[group of 16 positions][query][16]`: one pointer reaches those of all queries.
    #[inline(always)]
    fn attend_rows<L: Lanes, E: Element, const R: usize, const N: usize, const P: usize>(
        &mut self,
        l: L,
        head: &KvHead<'_, E>,
        scale: f32,
        scores: &mut [f32],
    ) {
        let groups = self.visible[R - 1].div_ceil(LANES);
        let scores = &mut scores.as_chunks_mut().0.as_chunks_mut::<R>().0[..groups];
        let scale = l.splat(scale);
        for (group, scores) in scores.iter_mut().enumerate() {
            let sums = scores_of_group::<L, E, R, N, P>(l, &head.key_group(group), self.queries);
            for r in 0..R {
                l.store(l.mul(sums[r], scale), &mut scores[r]);
            }
        }
        let mut inverse = [0.0; R];
        for r in 0..R {
            let (whole, rest) = scores.split_at_mut(self.visible[r] / LANES);
            let tail = match rest {
                [] => &mut [],
                [rows, ..] => &mut rows[r][..self.visible[r] % LANES],
            };
            let m = largest(l, whole.iter().map(|rows| &rows[r]), tail);
            inverse[r] = 1.0 / exponentials(l, whole.iter_mut().map(|rows| &mut rows[r]), tail, m);
        }
        self.mix(l, head, scores, inverse);
    }

    /// o = Σ e_t · v_t, positions ascending, then times 1 / Z.
    #[inline(always)]
    fn mix<L: Lanes, E: Element, const R: usize>(
        &mut self,
        l: L,
        head: &KvHead<'_, E>,
        weights: &[[Chunk; R]],
        inverse: [f32; R],
    ) {
        // As many chunks together as leave room for the values: independent sums hide the latency of each.
        let next = match (L::TILE, R) {
            (4, _) | (6, 1) => self.mix_by::<L, E, R, 4>(l, head, 0, weights, inverse),
            (6, 2 | 3) => self.mix_by::<L, E, R, 2>(l, head, 0, weights, inverse),
            _ => 0,
        };
        self.mix_by::<L, E, R, 1>(l, head, next, weights, inverse);
    }

    /// `V` chunks at a time from `first` on; returns where fewer than `V` are left.
    #[inline(always)]
    fn mix_by<L: Lanes, E: Element, const R: usize, const V: usize>(
        &mut self,
        l: L,
        head: &KvHead<'_, E>,
        mut first: usize,
        weights: &[[Chunk; R]],
        inverse: [f32; R],
    ) -> usize {
        while first + V <= self.value_dim.div_ceil(LANES) {
            self.mix_chunks::<L, E, R, V>(l, head, first, weights, inverse);
            first += V;
        }
        first
    }

    /// `V` chunks of 16 dimensions from `first` on.
    #[inline(always)]
    fn mix_chunks<L: Lanes, E: Element, const R: usize, const V: usize>(
        &mut self,
        l: L,
        head: &KvHead<'_, E>,
        first: usize,
        weights: &[[Chunk; R]],
        inverse: [f32; R],
    ) {
        let mut o = [[l.splat(0.0); V]; R];
        // Together while all see the position, then each to its own end.
        let (whole, rest) = weights.split_at(self.visible[0] / LANES);
        for (group, weights) in whole.iter().enumerate() {
            for t in 0..LANES {
                mix_position(l, head, group * LANES + t, first, weights, t, &mut o);
            }
        }
        let start = whole.len() * LANES;
        for t in 0..self.visible[0] - start {
            mix_position(l, head, start + t, first, &rest[0], t, &mut o);
        }
        let width = self.value_dim.next_multiple_of(LANES);
        for r in 0..R {
            for position in self.visible[0]..self.visible[r] {
                let e = l.splat(weights[position / LANES][r][position % LANES]);
                for c in 0..V {
                    o[r][c] = l.fma(e, head.value(l, position, first + c), o[r][c]);
                }
            }
            let out = self.outputs[r * width..][..width].as_chunks_mut().0;
            for c in 0..V {
                l.store(l.mul(o[r][c], l.splat(inverse[r])), &mut out[first + c]);
            }
        }
    }
}

/// `o += e_t · v_t` for all queries at one position, which is lane `t` of its group's weights.
#[inline(always)]
fn mix_position<L: Lanes, E: Element, const R: usize, const V: usize>(
    l: L,
    head: &KvHead<'_, E>,
    position: usize,
    first: usize,
    weights: &[Chunk; R],
    t: usize,
    o: &mut [[L::F; V]; R],
) {
    let mut values = [l.splat(0.0); V];
    for c in 0..V {
        values[c] = head.value(l, position, first + c);
    }
    for r in 0..R {
        let e = l.splat(weights[r][t]);
        for c in 0..V {
            o[r][c] = l.fma(e, values[c], o[r][c]);
        }
    }
}

/// R16(q, k) for `R` queries and the sixteen keys of a group, a key in each lane, so that the partial sums s_0 to s_15 are vectors.
///
/// Each of `P` passes computes `N` of them, `P` apart, and adds those up: the levels w = 8, 4, ... of R16's tree down to w = `P`,
/// which leave one sum a pass. The lower levels add the passes.
#[inline(always)]
fn scores_of_group<L: Lanes, E: Element, const R: usize, const N: usize, const P: usize>(
    l: L,
    keys: &KeyGroup<'_, E>,
    queries: &[[f32; TILE]],
) -> [L::F; R] {
    const { assert!(N * P == LANES) };
    // Passes come in the order in which the tree joins them (0, 8, 4, 12, ...): what waits is one sum a level.
    let mut waiting = [[l.splat(0.0); R]; 4];
    let mut sum = pass::<L, E, R, N>(l, keys, queries, 0);
    for next in 1..P {
        waiting[(next - 1).trailing_ones() as usize] = sum;
        sum = pass::<L, E, R, N>(l, keys, queries, next.reverse_bits() >> (usize::BITS - P.ilog2()));
        for level in 0..next.trailing_ones() as usize {
            for r in 0..R {
                sum[r] = l.add(waiting[level][r], sum[r]);
            }
        }
    }
    sum
}

/// The `N` partial sums s_i, s_(i + 16/N), ... and their sum.
#[inline(always)]
fn pass<L: Lanes, E: Element, const R: usize, const N: usize>(
    l: L,
    keys: &KeyGroup<'_, E>,
    queries: &[[f32; TILE]],
    i: usize,
) -> [L::F; R] {
    let step = LANES / N;
    let mut s = [[l.splat(0.0); N]; R];
    let (full, tail) = queries.as_chunks::<LANES>();
    for (j, queries) in full.iter().enumerate() {
        for n in 0..N {
            let key = keys.dimension(l, j * LANES + i + n * step);
            for r in 0..R {
                s[r][n] = l.fma(l.splat(queries[i + n * step][r]), key, s[r][n]);
            }
        }
    }
    for n in 0..N {
        if let Some(query) = tail.get(i + n * step) {
            let key = keys.dimension(l, full.len() * LANES + i + n * step);
            for r in 0..R {
                s[r][n] = l.fma(l.splat(query[r]), key, s[r][n]);
            }
        }
    }
    let mut width = N / 2;
    while width > 0 {
        for r in 0..R {
            for n in 0..width {
                s[r][n] = l.add(s[r][n], s[r][n + width]);
            }
        }
        width /= 2;
    }
    let mut sums = [l.splat(0.0); R];
    for r in 0..R {
        sums[r] = s[r][0];
    }
    sums
}
