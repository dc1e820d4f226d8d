//! What a simulation says of each cell.

use super::cells::{PhaseTally, Tally};
use super::timing::TimingModel;
use moce_engine::routing::TraceHeader;
use serde::Serialize;

/// A simulation's outcome.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SimulationReport {
    /// The model that the trace was recorded with.
    pub model: String,
    /// MoE layers.
    pub layers: usize,
    /// N
    pub experts: usize,
    /// K
    pub experts_per_token: usize,
    /// The policy that the trace was recorded under.
    pub recorded_routing: String,
    /// That of prompt tokens.
    pub recorded_routing_prompt: String,
    /// `layer`: a cache in each layer; `global`: one by bytes.
    pub scope: &'static str,
    /// The constants of time, where they were given.
    pub timing: Option<TimingModel>,
    /// With a global cache: how often a layer asks it from one start to the next, on average. For people, and no part of the document.
    #[serde(skip)]
    pub batches_per_start: Option<f64>,
    /// Selections that were simulated, all cells together.
    pub simulated_selections: u64,
    /// Time of that, all cores together; reading the trace is not in it.
    pub busy_seconds: f64,
    /// Cell by cell: capacities, in each of them evictions, in each of them policies; after the evictions Belady's bound.
    pub cells: Vec<SimulatedCell>,
}

/// One policy with one capacity and one eviction.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SimulatedCell {
    /// The policy, with all parameters.
    pub routing: String,
    /// That of prompt tokens.
    pub routing_prompt: String,
    /// The eviction; `belady` for the bound.
    pub eviction: String,
    /// Experts cached, by MoE layer; empty with a global cache.
    pub capacity: Vec<usize>,
    /// Bytes of experts cached.
    pub capacity_bytes: u64,
    /// Prompt tokens.
    pub prompt: SimulatedPhase,
    /// Generated tokens.
    pub generation: SimulatedPhase,
    /// Both.
    pub total: SimulatedPhase,
    /// Mean number of tokens that an expert stays cached, where it is known.
    pub lifetime_mean: Option<f64>,
    /// Standard deviation of that.
    pub lifetime_std: Option<f64>,
    /// Stays that had not ended.
    pub lifetimes_still_cached: Option<u64>,
    /// The model's own choices that did not run; unknown where the recorded choices of another
    /// policy are simulated as they are.
    pub changed_selections: Option<u64>,
    /// The same as a share of tokens · layers · K.
    pub changed_share: Option<f64>,
    /// Share of the model's strongest choices that ran; where the policy had scores.
    pub top_j_kept: Option<f64>,
}

/// What happened in one phase.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct SimulatedPhase {
    /// Tokens.
    pub tokens: u64,
    /// Selections; with a global cache lookups, one for each different expert of a batch.
    pub selections: u64,
    /// Selections whose expert was cached.
    pub hits: u64,
    /// Selections whose expert was not.
    pub misses: u64,
    /// hits / selections
    pub hit_rate: f64,
    /// misses / (tokens · layers · K); with a global cache misses / lookups.
    pub miss_rate: f64,
    /// misses / tokens
    pub misses_per_token: f64,
    /// Bytes of the missed experts, a token, whatever would be read.
    pub logical_bytes_per_token: f64,
    /// Under the model of time, where one was given and there are tokens.
    pub tokens_per_second: Option<f64>,
}

/// What a cell is.
#[derive(PartialEq, Eq)]
pub(super) struct CellName {
    pub(super) routing: String,
    pub(super) routing_prompt: String,
    pub(super) eviction: String,
    pub(super) capacity: Vec<usize>,
    pub(super) capacity_bytes: u64,
    /// Whether the trace tells the model's own choices.
    pub(super) knows_own_choices: bool,
}

impl SimulatedCell {
    /// `tokens` by phase.
    pub(super) fn new(name: CellName, tally: &Tally, tokens: [u64; 2], timing: Option<&TimingModel>) -> SimulatedCell {
        let [prompt, generation] = tally.phases;
        let total = PhaseTally {
            counts: [prompt.counts, generation.counts].into_iter().sum(),
            bytes: prompt.bytes + generation.bytes,
            waiting: prompt.waiting + generation.waiting,
        };
        let lifetimes = (tally.lifetimes.count > 0).then_some(&tally.lifetimes);
        SimulatedCell {
            routing: name.routing,
            routing_prompt: name.routing_prompt,
            eviction: name.eviction,
            capacity: name.capacity,
            capacity_bytes: name.capacity_bytes,
            prompt: SimulatedPhase::new(&prompt, tokens[0], timing),
            generation: SimulatedPhase::new(&generation, tokens[1], timing),
            total: SimulatedPhase::new(&total, tokens[0] + tokens[1], timing),
            lifetime_mean: lifetimes.map(|lifetimes| lifetimes.mean()),
            lifetime_std: lifetimes.map(|lifetimes| lifetimes.standard_deviation()),
            lifetimes_still_cached: lifetimes.map(|lifetimes| lifetimes.still_cached),
            changed_selections: name.knows_own_choices.then_some(total.counts.changed),
            changed_share: name.knows_own_choices.then(|| total.counts.changed_share()),
            top_j_kept: (total.counts.strongest > 0).then(|| total.counts.top_kept()),
        }
    }
}

impl SimulatedPhase {
    fn new(tally: &PhaseTally, tokens: u64, timing: Option<&TimingModel>) -> SimulatedPhase {
        let PhaseTally { counts, bytes, waiting } = tally;
        let a_token = |number: u64| if tokens == 0 { 0.0 } else { number as f64 / tokens as f64 };
        let logical_bytes_per_token = a_token(*bytes);
        let speed = |timing: &TimingModel| timing.tokens_per_second(logical_bytes_per_token, a_token(*waiting));
        SimulatedPhase {
            tokens,
            selections: counts.selections,
            hits: counts.hits,
            misses: counts.misses,
            hit_rate: counts.hit_rate(),
            miss_rate: counts.miss_rate(),
            misses_per_token: a_token(counts.misses),
            logical_bytes_per_token,
            tokens_per_second: timing.filter(|_| tokens > 0).map(speed),
        }
    }
}

impl SimulationReport {
    /// A report without cells.
    pub(super) fn new(header: &TraceHeader, scope: &'static str, timing: Option<TimingModel>) -> SimulationReport {
        SimulationReport {
            model: header.model.name.clone(),
            layers: header.layers.len(),
            experts: header.experts,
            experts_per_token: header.experts_per_token,
            recorded_routing: header.policy.clone(),
            recorded_routing_prompt: header.prompt_policy.clone(),
            scope,
            timing,
            batches_per_start: None,
            simulated_selections: 0,
            busy_seconds: 0.0,
            cells: Vec::new(),
        }
    }

    /// Selections that a core simulated in a second; 0 if nothing was.
    pub fn selections_per_second(&self) -> f64 {
        if self.busy_seconds > 0.0 { self.simulated_selections as f64 / self.busy_seconds } else { 0.0 }
    }
}
