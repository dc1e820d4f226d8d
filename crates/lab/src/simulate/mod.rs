//! What caches and policies would do with a recorded trace: hits, misses, bytes, lifetimes and, under a model of time, speed.
//!
//! ```text
//! trace -> blocks of tokens -> every cell (policy, capacity, eviction) at once -> what each counted
//! ```
//!
//! The decisions are those of the engine's own code, `moce-routing`. A trace does not react: a policy that changes a choice would change the
//! hidden state and with it later scores. Miss rates come out within a tenth of a point all the same (docs/RESULTS.md, "Simulated and run");
//! perplexity runs the model instead.
//!
//! Reading order: `block`, `cells`, `bound`, `global`, `timing`, `report`.

mod block;
mod bound;
mod cells;
mod global;
mod report;
mod timing;

pub use report::{SimulatedCell, SimulatedPhase, SimulationReport};
pub use timing::TimingModel;

use crate::Error;
use block::Block;
use bound::Bound;
use cells::{Tally, Unit, was_original};
use global::Batches;
use moce_engine::Capacity;
use moce_engine::routing::{
    EvictionSpec, Phase, Policy, RoutingOptions, ScoreKind, Start, TouchOrder, TraceHeader, TraceReader,
};
use rayon::prelude::*;
use report::CellName;
use std::io::Read;

/// The name of the clairvoyant eviction.
const BELADY: &str = "belady";

/// Caches in each layer, and what is tried on them: every combination.
#[derive(Clone, Debug)]
pub struct SimulateOptions {
    /// The policies.
    pub policies: Vec<Policy>,
    /// Whether prompt tokens are routed by the policy too; else by original routing.
    pub prompts_too: bool,
    /// Experts cached in each layer.
    pub capacities: Vec<Capacity>,
    /// Which cached expert leaves.
    pub evictions: Vec<EvictionSpec>,
    /// In which order a token's experts become most recent.
    pub touch: TouchOrder,
    /// What is cached where a text starts.
    pub start: Start,
    /// Constants of time, if speed is wanted.
    pub timing: Option<TimingModel>,
}

/// One cache by bytes for all layers, LRU and Belady's eviction, on the choices as they were recorded.
#[derive(Clone, Debug)]
pub struct GlobalOptions {
    /// Bytes of experts cached.
    pub capacities: Vec<u64>,
    /// Prompt tokens that are one batch.
    pub prompt_batch: usize,
    /// Constants of time, if speed is wanted.
    pub timing: Option<TimingModel>,
}

/// Simulates caches in each layer, all cells in one pass over the trace. Where original routing is among the policies, Belady's bound on it
/// is there as well.
///
/// # Errors
/// The trace is damaged, an option does not fit its layers, or a policy or eviction needs scores that it does not hold.
pub fn simulate<R: Read + Send>(
    mut reader: TraceReader<R>,
    options: &SimulateOptions,
) -> Result<SimulationReport, Error> {
    let header = reader.header().clone();
    check_scores(&header, options)?;
    let capacities = capacities(&header, &options.capacities)?;
    let cells = list_cells(&header, options, &capacities);
    let parts = (4 * rayon::current_num_threads()).div_ceil(cells.len());
    let mut units = Vec::new();
    for (index, (_, capacity, routing)) in cells.iter().enumerate() {
        units.extend(Unit::split(index, &header, capacity, routing, parts)?);
    }
    let mut bound = if options.policies.contains(&Policy::Original) { Some(Bound::new(&header)?) } else { None };

    let mut tokens = [0; 2];
    let (mut now, mut next) = (Block::new(&header), Block::new(&header));
    now.fill(&mut reader)?;
    while now.len() > 0 {
        (0..now.len()).for_each(|token| tokens[now.phase(token) as usize] += 1);
        let simulate = || units.par_iter_mut().try_for_each(|unit| unit.run(&now));
        let (simulated, read) = rayon::join(simulate, || next.fill(&mut reader));
        simulated?;
        read?;
        bound.as_mut().map_or(Ok(()), |bound| bound.add(&now))?;
        std::mem::swap(&mut now, &mut next);
    }

    let expert_bytes: Vec<u64> = header.layers.iter().map(|layer| layer.expert_bytes).collect();
    let mut tallies = vec![Tally::default(); cells.len()];
    units.iter().for_each(|unit| unit.add_to(&mut tallies[unit.cell], &expert_bytes));
    let mut report = SimulationReport::new(&header, "layer", options.timing);
    report.simulated_selections = units.iter().map(|unit| unit.selections).sum();
    report.busy_seconds = units.iter().map(|unit| unit.busy.as_secs_f64()).sum();
    let timing = options.timing.as_ref();
    let mut cells = cells.into_iter().zip(&tallies).peekable();
    for capacity in &capacities {
        while let Some(((name, ..), tally)) = cells.next_if(|((_, of, _), _)| std::ptr::eq(*of, capacity)) {
            report.cells.push(SimulatedCell::new(name, tally, tokens, timing));
        }
        if let Some(bound) = &bound {
            let tally = bound.tally(&header, capacity, &options.start)?;
            let [routing, routing_prompt] = labels(&header, &Policy::Original, &Policy::Original);
            let name = cell_name(&header, capacity, (&routing, &routing_prompt), BELADY);
            report.cells.push(SimulatedCell::new(name, &tally, tokens, timing));
        }
    }
    Ok(report)
}

