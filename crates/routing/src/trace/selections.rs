//! Selections of a trace, to be re-applied: a run with another policy, timing or capacity then chooses as the recorded one did.

use super::{NO_EXPERT, TextStart, TraceError, TraceHeader, TraceReader};
use std::collections::BTreeMap;
use std::io::Read;

/// The selections of a trace, in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct SelectionReplay {
    header: TraceHeader,
    /// The tokens' ids, where they are known.
    ids: Vec<Option<u32>>,
    /// Tokens that begin a text.
    starts: BTreeMap<usize, TextStart>,
    /// `[tokens, layers, K]`
    selections: Vec<u16>,
}

impl SelectionReplay {
    /// Reads a trace to its end; scores are left aside.
    ///
    /// # Errors
    /// The trace is damaged.
    pub fn read<R: Read>(mut reader: TraceReader<R>) -> Result<SelectionReplay, TraceError> {
        let (mut ids, mut starts, mut selections) = (Vec::new(), BTreeMap::new(), Vec::new());
        while let Some(token) = reader.next_token()? {
            if let Some(start) = token.start {
                starts.insert(ids.len(), start);
            }
            ids.push(token.id);
            selections.extend_from_slice(&token.selections);
        }
        Ok(SelectionReplay { header: reader.header().clone(), ids, starts, selections })
    }

    /// What the trace is about.
    pub fn header(&self) -> &TraceHeader {
        &self.header
    }

    /// Tokens of the trace.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// The id of a token, if it is known.
    ///
    /// # Panics
    /// There is no such token.
    pub fn id(&self, token: usize) -> Option<u32> {
        self.ids[token]
    }

    /// What a token begins, if it is the first of a text.
    pub fn start(&self, token: usize) -> Option<TextStart> {
        self.starts.get(&token).copied()
    }

    /// The experts chosen for a token in a layer, strongest first.
    ///
    /// # Panics
    /// There is no such token or layer.
    pub fn selection(&self, token: usize, layer: usize) -> impl Iterator<Item = u32> + '_ {
        let (layers, per_token) = (self.header.layers.len(), self.header.experts_per_token);
        assert!(layer < layers, "layer {layer} of {layers}");
        let row = (token * layers + layer) * per_token;
        let chosen = self.selections[row..row + per_token].iter().take_while(|&&id| id != NO_EXPERT);
        chosen.map(|&id| id.into())
    }
}
