//! The dense feed-forward network: SwiGLU (arXiv 2002.05202).

use super::times;
use crate::load::Loader;
use crate::step::{Step, quantize};
use crate::weights::MatrixId;
use crate::{Error, Hyperparameters};

pub(crate) struct FeedForward {
    /// `[feed_forward, hidden]`
    gate: MatrixId,
    /// `[feed_forward, hidden]`
    up: MatrixId,
    /// `[hidden, feed_forward]`
    down: MatrixId,
    width: usize,
}

impl FeedForward {
    pub(crate) fn load(loader: &mut Loader<'_>, h: &Hyperparameters, layer: usize) -> Result<FeedForward, Error> {
        if h.feed_forward == 0 {
            return Err(Error::missing(loader.gguf(), format!("{}.feed_forward_length", h.architecture)));
        }
        let width = h.feed_forward;
        Ok(FeedForward {
            gate: loader.weights.matrix(&format!("blk.{layer}.ffn_gate.weight"), width, h.hidden)?,
            up: loader.weights.matrix(&format!("blk.{layer}.ffn_up.weight"), width, h.hidden)?,
            down: loader.weights.matrix(&format!("blk.{layer}.ffn_down.weight"), h.hidden, width)?,
            width,
        })
    }

    /// x += W_down · (silu(W_gate n) · W_up n)
    pub(crate) fn forward(&self, step: &mut Step<'_>, layer: usize) -> Result<(), Error> {
        let tokens = step.tokens.len();
        step.quantize_normed(layer)?;
        let (cpu, weights, scratch) = (step.cpu, step.weights, &mut *step.scratch);
        let gate = &mut scratch.gate[..tokens * self.width];
        let up = &mut scratch.up[..tokens * self.width];
        let product = |weights, output| times(weights, &scratch.normed, output);
        cpu.multiply(&mut [product(weights.matrix(self.gate), gate), product(weights.matrix(self.up), up)]);
        cpu.swiglu(gate, up, scratch.inner.begin(tokens, self.width));
        quantize(cpu, &mut scratch.inner, layer)?;
        let output = &mut scratch.projected[..tokens * step.hyperparameters.hidden];
        let down = weights.matrix(self.down);
        cpu.multiply(&mut [times(down, &scratch.inner, output)]);
        cpu.add(&mut scratch.x[..output.len()], output);
        Ok(())
    }
}
