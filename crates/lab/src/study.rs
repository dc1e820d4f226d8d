//! What results must agree in to be put side by side.

use crate::PerplexityOptions;
use crate::fingerprint::{fingerprint, start_text};
use moce_engine::Engine;
use moce_engine::routing::{Policy, RoutingOptions};
use serde::{Deserialize, Serialize};

/// A model, a text, and how it is scored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Study {
    /// The model's file name.
    pub model: String,
    /// Its identity.
    pub model_identity: String,
    /// MoE layers.
    pub layers: usize,
    /// N
    pub experts: usize,
    /// K
    pub experts_per_token: usize,
    /// Bytes of one expert of each MoE layer.
    pub expert_bytes: Vec<u64>,
    /// Bytes of text.
    pub text_bytes: usize,
    /// FNV-1a of the text.
    pub text_hash: String,
    /// Tokens predicted a window.
    pub window: usize,
    /// Most tokens scored.
    pub limit: Option<usize>,
    /// Whether windows begin with BOS.
    pub bos: bool,
    /// Whether original routing runs along.
    pub kl: bool,
    /// How keys and values are kept.
    pub kv: String,
    /// In which order a token's experts become most recent.
    pub touch: String,
    /// What is cached where a window starts.
    pub start: String,
}

impl Study {
    pub(crate) fn new(engine: &Engine, text: &str, perplexity: &PerplexityOptions, routing: &RoutingOptions) -> Study {
        let plan = engine.plan();
        Study {
            model: engine.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            model_identity: engine.identity().to_string(),
            layers: plan.experts.len(),
            experts: plan.experts.iter().copied().max().unwrap_or(0),
            experts_per_token: plan.experts_per_token,
            expert_bytes: plan.expert_bytes.clone(),
            text_bytes: text.len(),
            text_hash: fingerprint([text.as_bytes()]),
            window: perplexity.window,
            limit: perplexity.limit,
            bos: perplexity.bos,
            kl: perplexity.kl,
            kv: plan.kv_type.to_string(),
            touch: routing.touch.to_string(),
            start: start_text(&routing.start),
        }
    }

    /// Whether results of both may be put side by side. The model's file may have another name.
    pub(crate) fn is_same(&self, other: &Study) -> bool {
        Study { model: other.model.clone(), ..self.clone() } == *other
    }

    /// A policy as it is written, with every default written out for this model.
    pub(crate) fn resolved(&self, routing: &str) -> String {
        let policy = routing.parse::<Policy>().and_then(|policy| policy.resolved(self.experts, self.experts_per_token));
        // A file that was meddled with is no reason to stop.
        policy.map_or_else(|_| routing.to_owned(), |policy| policy.to_string())
    }
}
