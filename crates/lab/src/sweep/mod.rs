//! Sweeps: the perplexity and the misses of many routing policies, capacities and evictions on one text.
//!
//! A cell is one of each; it has a name and a result file of its own, so that a sweep can be broken off and resumed, and cut into shards
//! that run on any machines ([`merge`] joins them). The original routing is always among the policies: the others are judged by it.
//!
//! Reading order: `cell` (what there is to run), `store` (result files), `summary` (cells beside the original), `charts`, `report`, `parquet`.

mod cell;
mod charts;
#[cfg(feature = "parquet")]
mod parquet;
mod report;
mod store;
mod summary;

pub use cell::{Shard, SweepCell, SweepGrid};
pub use store::{CellResult, merge};
pub use summary::CellSummary;

use crate::{Error, PerplexityOptions, Study, TimingModel, perplexity_in};
use cell::without_repeats;
use moce_engine::routing::Policy;
use moce_engine::{Engine, Session};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use store::Store;

/// How far a sweep is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SweepProgress<'a> {
    /// The cell that runs.
    pub cell: &'a str,
    /// Its number among those of this shard, from 0.
    pub number: usize,
    /// Cells of this shard.
    pub cells: usize,
    /// Tokens of it that have been scored.
    pub scored: usize,
    /// Tokens of it in all.
    pub tokens: usize,
}

/// What a sweep runs.
#[derive(Clone, Debug)]
pub struct SweepOptions {
    /// The cells.
    pub grid: SweepGrid,
    /// Which of them.
    pub shard: Shard,
    /// How the text is scored.
    pub perplexity: PerplexityOptions,
    /// What the speeds of the report rest on; without it there are none.
    pub timing: Option<TimingModel>,
}

/// Runs the cells that `folder` does not hold yet, then writes results, plots and the report of all that it holds.
///
/// # Errors
/// The model has no experts, a cell does not fit it, the folder is another program's or holds another study, or other capacities under the same
/// names; a file cannot be written, a cell fails, or `progress` ends the work; what was finished is kept.
pub fn sweep(
    engine: &Arc<Engine>,
    text: &str,
    options: &SweepOptions,
    folder: &Path,
    progress: &mut dyn FnMut(SweepProgress<'_>) -> ControlFlow<()>,
) -> Result<Vec<CellSummary>, Error> {
    if engine.plan().experts.is_empty() {
        return Err(Error::NoExperts);
    }
    let mut cells = options.grid.cells(engine.plan())?;
    // All of them before hours of work, not each when its turn comes; those of other shards, too.
    for cell in &mut cells {
        cell.routing = engine.resolve_routing(&cell.routing, &cell.capacities)?;
    }
    let cells = without_repeats(cells)?;
    let store = Store::open(folder, Study::new(engine, text, &options.perplexity, &options.grid.base))?;
    let finished = store.finished(&cells)?;
    let cells = options.shard.cut(cells);
    for (number, cell) in cells.iter().enumerate() {
        if finished.iter().any(|result| result.is_of(cell)) {
            continue;
        }
        let mut session = Session::with_routing(engine, &cell.routing, &cell.capacities)?;
        let is_original = cell.routing.policy == Policy::Original;
        let scoring = PerplexityOptions { kl: options.perplexity.kl && !is_original, ..options.perplexity };
        let report = perplexity_in(&mut session, text, &scoring, &mut |scored, tokens, _| {
            progress(SweepProgress { cell: &cell.name, number, cells: cells.len(), scored, tokens })
        })?;
        store.keep(cell, report)?;
    }
    store.publish(options.timing)
}
