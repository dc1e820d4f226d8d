//! One forward call: the tokens of a chunk, the model's weights, the session's state, and the scratch they are computed in.

use crate::experts::ExpertStore;
use crate::layers::{LogitsWanted, Prefetch};
use crate::scratch::Scratch;
use crate::tap::RoutingTap;
use crate::weights::{VectorId, Weights};
use crate::{Error, Hyperparameters};
use moce_kernels::{Activations, Cpu, KvCache};
use moce_quant::Format;
use moce_routing::{Phase, SessionRouting};

/// Everything that a layer needs. Fields, not methods, so that layers can borrow the parts apart.
pub(crate) struct Step<'a> {
    pub(crate) cpu: &'a Cpu,
    pub(crate) hyperparameters: &'a Hyperparameters,
    pub(crate) weights: &'a Weights,
    pub(crate) experts: &'a mut ExpertStore,
    pub(crate) kv: &'a mut KvCache,
    pub(crate) routing: &'a mut SessionRouting,
    pub(crate) tap: &'a mut RoutingTap,
    pub(crate) scratch: &'a mut Scratch,
    /// Token ids of the chunk; all below the vocabulary's size.
    pub(crate) tokens: &'a [u32],
    /// Position of the first of them in the session.
    pub(crate) first_position: usize,
    pub(crate) phase: Phase,
    pub(crate) prefetch: Prefetch,
    pub(crate) logits: LogitsWanted<'a>,
}

impl Step<'_> {
    /// n = RMSNorm(x), for every token.
    pub(crate) fn norm(&mut self, weight: VectorId) {
        let (tokens, hidden) = (self.tokens.len(), self.hyperparameters.hidden);
        let Scratch { x, normed, .. } = &mut *self.scratch;
        let weight = self.weights.vector(weight);
        self.cpu.rms_norm(
            &x[..tokens * hidden],
            weight,
            self.hyperparameters.rms_epsilon,
            normed.begin(tokens, hidden),
        );
    }

    /// Makes the quantised form of n that products with quantised weights use.
    pub(crate) fn quantize_normed(&mut self, layer: usize) -> Result<(), Error> {
        quantize(self.cpu, &mut self.scratch.normed, layer)
    }
}

/// Makes the quantised form of activations, or where they are too narrow for any quantised weight, only checks them.
pub(crate) fn quantize(cpu: &Cpu, activations: &mut Activations, layer: usize) -> Result<(), Error> {
    let finite = if activations.columns().is_multiple_of(Format::Q8_0.block_len()) {
        cpu.quantize(activations).is_ok()
    } else {
        cpu.all_finite(activations.values())
    };
    if finite { Ok(()) } else { Err(Error::NonFinite { layer }) }
}
