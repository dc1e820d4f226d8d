//! What a trace holds, in a page.

use crate::Error;
use moce_engine::routing::{Phase, Precision, ScoreKind, TextStart, TraceReader, effective_experts};
use serde::Serialize;
use std::io::Read;

/// A trace in numbers.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct TraceInfo {
    /// The model's name.
    pub model: String,
    /// GGUF's name of its architecture.
    pub architecture: String,
    /// Its identity, 16 hexadecimal digits; `None` if unknown.
    pub identity: Option<String>,
    /// Bytes of its files; 0 if unknown.
    pub model_bytes: u64,
    /// MoE layers.
    pub layers: usize,
    /// N
    pub experts: usize,
    /// K
    pub experts_per_token: usize,
    /// `none`, or what the scores are: `logits` or `biased sigmoid`.
    pub scores: &'static str,
    /// How they are stored: `f32`, `f16`; `None` without scores.
    pub precision: Option<&'static str>,
    /// The policy of generated tokens.
    pub routing: String,
    /// That of prompt tokens.
    pub routing_prompt: String,
    /// Which cached expert left.
    pub eviction: String,
    /// In which order experts became most recent.
    pub touch: String,
    /// What was cached at the start.
    pub start: String,
    /// Experts logically cached, by MoE layer; 0 if none were.
    pub capacity: Vec<usize>,
    /// Bytes of one expert, by MoE layer; 0 if unknown.
    pub expert_bytes: Vec<u64>,
    /// Tokens in all.
    pub tokens: u64,
    /// Given ones.
    pub prompt_tokens: u64,
    /// Generated ones.
    pub generated_tokens: u64,
    /// Texts that begin with nothing known.
    pub sequences: u64,
    /// Windows that begin with the range known.
    pub windows: u64,
    /// Experts chosen, all layers together.
    pub selections: u64,
    /// exp(entropy of how often each expert was chosen), by MoE layer.
    pub effective_experts: Vec<f64>,
    /// Bytes of the trace.
    pub trace_bytes: u64,
}

/// Reads a trace to its end, which checks all of it.
///
/// # Errors
/// The trace is damaged.
pub fn trace_info<R: Read>(mut reader: TraceReader<R>) -> Result<TraceInfo, Error> {
    let header = reader.header().clone();
    let mut info = TraceInfo {
        model: header.model.name.clone(),
        architecture: header.model.architecture.clone(),
        identity: Some(format!("{:016x}", header.model.fingerprint)).filter(|_| header.model.fingerprint != 0),
        model_bytes: header.model.bytes,
        layers: header.layers.len(),
        experts: header.experts,
        experts_per_token: header.experts_per_token,
        scores: match header.scores.map(|scores| scores.kind) {
            None => "none",
            Some(ScoreKind::BiasedSigmoid) => "biased sigmoid",
            Some(_) => "logits",
        },
        precision: header.scores.map(|scores| match scores.precision {
            Precision::F32 => "f32",
            Precision::F16 => "f16",
        }),
        routing: header.policy.clone(),
        routing_prompt: header.prompt_policy.clone(),
        eviction: header.eviction.clone(),
        touch: header.touch.to_string(),
        start: header.start.to_string(),
        capacity: header.layers.iter().map(|layer| layer.capacity).collect(),
        expert_bytes: header.layers.iter().map(|layer| layer.expert_bytes).collect(),
        tokens: 0,
        prompt_tokens: 0,
        generated_tokens: 0,
        sequences: 0,
        windows: 0,
        selections: 0,
        effective_experts: Vec::new(),
        trace_bytes: 0,
    };
    let mut usage: Vec<Vec<u64>> = vec![Vec::new(); header.layers.len()];
    while let Some(token) = reader.next_token()? {
        info.tokens += 1;
        match token.phase {
            Phase::Prompt => info.prompt_tokens += 1,
            Phase::Generation => info.generated_tokens += 1,
        }
        info.sequences += u64::from(token.start == Some(TextStart::Sequence));
        info.windows += u64::from(token.start == Some(TextStart::Window));
        for (layer, usage) in usage.iter_mut().enumerate() {
            usage.resize(header.experts, 0);
            for expert in token.selection(layer) {
                usage[expert as usize] += 1;
                info.selections += 1;
            }
        }
    }
    info.effective_experts = usage.iter().map(|usage| effective_experts(usage)).collect();
    info.trace_bytes = reader.bytes();
    Ok(info)
}
