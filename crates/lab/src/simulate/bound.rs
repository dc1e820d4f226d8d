//! Belady's bound on the trace of the model's own choices, layer by layer.

use super::block::Block;
use super::cells::{PhaseTally, Tally, was_original};
use crate::Error;
use moce_engine::routing::{
    Counts, LayerShape, Phase, RoutingOptions, Selection, SessionRouting, Start, TraceHeader, belady,
};
use rayon::prelude::*;

/// The model's own choices in all layers.
pub(super) struct Bound {
    layers: Vec<LayerRequests>,
    phases: Vec<Phase>,
    /// Tokens at which a cache starts anew.
    starts: Vec<usize>,
}

struct LayerRequests {
    /// Chooses where the trace holds other choices.
    chooser: Option<SessionRouting>,
    selection: Selection,
    /// The experts of all tokens behind each other, and where each token's end.
    experts: Vec<u32>,
    ends: Vec<usize>,
}

impl Bound {
    pub(super) fn new(header: &TraceHeader) -> Result<Bound, Error> {
        let recorded = header.scores.is_none() || was_original(header);
        let shape = LayerShape { capacity: 0, ..header.layer_shape(0) };
        let layer = || -> Result<LayerRequests, Error> {
            let chooser = || SessionRouting::new(&[shape], RoutingOptions::default());
            Ok(LayerRequests {
                chooser: if recorded { None } else { Some(chooser()?) },
                selection: Selection::with_capacity(header.experts_per_token),
                experts: Vec::new(),
                ends: Vec::new(),
            })
        };
        let layers = header.layers.iter().map(|_| layer()).collect::<Result<_, _>>()?;
        Ok(Bound { layers, phases: Vec::new(), starts: Vec::new() })
    }

    /// Takes in the next tokens of the trace.
    pub(super) fn add(&mut self, block: &Block) -> Result<(), Error> {
        let before = self.phases.len();
        self.phases.extend((0..block.len()).map(|token| block.phase(token)));
        let starts = block.runs().filter(|(start, _)| start.is_some());
        self.starts.extend(starts.map(|(_, tokens)| before + tokens.start));
        self.layers.par_iter_mut().enumerate().try_for_each(|(layer, requests)| {
            for token in 0..block.len() {
                requests.add(block, layer, token)?;
            }
            Ok(())
        })
    }

    /// The fewest misses with so many experts cached in each layer.
    pub(super) fn tally(&self, header: &TraceHeader, capacity: &[usize], start: &Start) -> Result<Tally, Error> {
        let per_layer = self.layers.par_iter().zip(capacity).enumerate().map(|(layer, (requests, &capacity))| {
            let shape = LayerShape { capacity, ..header.layer_shape(layer) };
            requests.tally(shape, &start.experts(layer, shape), self, header.layers[layer].expert_bytes)
        });
        let mut tally = Tally::default();
        for phases in per_layer.collect::<Result<Vec<_>, Error>>()? {
            for (sum, phase) in tally.phases.iter_mut().zip(phases) {
                sum.counts += phase.counts;
                sum.bytes += phase.bytes;
                sum.waiting += phase.waiting;
            }
        }
        Ok(tally)
    }
}

impl LayerRequests {
    fn add(&mut self, block: &Block, layer: usize, token: usize) -> Result<(), Error> {
        let chosen = match &mut self.chooser {
            None => block.selection(layer, token),
            Some(chooser) => {
                chooser.route(0, block.scores(layer, token), Phase::Prompt, &mut self.selection)?;
                self.selection.ranked()
            }
        };
        self.experts.extend_from_slice(chosen);
        self.ends.push(self.experts.len());
        Ok(())
    }

    fn tally(
        &self,
        shape: LayerShape,
        start: &[u32],
        bound: &Bound,
        expert_bytes: u64,
    ) -> Result<[PhaseTally; 2], Error> {
        let begin = |token: usize| if token == 0 { 0 } else { self.ends[token - 1] };
        let requests: Vec<&[u32]> = (0..self.ends.len()).map(|t| &self.experts[begin(t)..self.ends[t]]).collect();
        let mut phases = [PhaseTally::default(); 2];
        // The trace may begin in the midst of a text.
        let mut from = 0;
        let ends = bound.starts.iter().copied().filter(|&start| start > 0).chain([requests.len()]);
        for end in ends {
            let misses = belady(shape, start, &requests[from..end])?;
            for (token, &misses) in (from..end).zip(&misses) {
                let phase = &mut phases[bound.phases[token] as usize];
                let selections = requests[token].len() as u64;
                phase.counts += Counts {
                    tokens: 1,
                    own_selections: shape.experts_per_token as u64,
                    selections,
                    hits: selections - u64::from(misses),
                    misses: misses.into(),
                    ..Counts::default()
                };
                phase.bytes += u64::from(misses) * expert_bytes;
                phase.waiting += u64::from(misses > 0);
            }
            from = end;
        }
        Ok(phases)
    }
}
