//! The memory plan: what an engine and one session need, by part, before anything is read.

use crate::load::Loader;
use crate::scratch::ScratchSizes;
use crate::{Error, Hyperparameters};
use moce_kernels::Cpu;

/// Bytes by what they are for. The program itself and the tokenizer come on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryPlan {
    /// Weights that every token uses.
    pub dense_bytes: u64,
    /// Routed experts, all of them.
    pub expert_bytes: u64,
    /// Keys and values of one session.
    pub kv_bytes: u64,
    /// Buffers of a step.
    pub scratch_bytes: u64,
}

impl MemoryPlan {
    pub(crate) fn new(
        loader: &Loader<'_>,
        h: &Hyperparameters,
        sizes: ScratchSizes,
        cpu: &Cpu,
    ) -> Result<MemoryPlan, Error> {
        Ok(MemoryPlan {
            dense_bytes: loader.weights.bytes() as u64,
            expert_bytes: loader.experts.bytes() as u64,
            kv_bytes: sizes.kv.bytes(h.layers)? as u64,
            scratch_bytes: sizes.bytes(h, cpu) as u64,
        })
    }

    /// The sum of all parts.
    pub fn total_bytes(&self) -> u64 {
        self.dense_bytes + self.expert_bytes + self.kv_bytes + self.scratch_bytes
    }
}