/// Simulates one cache by bytes for all layers.
///
/// # Errors
/// The trace is damaged, or does not say how large experts are.
pub fn simulate_global<R: Read>(
    mut reader: TraceReader<R>,
    options: &GlobalOptions,
) -> Result<SimulationReport, Error> {
    let header = reader.header().clone();
    let batches = Batches::read(&mut reader, options.prompt_batch)?;
    let tokens = [batches.tokens(Phase::Prompt), batches.tokens(Phase::Generation)];
    let (lru, belady) = (batches.lru(&options.capacities), batches.belady(&options.capacities));
    let mut report = SimulationReport::new(&header, "global", options.timing);
    report.batches_per_start = Some(batches.per_start());
    for ((&capacity_bytes, lru), belady) in options.capacities.iter().zip(&lru).zip(&belady) {
        for (eviction, tally) in [("lru", lru), (BELADY, belady)] {
            let [routing, routing_prompt] = recorded_labels(&header);
            let name = CellName {
                routing,
                routing_prompt,
                eviction: eviction.to_owned(),
                capacity: Vec::new(),
                capacity_bytes,
                knows_own_choices: was_original(&header),
            };
            report.cells.push(SimulatedCell::new(name, tally, tokens, options.timing.as_ref()));
        }
    }
    Ok(report)
}

/// Refuses what the trace cannot tell.
fn check_scores(header: &TraceHeader, options: &SimulateOptions) -> Result<(), Error> {
    let by_scores = options.evictions.iter().find(|eviction| eviction.needs_scores());
    if let Some(stored) = header.scores {
        return match by_scores.filter(|_| stored.kind == ScoreKind::BiasedSigmoid) {
            Some(eviction) => Err(Error::Simulation(format!(
                "eviction `{eviction}` goes by the router's sigmoids, and the trace holds them with a bias added"
            ))),
            None => Ok(()),
        };
    }
    let policy = options.policies.iter().find(|policy| **policy != Policy::Original);
    if let Some(policy) = policy {
        return Err(Error::NeedsScores { what: format!("routing policy `{policy}`") });
    }
    match by_scores {
        Some(eviction) => Err(Error::NeedsScores { what: format!("eviction `{eviction}`") }),
        None => Ok(()),
    }
}

/// Experts cached in each layer; capacities that come to the same are there once.
fn capacities(header: &TraceHeader, asked: &[Capacity]) -> Result<Vec<Vec<usize>>, Error> {
    let experts = vec![header.experts; header.layers.len()];
    let mut capacities: Vec<Vec<usize>> = Vec::with_capacity(asked.len());
    for capacity in asked {
        let capacity = capacity.resolve(&experts, header.experts_per_token)?;
        if !capacities.contains(&capacity) {
            capacities.push(capacity);
        }
    }
    Ok(capacities)
}

/// Every combination, with what it is called; policies and evictions that are written in several ways are there once.
fn list_cells<'c>(
    header: &TraceHeader,
    options: &SimulateOptions,
    capacities: &'c [Vec<usize>],
) -> Vec<(CellName, &'c Vec<usize>, RoutingOptions)> {
    let mut cells: Vec<(CellName, &Vec<usize>, RoutingOptions)> = Vec::new();
    for capacity in capacities {
        for eviction in &options.evictions {
            for policy in &options.policies {
                let prompt_policy = if options.prompts_too { policy.clone() } else { Policy::Original };
                let [routing, routing_prompt] = labels(header, policy, &prompt_policy);
                let name = cell_name(header, capacity, (&routing, &routing_prompt), &eviction.to_string());
                if cells.iter().any(|(other, ..)| *other == name) {
                    continue;
                }
                let (touch, start) = (options.touch, options.start.clone());
                let routing =
                    RoutingOptions { policy: policy.clone(), prompt_policy, eviction: *eviction, touch, start };
                cells.push((name, capacity, routing));
            }
        }
    }
    cells
}

fn cell_name(header: &TraceHeader, capacity: &[usize], routing: (&str, &str), eviction: &str) -> CellName {
    let bytes = header.layers.iter().zip(capacity).map(|(layer, &capacity)| layer.expert_bytes * capacity as u64);
    CellName {
        routing: routing.0.to_owned(),
        routing_prompt: routing.1.to_owned(),
        eviction: eviction.to_owned(),
        capacity: capacity.to_vec(),
        capacity_bytes: bytes.sum(),
        knows_own_choices: header.scores.is_some() || was_original(header),
    }
}

/// What the policies of generated and of prompt tokens are called. Without scores, original routing means the choices as they were
/// recorded.
fn labels(header: &TraceHeader, policy: &Policy, prompt_policy: &Policy) -> [String; 2] {
    if header.scores.is_none() {
        return recorded_labels(header);
    }
    let name = |policy: &Policy| {
        policy.resolved(header.experts, header.experts_per_token).unwrap_or_else(|_| policy.clone()).to_string()
    };
    [name(policy), name(prompt_policy)]
}

/// What the recorded choices are called: original only if they are the model's own.
fn recorded_labels(header: &TraceHeader) -> [String; 2] {
    let name = |policy: &String| match was_original(header) {
        true => policy.clone(),
        false => format!("as recorded: {policy}"),
    };
    [name(&header.policy), name(&header.prompt_policy)]
}
