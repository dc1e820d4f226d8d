//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864) with linear scaling, YaRN (Peng et al. 2023, arXiv 2309.00071)
//! and per-frequency factors, with the meaning that llama.cpp gives to GGUF's metadata.
//!
//! [`Rope`] holds the frequencies. Once a step a [`RopeTable`] is filled for the positions of the step; all layers and heads share
//! it. Nothing is allocated after the table is made.

use crate::lanes::{LANES, Lanes, Operation};
use crate::math::{cos_f64, ln_f64, pow_f64, sin_f64};
use crate::{Cpu, Error};
use std::ops::Range;

/// Which two values of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairing {
    /// Neighbours: `x[2i]` and `x[2i + 1]` (llama.cpp's NORM; the architecture `llama`).
    Interleaved,
    /// `x[i]` and `x[i + dimensions / 2]` (NEOX; `qwen2moe`).
    Halves,
}

/// How frequencies are stretched to contexts longer than the trained one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by `factor`.
    Linear {
        /// `rope.scaling.factor`.
        factor: f32,
    },
    /// Low frequencies divided by `factor`, high ones kept, a ramp between.
    Yarn {
        /// `rope.scaling.factor`.
        factor: f32,
        /// `rope.scaling.original_context_length`.
        original_context: usize,
        /// Turns over the original context from which on a frequency is kept: `rope.scaling.yarn_beta_fast`, by default 32.
        beta_fast: f32,
        /// Turns up to which it is divided: `rope.scaling.yarn_beta_slow`, by default 1.
        beta_slow: f32,
        /// How much of the ramp is applied: `rope.scaling.yarn_ext_factor`, by default 1; 0 is linear scaling.
        extrapolation: f32,
        /// `rope.scaling.attn_factor`, by default 1. Cosine and sine are multiplied with it and, unless `extrapolation` is 0, with
        /// 1 + 0.1 · ln(factor).
        attention_factor: f32,
    },
}

/// What a model says about its rotary embedding.
#[derive(Clone, Copy, Debug)]
pub struct RopeParameters<'a> {
    /// Values of each head that rotate, from its first on: `rope.dimension_count`.
    pub dimensions: usize,
    /// `rope.freq_base`.
    pub base: f32,
    /// `rope.scaling.*`.
    pub scaling: RopeScaling,
    /// `rope_freqs.weight`, one for each pair: frequencies are divided by them.
    pub frequency_factors: Option<&'a [f32]>,
    /// By architecture.
    pub pairing: RopePairing,
}

/// The frequencies of a model's rotary embedding.
#[derive(Clone, Debug)]
pub struct Rope {
    pairing: RopePairing,
    /// Radians a position, one for each pair.
    frequencies: Vec<f32>,
    /// What cosine and sine are multiplied with.
    magnitude: f64,
}

/// Cosines and sines for the tokens of one step.
#[derive(Clone, Debug)]
pub struct RopeTable {
    pairing: RopePairing,
    dimensions: usize,
    tokens: usize,
    /// `[tokens, 2, n]`, the factors of the first and of the second product: for halves n is a half and they are cos and sin;
    /// for neighbours n is `dimensions`, and they are (cos, sin) and (-sin, cos) in turn.
    factors: Vec<f32>,
}

impl Rope {
    /// Computes the frequencies: base^(-2i / dimensions) / factor_i, scaled, in f64, then rounded.
    ///
    /// # Errors
    /// A parameter is out of its range.
    pub fn new(parameters: &RopeParameters<'_>) -> Result<Rope, Error> {
        let &RopeParameters { dimensions, base, scaling, frequency_factors, pairing } = parameters;
        require(dimensions >= 2 && dimensions.is_multiple_of(2), "dimensions", dimensions, "an even number from 2 on")?;
        require(base.is_finite() && base > 1.0, "base", base, "a number over 1")?;
        let pairs = dimensions / 2;
        if let Some(factors) = frequency_factors {
            require(factors.len() == pairs, "frequency factors", factors.len(), "one for each pair of dimensions")?;
            for &factor in factors {
                require(factor.is_finite() && factor > 0.0, "frequency factor", factor, "a positive number")?;
            }
        }
        let (stretch, magnitude) = Stretch::new(scaling, dimensions, f64::from(base))?;
        let frequencies = (0..pairs)
            .map(|pair| {
                let plain = pow_f64(f64::from(base), -2.0 * pair as f64 / dimensions as f64);
                let factor = frequency_factors.map_or(1.0, |factors| f64::from(factors[pair]));
                (plain / factor * stretch.of(pair)) as f32
            })
            .collect();
        Ok(Rope { pairing, frequencies, magnitude })
    }

    /// A table with room for `max_tokens` tokens.
    pub fn table(&self, max_tokens: usize) -> RopeTable {
        let dimensions = 2 * self.frequencies.len();
        let factors = vec![0.0; max_tokens * table_row_len(self.pairing, dimensions)];
        RopeTable { pairing: self.pairing, dimensions, tokens: 0, factors }
    }

