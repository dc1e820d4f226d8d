//! `llama`: Llama 1 to 3, SmolLM, Mistral; with experts Mixtral 8x7B and 8x22B (arXiv 2401.04088).
//!
//! Pre-norm transformer: grouped-query attention with interleaved rotary pairs, SwiGLU. Mixtral replaces the feed-forward network
//! by N experts, of which a token runs K; their weights are the softmax over the chosen alone.

use super::Architecture;
use crate::layers::{Embedding, FeedForward, Head, MixtureOfExperts, SelfAttention};
use crate::load::Loader;
use crate::step::Step;
use crate::weights::VectorId;
use crate::{Error, Hyperparameters};
use moce_kernels::RopePairing;

struct Llama {
    hyperparameters: Hyperparameters,
    embedding: Embedding,
    layers: Vec<Layer>,
    head: Head,
    /// Llama 3.1: what each rotary frequency is divided by.
    frequency_factors: Option<VectorId>,
}

struct Layer {
    attention_norm: VectorId,
    attention: SelfAttention,
    feed_forward_norm: VectorId,
    feed_forward: Network,
}

enum Network {
    Dense(FeedForward),
    Experts(MixtureOfExperts),
}

pub(super) fn load(loader: &mut Loader<'_>) -> Result<Box<dyn Architecture>, Error> {
    let mut hyperparameters = Hyperparameters::read(loader.gguf(), RopePairing::Interleaved)?;
    hyperparameters.experts = Hyperparameters::read_experts(loader.gguf(), true)?;
    if hyperparameters.experts.is_some() {
        hyperparameters.feed_forward = 0; // stated in the file as the width of an expert
    }
    let h = &hyperparameters;
    let frequency_factors = loader.weights.find_vector("rope_freqs.weight", h.rope.dimensions / 2)?;
    let embedding = Embedding::load(loader, h)?;
    let layers = (0..h.layers).map(|layer| {
        Ok(Layer {
            attention_norm: loader.weights.vector(&format!("blk.{layer}.attn_norm.weight"), h.hidden)?,
            attention: SelfAttention::load(loader, h, layer)?,
            feed_forward_norm: loader.weights.vector(&format!("blk.{layer}.ffn_norm.weight"), h.hidden)?,
            feed_forward: match h.experts {
                None => Network::Dense(FeedForward::load(loader, h, layer)?),
                Some(shape) => Network::Experts(MixtureOfExperts::load(loader, h, shape, layer)?),
            },
        })
    });
    let mut layers = layers.collect::<Result<Vec<Layer>, Error>>()?;
    for index in 1..layers.len() {
        let (before, after) = layers.split_at_mut(index);
        if let (Network::Experts(experts), Network::Experts(next)) =
            (&mut before[index - 1].feed_forward, &after[0].feed_forward)
        {
            experts.precede(after[0].feed_forward_norm, next);
        }
    }
    let head = Head::load(loader, h, &embedding)?;
    Ok(Box::new(Llama { embedding, layers, head, frequency_factors, hyperparameters }))
}

impl Architecture for Llama {
    fn hyperparameters(&self) -> &Hyperparameters {
        &self.hyperparameters
    }

    fn frequency_factors(&self) -> Option<VectorId> {
        self.frequency_factors
    }

    fn forward(&self, step: &mut Step<'_>) -> Result<(), Error> {
        self.embedding.forward(step)?; // x = E[token]                                   [tokens, hidden]
        for (index, layer) in self.layers.iter().enumerate() {
            step.norm(layer.attention_norm); // n = RMSNorm(x)
            layer.attention.forward(step, index)?; // x += W_o · attention(W_q n, W_k n, W_v n)
            step.norm(layer.feed_forward_norm); // n = RMSNorm(x)
            match &layer.feed_forward {
                Network::Dense(dense) => dense.forward(step, index)?, // x += W_down · (silu(W_gate n) · W_up n)
                Network::Experts(experts) => experts.forward(step, index)?, // x += Σ w_e · expert_e(n)
            }
        }
        self.head.forward(step) // logits = W_out · RMSNorm(x)
    }
}
