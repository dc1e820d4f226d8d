//! `qwen2moe`: Qwen1.5-MoE-A2.7B and Qwen2-MoE (Qwen2 technical report, arXiv 2407.10671).
//!
//! Pre-norm transformer: grouped-query attention with biases on query, key and value, rotary pairs across the halves of a head. Every
//! layer has N routed experts, of which a token runs K, and a shared expert that always runs, scaled by a sigmoid gate of its own. The
//! experts' weights are the softmax over all N; the model does not renormalise them over the chosen.

use super::Architecture;
use crate::layers::{Embedding, Head, MixtureOfExperts, SelfAttention};
use crate::load::Loader;
use crate::step::Step;
use crate::weights::VectorId;
use crate::{Error, Hyperparameters};
use moce_kernels::RopePairing;

struct Qwen2Moe {
    hyperparameters: Hyperparameters,
    embedding: Embedding,
    layers: Vec<Layer>,
    head: Head,
}

struct Layer {
    attention_norm: VectorId,
    attention: SelfAttention,
    feed_forward_norm: VectorId,
    experts: MixtureOfExperts,
}

pub(super) fn load(loader: &mut Loader<'_>) -> Result<Box<dyn Architecture>, Error> {
    let mut hyperparameters = Hyperparameters::read(loader.gguf(), RopePairing::Halves)?;
    let shape = Hyperparameters::read_experts(loader.gguf(), false)?
        .ok_or_else(|| Error::missing(loader.gguf(), "qwen2moe.expert_count".into()))?;
    hyperparameters.experts = Some(shape);
    hyperparameters.feed_forward = 0; // stated in the file, but no layer is dense
    let h = &hyperparameters;
    let embedding = Embedding::load(loader, h)?;
    let layers = (0..h.layers).map(|layer| {
        Ok(Layer {
            attention_norm: loader.weights.vector(&format!("blk.{layer}.attn_norm.weight"), h.hidden)?,
            attention: SelfAttention::load(loader, h, layer)?,
            feed_forward_norm: loader.weights.vector(&format!("blk.{layer}.ffn_norm.weight"), h.hidden)?,
            experts: MixtureOfExperts::load(loader, h, shape, layer)?,
        })
    });
    let mut layers = layers.collect::<Result<Vec<Layer>, Error>>()?;
    for index in 1..layers.len() {
        let (before, after) = layers.split_at_mut(index);
        before[index - 1].experts.precede(after[0].feed_forward_norm, &after[0].experts);
    }
    let head = Head::load(loader, h, &embedding)?;
    Ok(Box::new(Qwen2Moe { embedding, layers, head, hyperparameters }))
}

impl Architecture for Qwen2Moe {
    fn hyperparameters(&self) -> &Hyperparameters {
        &self.hyperparameters
    }

    fn forward(&self, step: &mut Step<'_>) -> Result<(), Error> {
        self.embedding.forward(step)?; // x = E[token]                                   [tokens, hidden]
        for (index, layer) in self.layers.iter().enumerate() {
            step.norm(layer.attention_norm); // n = RMSNorm(x)
            layer.attention.forward(step, index)?; // x += W_o · attention(W_q n + b_q, W_k n + b_k, W_v n + b_v)
            step.norm(layer.feed_forward_norm); // n = RMSNorm(x)
            layer.experts.forward(step, index)?; // x += Σ w_e · expert_e(n) + σ(g · n) · shared(n)
        }
        self.head.forward(step) // logits = W_out · RMSNorm(x)
    }
}
