//! Rotating the heads of tokens by a filled table.

use super::{RopePairing, RopeTable, table_row_len};
use crate::Cpu;
use crate::lanes::{LANES, Lanes, Operation};

impl Cpu {
    /// Rotates every head of every token: `x` is `[tokens, heads, head_dim]` for the tokens of the table.
    ///
    /// # Panics
    /// The shapes do not fit.
    pub fn rotate(&self, table: &RopeTable, x: &mut [f32], head_dim: usize) {
        let tokens = table.tokens;
        assert!(table.dimensions <= head_dim, "{} rotating dimensions of {head_dim}", table.dimensions);
        assert!(x.len().is_multiple_of(tokens.max(1) * head_dim), "{} values, {tokens} tokens", x.len());
        if x.is_empty() {
            return;
        }
        let width = x.len() / tokens;
        let row_len = table_row_len(table.pairing, table.dimensions);
        self.rows_in_parts(x, width, 2 * width, |first, x| {
            let factors = &table.factors[first * row_len..];
            for (x, factors) in x.chunks_exact_mut(width).zip(factors.chunks_exact(row_len)) {
                self.on_lanes(Rotate { x, factors, pairing: table.pairing, dimensions: table.dimensions, head_dim });
            }
        });
    }
}

/// The heads of one token.
struct Rotate<'a> {
    x: &'a mut [f32],
    factors: &'a [f32],
    pairing: RopePairing,
    dimensions: usize,
    head_dim: usize,
}

impl Operation for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (first, second) = self.factors.split_at(self.factors.len() / 2);
        for head in self.x.chunks_exact_mut(self.head_dim) {
            let rotating = &mut head[..self.dimensions];
            match self.pairing {
                RopePairing::Halves => rotate_halves(l, rotating, first, second),
                RopePairing::Interleaved => rotate_neighbours(l, rotating, first, second),
            }
        }
    }
}

#[inline(always)]
fn rotate_halves<L: Lanes>(l: L, x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (x0, x1) = x.split_at_mut(cos.len());
    let (x0, x0_tail) = x0.as_chunks_mut::<LANES>();
    let (x1, x1_tail) = x1.as_chunks_mut::<LANES>();
    let (cos, cos_tail) = cos.as_chunks::<LANES>();
    let (sin, sin_tail) = sin.as_chunks::<LANES>();
    for (((x0, x1), c), s) in x0.iter_mut().zip(x1).zip(cos).zip(sin) {
        let (y0, y1) = rotate_pair(l, l.load(x0), l.load(x1), l.load(c), l.load(s));
        l.store(y0, x0);
        l.store(y1, x1);
    }
    if !x0_tail.is_empty() {
        let load = |from: &[f32]| l.load_first(from, 0.0);
        let (y0, y1) = rotate_pair(l, load(x0_tail), load(x1_tail), load(cos_tail), load(sin_tail));
        l.store_first(y0, x0_tail);
        l.store_first(y1, x1_tail);
    }
}

#[inline(always)]
fn rotate_pair<L: Lanes>(l: L, x0: L::F, x1: L::F, c: L::F, s: L::F) -> (L::F, L::F) {
    (l.fma(x0, c, l.neg(l.mul(x1, s))), l.fma(x0, s, l.mul(x1, c)))
}

/// In even lanes x0·cos + x1·(-sin), in odd ones x0·sin + x1·cos: the same two roundings as for halves.
#[inline(always)]
fn rotate_neighbours<L: Lanes>(l: L, x: &mut [f32], first: &[f32], second: &[f32]) {
    let (x, x_tail) = x.as_chunks_mut::<LANES>();
    let (a, a_tail) = first.as_chunks::<LANES>();
    let (b, b_tail) = second.as_chunks::<LANES>();
    for ((x, a), b) in x.iter_mut().zip(a).zip(b) {
        let v = l.load(x);
        l.store(l.fma(l.even(v), l.load(a), l.mul(l.odd(v), l.load(b))), x);
    }
    if !x_tail.is_empty() {
        let v = l.load_first(x_tail, 0.0);
        let y = l.fma(l.even(v), l.load_first(a_tail, 0.0), l.mul(l.odd(v), l.load_first(b_tail, 0.0)));
        l.store_first(y, x_tail);
    }
}
