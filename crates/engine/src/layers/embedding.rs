//! Token embedding: a row of the table for each token.

use crate::load::Loader;
use crate::step::Step;
use crate::weights::MatrixId;
use crate::{Error, Hyperparameters};

pub(crate) struct Embedding {
    /// `[vocabulary, hidden]`
    pub(super) table: MatrixId,
}

impl Embedding {
    pub(crate) fn load(loader: &mut Loader<'_>, h: &Hyperparameters) -> Result<Embedding, Error> {
        Ok(Embedding { table: loader.weights.matrix("token_embd.weight", h.vocabulary, h.hidden)? })
    }

    pub(crate) fn forward(&self, step: &mut Step<'_>) -> Result<(), Error> {
        let table = step.weights.matrix(self.table);
        let hidden = table.columns;
        for (token, x) in step.tokens.iter().zip(step.scratch.x.chunks_exact_mut(hidden)) {
            table.decode_row(*token as usize, x);
        }
        Ok(())
    }
}
