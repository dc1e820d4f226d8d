//! How frequencies are stretched for contexts longer than the trained one: linear and YaRN (sections 3.2 and 3.4).

use super::require;
use crate::Error;
use crate::math::ln_f64;

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

/// What each frequency is multiplied with.
pub(super) enum Stretch {
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
    pub(super) fn new(scaling: RopeScaling, dimensions: usize, base: f64) -> Result<(Stretch, f64), Error> {
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

    pub(super) fn of(&self, pair: usize) -> f64 {
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
