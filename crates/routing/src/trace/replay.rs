//! Scores of a trace, fed to a model of the same N and K whatever its layers: synthetic weights then route like a trained model.
//!
//! Layer l of the model takes, for its token t, the scores of layer l mod L of the trace, token t + 997 · (l div L), around the
//! trace's end (997: prime, so that layers that share a trace layer do not run in step). Scores are fed open loop: what the
//! model computes has no influence on them. Right for hits and speed, meaningless for quality.

use super::{TraceError, TraceReader};
use std::io::Read;

/// Tokens between two model layers that take their scores from the same trace layer.
const STRIDE: u64 = 997;

/// The scores of a trace, in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreReplay {
    layers: usize,
    experts: usize,
    per_token: usize,
    tokens: u64,
    /// `[tokens, layers, experts]`, of the first tokens that are needed.
    scores: Vec<f32>,
}

impl ScoreReplay {
    /// Reads a trace to its end. Kept is only what a model of `model_layers` MoE layers needs for tokens below `positions`.
    ///
    /// # Errors
    /// The trace is damaged, or has no scores or no tokens.
    pub fn read<R: Read>(
        mut reader: TraceReader<R>,
        model_layers: usize,
        positions: usize,
    ) -> Result<ScoreReplay, TraceError> {
        let header = reader.header();
        if header.scores.is_none() {
            return Err(TraceError::NoScores);
        }
        let layers = header.layers.len();
        let needed = needed_tokens(model_layers, layers, positions);
        let mut replay = ScoreReplay {
            layers,
            experts: header.experts,
            per_token: header.experts_per_token,
            tokens: 0,
            scores: Vec::new(),
        };
        while let Some(token) = reader.next_token()? {
            if replay.tokens < needed {
                replay.scores.extend_from_slice(&token.scores);
            }
            replay.tokens += 1;
        }
        if replay.tokens == 0 { Err(TraceError::NoTokens) } else { Ok(replay) }
    }

    /// Whether the trace fits a model of `experts` a layer of which a token runs `per_token`.
    ///
    /// # Errors
    /// [`TraceError::Shape`].
    pub fn check(&self, experts: usize, per_token: usize) -> Result<(), TraceError> {
        if (self.experts, self.per_token) == (experts, per_token) {
            return Ok(());
        }
        let (trace_experts, trace_per_token) = (self.experts, self.per_token);
        Err(TraceError::Shape { trace_experts, trace_per_token, experts, per_token })
    }

    /// Whether what was kept is enough for a model of so many MoE layers and tokens below `positions`.
    pub fn covers(&self, model_layers: usize, positions: usize) -> bool {
        let kept = (self.scores.len() / (self.layers * self.experts)) as u64;
        kept == self.tokens || needed_tokens(model_layers, self.layers, positions) <= kept
    }

    /// Tokens of the trace.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The scores for a token of the model in one of its MoE layers, by expert.
    ///
    /// # Panics
    /// The position or the layer is beyond what was asked for when the trace was read.
    pub fn scores(&self, layer: usize, position: usize) -> &[f32] {
        let token = (position as u64 + STRIDE * (layer / self.layers) as u64) % self.tokens;
        let row = token as usize * self.layers + layer % self.layers;
        &self.scores[row * self.experts..(row + 1) * self.experts]
    }
}

/// Tokens from the start of a trace that the layers of a model can come to, if the trace does not end before.
fn needed_tokens(model_layers: usize, trace_layers: usize, positions: usize) -> u64 {
    let turns = model_layers.saturating_sub(1) / trace_layers;
    positions as u64 + STRIDE * turns as u64
}
