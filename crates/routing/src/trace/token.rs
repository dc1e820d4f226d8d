//! One token of a trace: what was chosen in each layer, and what the routers said.

use super::header::Shape;
use super::{NO_EXPERT, TraceHeader};
use crate::Phase;

/// What the first token of a text begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextStart {
    /// A session: caches and range start anew.
    Sequence,
    /// A window of a measurement: caches start anew, the range goes on.
    Window,
}

/// A token.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceToken {
    pub(super) shape: Shape,
    /// The token's id, if it is known.
    pub id: Option<u32>,
    /// Whether it was given or generated.
    pub phase: Phase,
    /// What begins with it, if anything does.
    pub start: Option<TextStart>,
    /// `[layers, K]`
    pub(super) selections: Vec<u16>,
    /// `[layers, N]`, or nothing in a trace without scores.
    pub(super) scores: Vec<f32>,
}

impl TraceToken {
    /// A token with nothing chosen and scores of 0, to be written.
    pub fn new(header: &TraceHeader) -> TraceToken {
        let shape = header.shape();
        TraceToken {
            selections: vec![NO_EXPERT; shape.layers * shape.per_token],
            scores: vec![0.0; if header.scores.is_some() { shape.layers * shape.experts } else { 0 }],
            ..TraceToken::empty(header)
        }
    }

    /// A token without layers: those come with the bytes of a trace, and no memory before them.
    pub(super) fn empty(header: &TraceHeader) -> TraceToken {
        TraceToken {
            shape: header.shape(),
            id: None,
            phase: Phase::Prompt,
            start: None,
            selections: Vec::new(),
            scores: Vec::new(),
        }
    }

    /// The experts chosen in a layer, strongest first.
    ///
    /// # Panics
    /// There is no such layer (as in all methods that take one).
    pub fn selection(&self, layer: usize) -> impl Iterator<Item = u32> + '_ {
        let row = &self.selections[layer * self.shape.per_token..(layer + 1) * self.shape.per_token];
        row.iter().take_while(|&&id| id != NO_EXPERT).map(|&id| id.into())
    }

    /// The scores in a layer, by expert; empty in a trace without scores.
    pub fn scores(&self, layer: usize) -> &[f32] {
        let experts = if self.scores.is_empty() { 0 } else { self.shape.experts };
        &self.scores[layer * experts..(layer + 1) * experts]
    }

    /// Sets what a layer chose, strongest first, and what its router said; without scores in the trace those are left out.
    ///
    /// # Panics
    /// More experts than K were chosen, one does not exist, or there are not as many scores as experts.
    pub fn set_layer(&mut self, layer: usize, selection: &[u32], scores: &[f32]) {
        let Shape { experts, per_token, .. } = self.shape;
        assert!(
            selection.iter().all(|&id| (id as usize) < experts),
            "an expert of {selection:?} is not below {experts}"
        );
        let (chosen, rest) = self.selections[layer * per_token..(layer + 1) * per_token].split_at_mut(selection.len());
        chosen.iter_mut().zip(selection).for_each(|(slot, &id)| *slot = id as u16);
        rest.fill(NO_EXPERT);
        if !self.scores.is_empty() {
            self.scores[layer * experts..(layer + 1) * experts].copy_from_slice(scores);
        }
    }
}
