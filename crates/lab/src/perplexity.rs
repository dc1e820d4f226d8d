//! Perplexity of a model on a text.
//!
//! Windows: the text is tokenised once, without special tokens. A window predicts `window` tokens, with the token before them as
//! the first of its context; the next one starts where it ended, and a last partial window is dropped. Every window is a text of its own:
//! KV cache and logical expert caches start anew, the running range of the router's scores goes on (METHOD.md, "Figures"). NLL = ln Σ exp(z - max) + max - z_target in f64, ids ascending.

use crate::Error;
use crate::divergence::{DivergenceReport, Reference};
use crate::likelihood::{self, PerplexityRise, negative_log_likelihood};
use moce_engine::routing::{Lifetimes, Phase, effective_experts};
use moce_engine::tokenizer::{ControlTokens, SpecialTokens};
use moce_engine::{Engine, Session};
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;
use std::sync::Arc;

/// What to measure.
#[derive(Clone, Debug)]
pub struct PerplexityOptions {
    /// Tokens predicted a window.
    pub window: usize,
    /// Most tokens scored; whole windows only.
    pub limit: Option<usize>,
    /// Puts the BOS token in front of every window.
    pub bos: bool,
    /// Runs original routing along and compares: in a second session, for which the engine must have room.
    pub kl: bool,
}

impl Default for PerplexityOptions {
    fn default() -> PerplexityOptions {
        PerplexityOptions { window: 1024, limit: None, bos: false, kl: false }
    }
}

impl PerplexityOptions {
    /// How many of a text's tokens may be scored: all but the first, within the limit.
    pub(crate) fn scorable(&self, tokens: usize) -> usize {
        tokens.saturating_sub(1).min(self.limit.unwrap_or(usize::MAX))
    }
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PerplexityReport {
    /// Tokens scored.
    pub tokens: usize,
    /// Whitespace-separated words of the scored text.
    pub words: usize,
    /// Sum of the negative log likelihoods, in nats.
    pub nll: f64,
    /// The same for each window, in order: two runs on one text are compared window by window.
    pub window_nll: Vec<f64>,
    /// exp(nll / tokens)
    pub perplexity: f64,
    /// exp(nll / words); `None` where that is no finite number: a text may have few words, or none.
    pub word_perplexity: Option<f64>,
    /// Misses of the logical caches, as a share of tokens · layers · K.
    pub miss_rate: f64,
    /// Misses of all layers together, a token.
    pub misses_per_token: f64,
    /// Mean number of tokens that an expert stays cached.
    pub lifetime_mean: f64,
    /// Standard deviation of that.
    pub lifetime_std: f64,
    /// Stays among them that had not ended where the text or its cache did; unknown in results of earlier versions.
    #[serde(default)]
    pub lifetimes_still_cached: Option<u64>,
    /// The routing policy, with all parameters.
    pub routing: String,
    /// The policy that a replayed record was made under; its choices ran, not `routing`'s. Whoever replays sets it.
    pub replayed_routing: Option<String>,
    /// Which cached expert leaves.
    pub eviction: String,
    /// Experts logically cached, by MoE layer.
    pub capacity: Vec<usize>,
    /// The model's own choices that did not run.
    pub changed_selections: u64,
    /// The same as a share of tokens · layers · K.
    pub changed_share: f64,
    /// Of the model's strongest choices (as many as J is by default) the share that ran; unknown in results of earlier versions.
    #[serde(default)]
    pub top_j_kept: Option<f64>,
    /// Beside original routing on the same text, if that was asked for.
    #[serde(flatten)]
    pub divergence: Option<DivergenceReport>,
    /// Layer by layer.
    pub per_layer: Vec<LayerReport>,
}

impl PerplexityReport {
    /// Beside original routing on the same windows.
    pub(crate) fn rise_over(&self, original: &PerplexityReport) -> PerplexityRise {
        PerplexityRise::new(&self.window_nll, &original.window_nll, self.tokens / self.window_nll.len().max(1))
    }
}

/// What was counted in one MoE layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LayerReport {
    /// Its number among the MoE layers.
    pub layer: usize,
    /// Experts logically cached.
    pub capacity: usize,
    /// Choices whose expert was cached before the token.
    pub hits: u64,
    /// Choices whose expert was not.
    pub misses: u64,
    /// exp(entropy of how often each expert was chosen)
    pub effective_experts: f64,
    /// How often each expert was chosen, by id.
    pub usage: Vec<u64>,
}

/// Scores `text` in a session of its own. `progress` is called after each window with (tokens scored, tokens in all, nll so far).
///
/// # Errors
/// The text is shorter than a window, a window does not fit the engine's context, a step fails, or `progress` ends the work.
pub fn perplexity(
    engine: &Arc<Engine>,
    text: &str,
    options: &PerplexityOptions,
    progress: &mut dyn FnMut(usize, usize, f64) -> ControlFlow<()>,
) -> Result<PerplexityReport, Error> {
    perplexity_in(&mut Session::new(engine)?, text, options, progress)
}

