//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864) with linear scaling, YaRN (Peng et al. 2023, arXiv 2309.00071)
//! and per-frequency factors, with the meaning that llama.cpp gives to GGUF's metadata.
//!
//! [`Rope`] holds the frequencies. Once a step a [`RopeTable`] is filled for the positions of the step; all layers and heads share
//! it. Nothing is allocated after the table is made.

mod rotate;
mod scaling;

use crate::Error;
use crate::math::{cos_f64, pow_f64, sin_f64};
pub use scaling::RopeScaling;
use scaling::Stretch;
use std::ops::Range;

/// Which two values of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairing {
    /// Neighbours: `x[2i]` and `x[2i + 1]` (llama.cpp's NORM; the architecture `llama`).
    Interleaved,
    /// `x[i]` and `x[i + dimensions / 2]` (NEOX; `qwen2moe`).
    Halves,
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

#[cfg(test)]
mod tests;
