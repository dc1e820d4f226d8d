//! The cells of a simulation with a cache per layer: each a policy, a capacity and an eviction, run by the engine's own routing code.
//!
//! A cell is split into units of some of its layers, because layers do not depend on each other: so that all cores have work, also for one
//! cell.

use super::block::Block;
use crate::Error;
use moce_engine::routing::{
    Counts, LayerShape, Lifetimes, Phase, Policy, RoutingOptions, Selection, SessionRouting, TextStart, TraceHeader,
};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Part of a cell.
pub(super) struct Unit {
    /// Which cell.
    pub(super) cell: usize,
    /// Which layers of it. The session has all layers; the others stay empty.
    layers: Range<usize>,
    session: SessionRouting,
    /// Whether what was recorded is what the policy would choose.
    as_recorded: bool,
    needs_scores: bool,
    selection: Selection,
    /// Layers of tokens with a miss, by phase.
    waiting: [u64; 2],
    /// Selections made.
    pub(super) selections: u64,
    /// Time that took.
    pub(super) busy: Duration,
}

impl Unit {
    /// The units of a cell, about `parts` of them.
    pub(super) fn split(
        cell: usize,
        header: &TraceHeader,
        capacity: &[usize],
        options: &RoutingOptions,
        parts: usize,
    ) -> Result<Vec<Unit>, Error> {
        let shapes: Vec<LayerShape> = capacity
            .iter()
            .map(|&capacity| LayerShape {
                experts: header.experts,
                experts_per_token: header.experts_per_token,
                capacity,
            })
            .collect();
        let session = SessionRouting::new(&shapes, options.clone())?;
        let each = shapes.len().div_ceil(parts.clamp(1, shapes.len()));
        let unit = |first: usize| Unit {
            cell,
            layers: first..(first + each).min(shapes.len()),
            session: session.clone(),
            as_recorded: header.scores.is_none() || (is_original(options) && was_original(header)),
            needs_scores: options.eviction.needs_scores(),
            selection: Selection::with_capacity(header.experts_per_token),
            waiting: [0; 2],
            selections: 0,
            busy: Duration::ZERO,
        };
        Ok((0..shapes.len()).step_by(each).map(unit).collect())
    }

    /// Routes the tokens of a block.
    pub(super) fn run(&mut self, block: &Block) -> Result<(), Error> {
        let started = Instant::now();
        for (start, tokens) in block.runs() {
            match start {
                Some(TextStart::Sequence) => self.session.restart(),
                Some(TextStart::Window) => self.session.restart_caches(),
                None => {}
            }
            for layer in self.layers.clone() {
                for token in tokens.clone() {
                    self.route(block, layer, token)?;
                }
            }
        }
        self.busy += started.elapsed();
        Ok(())
    }

    fn route(&mut self, block: &Block, layer: usize, token: usize) -> Result<(), Error> {
        let (phase, scores) = (block.phase(token), block.scores(layer, token));
        if self.as_recorded {
            let scores = self.needs_scores.then(|| scores.into());
            self.session.replay(layer, block.selection(layer, token), scores, phase, &mut self.selection)?;
        } else {
            self.session.route(layer, scores, phase, &mut self.selection)?;
        }
        self.selections += self.selection.ranked().len() as u64;
        self.waiting[phase as usize] += u64::from(self.selection.ranked_hits().contains(&false));
        Ok(())
    }

    /// Adds what was counted to its cell's.
    pub(super) fn add_to(&self, tally: &mut Tally, expert_bytes: &[u64]) {
        for layer in self.layers.clone() {
            for phase in [Phase::Prompt, Phase::Generation] {
                let counts = self.session.counts(layer, phase);
                let part = &mut tally.phases[phase as usize];
                part.bytes += counts.misses * expert_bytes[layer];
                part.counts += counts;
            }
            tally.lifetimes += self.session.lifetimes(layer);
        }
        for phase in 0..2 {
            tally.phases[phase].waiting += self.waiting[phase];
        }
    }
}

/// What was counted of a cell.
#[derive(Clone, Copy, Default)]
pub(super) struct Tally {
    pub(super) phases: [PhaseTally; 2],
    pub(super) lifetimes: Lifetimes,
}

/// What was counted in one phase.
#[derive(Clone, Copy, Default)]
pub(super) struct PhaseTally {
    pub(super) counts: Counts,
    pub(super) bytes: u64,
    pub(super) waiting: u64,
}

fn is_original(options: &RoutingOptions) -> bool {
    options.policy == Policy::Original && options.prompt_policy == Policy::Original
}

/// Whether the recorded selections are the model's own.
pub(super) fn was_original(header: &TraceHeader) -> bool {
    let original = Policy::Original.to_string();
    header.policy == original && header.prompt_policy == original
}