/// Scores `text` in a session that has seen nothing yet, with its routing and capacities.
///
/// # Errors
/// As [`perplexity`].
pub fn perplexity_in(
    session: &mut Session,
    text: &str,
    options: &PerplexityOptions,
    progress: &mut dyn FnMut(usize, usize, f64) -> ControlFlow<()>,
) -> Result<PerplexityReport, Error> {
    let engine = Arc::clone(session.engine());
    let tokens = engine.tokenizer().encode(text, SpecialTokens::AsText)?;
    let window = options.window.max(1);
    let scorable = options.scorable(tokens.len());
    let windows = scorable / window;
    if windows == 0 {
        let is_limited = tokens.len() > window;
        return Err(Error::TextTooShort { tokens: tokens.len(), window, is_limited });
    }
    let bos = if options.bos { Some(engine.tokenizer().bos().ok_or(Error::NoBos)?) } else { None };
    let mut reference = if options.kl { Some(Reference::beside(session)?) } else { None };
    let mut nll = 0.0;
    let mut window_nll = Vec::with_capacity(windows);
    let mut input = Vec::with_capacity(window + 1);
    for index in 0..windows {
        let start = index * window;
        let targets = &tokens[start + 1..=start + window];
        input.clear();
        input.extend(bos);
        let context = input.len();
        input.extend_from_slice(&tokens[start..start + window]);
        session.restart();
        let of_window = match &mut reference {
            Some(reference) => reference.score(session, &input, context, targets)?,
            None => score(session, &input, context, targets)?,
        };
        window_nll.push(likelihood::window_nll(of_window, window)?);
        nll += of_window;
        if progress((index + 1) * window, windows * window, nll).is_break() {
            return Err(Error::Interrupted);
        }
    }
    let scored = windows * window;
    let words = String::from_utf8_lossy(&engine.tokenizer().decode(&tokens[1..=scored], ControlTokens::Show)?)
        .split_whitespace()
        .count();
    Ok(PerplexityReport {
        tokens: scored,
        words,
        nll,
        divergence: reference.map(|reference| reference.report(&window_nll, window)),
        window_nll,
        perplexity: libm::exp(nll / scored as f64),
        word_perplexity: word_perplexity(nll, words),
        ..routing_report(session)
    })
}

fn word_perplexity(nll: f64, words: usize) -> Option<f64> {
    Some(libm::exp(nll / words as f64)).filter(|perplexity| perplexity.is_finite())
}

/// Sum of the negative log likelihoods of `targets`. The first `context` tokens of `input` have none.
fn score(session: &mut Session, input: &[u32], context: usize, targets: &[u32]) -> Result<f64, Error> {
    let engine = Arc::clone(session.engine());
    let mut nll = 0.0;
    session.score(input, &mut |position, logits| {
        if let Some(target) = position.checked_sub(context) {
            nll += negative_log_likelihood(engine.cpu(), logits, targets[target]);
        }
    })?;
    Ok(nll)
}

/// The part of the report that is about experts.
fn routing_report(session: &Session) -> PerplexityReport {
    let routing = session.routing();
    let layers = 0..routing.layer_count();
    // Every token of a text counts as a prompt token.
    let total = routing.total(Phase::Prompt);
    let mut lifetimes = Lifetimes::default();
    layers.clone().for_each(|layer| lifetimes += routing.lifetimes(layer));
    let tokens = total.tokens.checked_div(routing.layer_count() as u64).unwrap_or(0);
    let per_layer = layers.clone().map(|layer| {
        let counts = routing.counts(layer, Phase::Prompt);
        LayerReport {
            layer,
            capacity: routing.shape(layer).capacity,
            hits: counts.hits,
            misses: counts.misses,
            effective_experts: effective_experts(routing.usage(layer)),
            usage: routing.usage(layer).to_vec(),
        }
    });
    PerplexityReport {
        tokens: 0,
        words: 0,
        nll: 0.0,
        window_nll: Vec::new(),
        perplexity: 0.0,
        word_perplexity: None,
        miss_rate: total.miss_rate(),
        misses_per_token: if tokens == 0 { 0.0 } else { total.misses as f64 / tokens as f64 },
        lifetime_mean: lifetimes.mean(),
        lifetime_std: lifetimes.standard_deviation(),
        lifetimes_still_cached: Some(lifetimes.still_cached),
        routing: routing.options().prompt_policy.to_string(),
        replayed_routing: None,
        eviction: routing.options().eviction.to_string(),
        capacity: layers.map(|layer| routing.shape(layer).capacity).collect(),
        changed_selections: total.changed,
        changed_share: total.changed_share(),
        top_j_kept: Some(total.top_kept()),
        divergence: None,
        per_layer: per_layer.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_without_spaces_has_no_perplexity_per_word() {
        assert_eq!(word_perplexity(0.0, 3), Some(1.0));
        // Chinese, code in one line: thousands of tokens are one word, and e^5000 is beyond f64.
        assert_eq!([word_perplexity(5000.0, 1), word_perplexity(5000.0, 0), word_perplexity(0.0, 0)], [None; 3]);
    }
}
