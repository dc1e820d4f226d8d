//! The head: final norm and the matrix to vocabulary logits, for the tokens whose logits are wanted.

use super::Embedding;
use super::times;
use crate::load::Loader;
use crate::step::{Step, quantize};
use crate::weights::{MatrixId, VectorId};
use crate::{Error, Hyperparameters};

pub(crate) struct Head {
    norm: VectorId,
    /// `[vocabulary, hidden]`; the embedding itself where the file has no `output.weight` (tied embeddings).
    output: MatrixId,
}

impl Head {
    pub(crate) fn load(loader: &mut Loader<'_>, h: &Hyperparameters, embedding: &Embedding) -> Result<Head, Error> {
        let norm = loader.weights.vector("output_norm.weight", h.hidden)?;
        let own = loader.weights.find_matrix("output.weight", h.vocabulary, h.hidden)?;
        Ok(Head { norm, output: own.unwrap_or(embedding.table) })
    }

    /// logits = W_out · RMSNorm(x), for as many tokens at a time as the scratch holds. An error if any are not finite.
    pub(crate) fn forward(&self, step: &mut Step<'_>) -> Result<(), Error> {
        let (hidden, tokens) = (step.hyperparameters.hidden, step.tokens.len());
        let first = match step.logits {
            LogitsWanted::None => return Ok(()),
            LogitsWanted::Last => tokens - 1,
            LogitsWanted::Each(_) => 0,
        };
        let scratch = &mut *step.scratch;
        let vocabulary = step.hyperparameters.vocabulary;
        let rows_at_once = scratch.logits.len() / vocabulary;
        let norm = step.weights.vector(self.norm);
        for start in (first..tokens).step_by(rows_at_once) {
            let rows = rows_at_once.min(tokens - start);
            let x = &scratch.x[start * hidden..(start + rows) * hidden];
            step.cpu.rms_norm(x, norm, step.hyperparameters.rms_epsilon, scratch.normed.begin(rows, hidden));
            quantize(step.cpu, &mut scratch.normed, step.hyperparameters.layers)?;
            let logits = &mut scratch.logits[..rows * vocabulary];
            step.cpu.multiply(&mut [times(step.weights.matrix(self.output), &scratch.normed, logits)]);
            for (row, logits) in logits.chunks_exact(vocabulary).enumerate() {
                if !step.cpu.all_finite(logits) {
                    return Err(Error::NonFinite { layer: step.hyperparameters.layers });
                }
                if let LogitsWanted::Each(receive) = &mut step.logits {
                    receive(start + row, logits);
                }
            }
        }
        Ok(())
    }
}

/// Which tokens of a step need logits.
pub(crate) enum LogitsWanted<'a> {
    /// No token: the prompt goes on.
    None,
    /// The last one; its logits stay in the scratch.
    Last,
    /// Every token: called with the token's index in the step and its logits.
    Each(&'a mut dyn FnMut(usize, &[f32])),
}

impl LogitsWanted<'_> {
    /// Which row of the scratch holds the last token's logits after a step of `tokens` tokens, `rows_at_once` rows computed at a time.
    pub(crate) fn last_row(&self, tokens: usize, rows_at_once: usize) -> Option<usize> {
        match self {
            LogitsWanted::None => None,
            LogitsWanted::Last => Some(0),
            LogitsWanted::Each(_) => Some((tokens - 1) % rows_at_once),
        }
    }

    /// The same wish for a shorter time.
    pub(crate) fn reborrow(&mut self) -> LogitsWanted<'_> {
        match self {
            LogitsWanted::None => LogitsWanted::None,
            LogitsWanted::Last => LogitsWanted::Last,
            LogitsWanted::Each(receive) => LogitsWanted::Each(*receive),
        }
    }
}