    /// Bytes of a table for `max_tokens` tokens.
    pub fn table_bytes(&self, max_tokens: usize) -> usize {
        max_tokens * table_row_len(self.pairing, 2 * self.frequencies.len()) * size_of::<f32>()
    }

    /// Fills `table` for the tokens at `positions`.
    ///
    /// # Panics
    /// The table has less room, or belongs to another kind of rotary embedding.
    pub fn fill(&self, positions: Range<usize>, table: &mut RopeTable) {
        let pairs = self.frequencies.len();
        assert!(table.pairing == self.pairing && table.dimensions == 2 * pairs, "a table of another rotary embedding");
        table.tokens = positions.len();
        let row_len = table_row_len(self.pairing, 2 * pairs);
        let rows = table.factors[..positions.len() * row_len].chunks_exact_mut(row_len);
        for (position, row) in positions.zip(rows) {
            let (first, second) = row.split_at_mut(row_len / 2);
            for (pair, &frequency) in self.frequencies.iter().enumerate() {
                let angle = f64::from(position as f32 * frequency);
                let cos = (cos_f64(angle) * self.magnitude) as f32;
                let sin = (sin_f64(angle) * self.magnitude) as f32;
                match self.pairing {
                    RopePairing::Halves => (first[pair], second[pair]) = (cos, sin),
                    RopePairing::Interleaved => {
                        (first[2 * pair], first[2 * pair + 1]) = (cos, sin);
                        (second[2 * pair], second[2 * pair + 1]) = (-sin, cos);
                    }
                }
            }
        }
    }
}

impl RopeTable {
    /// The tokens that it was last filled for.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

fn table_row_len(pairing: RopePairing, dimensions: usize) -> usize {
    match pairing {
        RopePairing::Halves => dimensions,
        RopePairing::Interleaved => 2 * dimensions,
    }
}

fn require(holds: bool, what: &'static str, found: impl ToString, expected: &'static str) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(Error::Rope { what, found: found.to_string(), expected }) }
}

/// What each frequency is multiplied with.
enum Stretch {
    Same(f64),
    /// From 1 for pairs up to `low` to `interpolated` for pairs from `high` on.
    Ramp {
        low: f64,
        high: f64,
        extrapolation: f64,
        interpolated: f64,
    },
}

impl Stretch {
    /// And the magnitude of cosine and sine.
    fn new(scaling: RopeScaling, dimensions: usize, base: f64) -> Result<(Stretch, f64), Error> {
        match scaling {
            RopeScaling::None => Ok((Stretch::Same(1.0), 1.0)),
            RopeScaling::Linear { factor } => {
                require(factor.is_finite() && factor > 0.0, "scaling factor", factor, "a positive number")?;
                Ok((Stretch::Same(1.0 / f64::from(factor)), 1.0))
            }
            RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, extrapolation, attention_factor } => {
                require(factor.is_finite() && factor > 0.0, "scaling factor", factor, "a positive number")?;
                require(original_context > 0, "original context", original_context, "a positive number")?;
                for (what, beta) in [("beta_fast", beta_fast), ("beta_slow", beta_slow)] {
                    require(beta.is_finite() && beta > 0.0, what, beta, "a positive number")?;
                }
                require(extrapolation.is_finite(), "extrapolation factor", extrapolation, "a number")?;
                require(attention_factor.is_finite(), "attention factor", attention_factor, "a number")?;
                let (factor, attention) = (f64::from(factor), f64::from(attention_factor));
                if extrapolation == 0.0 {
                    return Ok((Stretch::Same(1.0 / factor), attention));
                }
                // The pair that turns `beta` times over the original context. (The limit below is on dimensions, as in the
                // authors' code; models are trained with that.)
                let pair_of = |beta: f32| {
                    let turns = original_context as f64 / (f64::from(beta) * 2.0 * std::f64::consts::PI);
                    dimensions as f64 * ln_f64(turns) / (2.0 * ln_f64(base))
                };
                let low = pair_of(beta_fast).floor().max(0.0);
                let high = pair_of(beta_slow).ceil().min(dimensions as f64 - 1.0);
                let ramp =
                    Stretch::Ramp { low, high, extrapolation: f64::from(extrapolation), interpolated: 1.0 / factor };
                let magnitude = if factor > 1.0 { 1.0 + 0.1 * ln_f64(factor) } else { 1.0 };
                Ok((ramp, attention * magnitude))
            }
        }
    }

    fn of(&self, pair: usize) -> f64 {
        match *self {
            Stretch::Same(stretch) => stretch,
            Stretch::Ramp { low, high, extrapolation, interpolated } => {
                let along = (pair as f64 - low) / (high - low).max(0.001);
                let kept = (1.0 - along.clamp(0.0, 1.0)) * extrapolation;
                interpolated * (1.0 - kept) + kept
            }
        }
    }
}

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

#[cfg(test)]
mod tests;
