//! A simulation with one cache for the experts of all layers, by bytes, under the rule of published replays (`routing::GlobalLru`): a prompt
//! is one batch a layer, a generated token another.

use super::cells::{PhaseTally, Tally};
use crate::Error;
use moce_engine::routing::{
    Batch, Counts, GlobalLru, GlobalShape, Lookups, Phase, TraceHeader, TraceReader, global_belady,
};
use rayon::prelude::*;
use std::io::Read;

/// The batches of a trace.
pub(super) struct Batches {
    batches: Vec<Batch>,
    phases: Vec<Phase>,
    /// Batches at which the cache starts empty, ascending.
    starts: Vec<usize>,
    experts: usize,
    expert_bytes: Vec<u64>,
    /// Tokens by phase.
    tokens: [u64; 2],
}

impl Batches {
    /// Reads a trace to its end. Prompt tokens in a row are one batch in each layer, at most `prompt_batch` of them.
    pub(super) fn read<R: Read>(reader: &mut TraceReader<R>, prompt_batch: usize) -> Result<Batches, Error> {
        let header = reader.header();
        let (layers, experts) = (header.layers.len(), header.experts);
        let expert_bytes = expert_bytes(header)?;
        let mut batches = Batches {
            batches: Vec::new(),
            phases: Vec::new(),
            starts: Vec::new(),
            experts,
            expert_bytes,
            tokens: [0; 2],
        };
        let mut open = vec![Vec::new(); layers];
        let mut open_tokens = 0;
        while let Some(token) = reader.next_token()? {
            let starts = token.start.is_some();
            if starts || token.phase == Phase::Generation || open_tokens == prompt_batch {
                batches.close(&mut open, Phase::Prompt);
                open_tokens = 0;
            }
            if starts && !batches.batches.is_empty() {
                batches.starts.push(batches.batches.len());
            }
            for (layer, open) in open.iter_mut().enumerate() {
                open.extend(token.selection(layer));
            }
            batches.tokens[token.phase as usize] += 1;
            match token.phase {
                Phase::Prompt => open_tokens += 1,
                Phase::Generation => batches.close(&mut open, Phase::Generation),
            }
        }
        batches.close(&mut open, Phase::Prompt);
        Ok(batches)
    }

    fn close(&mut self, open: &mut [Vec<u32>], phase: Phase) {
        for (layer, experts) in open.iter_mut().enumerate().filter(|(_, experts)| !experts.is_empty()) {
            self.batches.push(Batch { layer, experts: std::mem::take(experts) });
            self.phases.push(phase);
        }
    }

    /// Tokens of a phase.
    pub(super) fn tokens(&self, phase: Phase) -> u64 {
        self.tokens[phase as usize]
    }

    /// Batches of a layer from one start of the cache to the next, on average.
    pub(super) fn per_start(&self) -> f64 {
        let starts = self.starts.len() + 1;
        self.batches.len() as f64 / (starts * self.expert_bytes.len()) as f64
    }

    /// With LRU, for each capacity in bytes.
    pub(super) fn lru(&self, capacities: &[u64]) -> Vec<Tally> {
        let run = |&capacity_bytes: &u64| {
            let mut cache = GlobalLru::new(self.shape(capacity_bytes));
            let mut tally = Tally::default();
            for (index, batch) in self.batches.iter().enumerate() {
                if self.starts.binary_search(&index).is_ok() {
                    cache.clear();
                }
                let found = cache.look_up(batch.layer, batch.experts.iter().copied());
                self.count(index, found, &mut tally);
            }
            tally
        };
        capacities.par_iter().map(run).collect()
    }

    /// With the clairvoyant eviction, for each capacity in bytes.
    pub(super) fn belady(&self, capacities: &[u64]) -> Vec<Tally> {
        let distinct: Vec<Batch> = self.batches.iter().map(distinct).collect();
        let run = |&capacity_bytes: &u64| {
            let (shape, mut tally, mut from) = (self.shape(capacity_bytes), Tally::default(), 0);
            for end in self.starts.iter().copied().chain([distinct.len()]) {
                for (index, found) in (from..end).zip(global_belady(&shape, &distinct[from..end])) {
                    self.count(index, found, &mut tally);
                }
                from = end;
            }
            tally
        };
        capacities.par_iter().map(run).collect()
    }

    fn shape(&self, capacity_bytes: u64) -> GlobalShape {
        GlobalShape { experts: self.experts, expert_bytes: self.expert_bytes.clone(), capacity_bytes }
    }

    /// Counts a batch; tokens are not counted by layer here.
    fn count(&self, index: usize, found: Lookups, tally: &mut Tally) {
        let PhaseTally { counts, bytes, waiting } = &mut tally.phases[self.phases[index] as usize];
        let lookups = found.hits + found.misses;
        *counts += Counts {
            own_selections: lookups,
            selections: lookups,
            hits: found.hits,
            misses: found.misses,
            ..Counts::default()
        };
        *bytes += found.misses * self.expert_bytes[self.batches[index].layer];
        *waiting += u64::from(found.misses > 0);
    }
}

/// Bytes of one expert in each layer, which a cache by bytes cannot do without.
fn expert_bytes(header: &TraceHeader) -> Result<Vec<u64>, Error> {
    if header.layers.iter().any(|layer| layer.expert_bytes == 0) {
        return Err(Error::Simulation(
            "the trace does not say how large experts are; --scope layer needs no sizes".into(),
        ));
    }
    Ok(header.layers.iter().map(|layer| layer.expert_bytes).collect())
}

/// Each expert of a batch once, where it first comes.
fn distinct(batch: &Batch) -> Batch {
    let mut experts: Vec<u32> = Vec::new();
    for &expert in &batch.experts {
        if !experts.contains(&expert) {
            experts.push(expert);
        }
    }
    Batch { layer: batch.layer, experts }
}
