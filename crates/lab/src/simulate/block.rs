//! Pieces of a trace as the simulation reads them: layer after layer, so that one layer's scores of many tokens lie together.

use moce_engine::routing::{Phase, TextStart, TraceError, TraceHeader, TraceReader};
use std::io::Read;
use std::ops::Range;

/// Bytes of scores and selections that a block holds at most; several are in memory.
const MOST_BYTES: usize = 16 << 20;
/// Tokens of a block at most.
const MOST_TOKENS: usize = 4096;

/// Some tokens in a row.
pub(super) struct Block {
    layers: usize,
    experts: usize,
    per_token: usize,
    /// Tokens that there is room for.
    room: usize,
    phases: Vec<Phase>,
    starts: Vec<Option<TextStart>>,
    /// Chosen experts of each token in a layer `[layers, room]`.
    chosen: Vec<u16>,
    /// `[layers, room, K]`
    selections: Vec<u32>,
    /// `[layers, room, N]`, or nothing.
    scores: Vec<f32>,
}

impl Block {
    pub(super) fn new(header: &TraceHeader) -> Block {
        let (layers, experts, per_token) = (header.layers.len(), header.experts, header.experts_per_token);
        let scores = if header.scores.is_some() { experts } else { 0 };
        let room = (MOST_BYTES / (layers * 4 * (scores + per_token))).clamp(1, MOST_TOKENS);
        Block {
            layers,
            experts: scores,
            per_token,
            room,
            phases: Vec::with_capacity(room),
            starts: Vec::with_capacity(room),
            chosen: vec![0; layers * room],
            selections: vec![0; layers * room * per_token],
            scores: vec![0.0; layers * room * scores],
        }
    }

    /// Reads as many tokens as there is room for; none at the end of the trace.
    pub(super) fn fill<R: Read>(&mut self, reader: &mut TraceReader<R>) -> Result<(), TraceError> {
        self.phases.clear();
        self.starts.clear();
        while self.phases.len() < self.room {
            let Some(token) = reader.next_token()? else { break };
            let index = self.phases.len();
            for layer in 0..self.layers {
                let row = layer * self.room + index;
                let slots = &mut self.selections[row * self.per_token..(row + 1) * self.per_token];
                let selection = slots.iter_mut().zip(token.selection(layer));
                self.chosen[row] = selection.map(|(slot, expert)| *slot = expert).count() as u16;
                self.scores[row * self.experts..(row + 1) * self.experts].copy_from_slice(token.scores(layer));
            }
            self.phases.push(token.phase);
            self.starts.push(token.start);
        }
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.phases.len()
    }

    pub(super) fn phase(&self, token: usize) -> Phase {
        self.phases[token]
    }

    /// What was chosen, strongest first.
    pub(super) fn selection(&self, layer: usize, token: usize) -> &[u32] {
        let row = layer * self.room + token;
        &self.selections[row * self.per_token..][..self.chosen[row].into()]
    }

    /// By expert; empty in a trace without scores.
    pub(super) fn scores(&self, layer: usize, token: usize) -> &[f32] {
        let row = layer * self.room + token;
        &self.scores[row * self.experts..(row + 1) * self.experts]
    }

    /// Runs of tokens in which nothing begins but with the first, with what begins there.
    pub(super) fn runs(&self) -> impl Iterator<Item = (Option<TextStart>, Range<usize>)> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let start = *self.starts.get(from)?;
            let rest = &self.starts[from + 1..];
            let length = 1 + rest.iter().position(Option::is_some).unwrap_or(rest.len());
            let run = from..from + length;
            from = run.end;
            Some((start, run))
        })
    }
}
