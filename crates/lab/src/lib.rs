//! Measurements on top of the engine. They run the engine's own code and add only bookkeeping. Each is one function:
//!
//! - [`perplexity()`] of a text under a routing policy, with KL against the original; [`sweep()`] runs it over a grid of policies and
//!   capacities, [`tune()`] looks for the policy with the fewest misses within a stated loss;
//! - [`evaluation::evaluate`] asks questions and counts right answers;
//! - [`record_text`] writes routers' scores and choices as a trace, [`simulate()`] tries caches and policies on it;
//! - [`bench()`] measures speed, [`token_seconds`] predicts what it will find.

#![forbid(unsafe_code)]

mod bench;
mod divergence;
mod error;
pub mod evaluation;
mod files;
mod fingerprint;
mod grid;
mod likelihood;
#[cfg(feature = "parquet")]
mod parquet;
mod partial;
mod perplexity;
mod prediction;
mod simulate;
mod spread;
pub mod statistics;
mod study;
mod sweep;
mod traces;
mod tune;

pub use bench::{BenchOptions, BenchReport, PhaseSpeed, bench};
pub use divergence::{DivergenceReport, KEPT_LOGITS_BYTES};
pub use error::Error;
pub use grid::parse_grid;
pub use perplexity::{LayerReport, PerplexityOptions, PerplexityReport, perplexity, perplexity_in};
pub use prediction::{MachineRates, TRAINED_ROUTING, Verdict, misses_by_chance, token_seconds};
pub use simulate::{
    GlobalOptions, SimulateOptions, SimulatedCell, SimulatedPhase, SimulationReport, TimingModel, simulate,
    simulate_global,
};
pub use spread::Spread;
pub use study::Study;
pub use sweep::{CellResult, CellSummary, Shard, SweepCell, SweepGrid, SweepOptions, SweepProgress, merge, sweep};
#[cfg(feature = "parquet")]
pub use traces::export_parquet;
pub use traces::{TRACE_COLUMNS, TraceInfo, export_csv, import_route_csv, record_text, trace_info};
pub use tune::{Half, LayerPrice, Measured, Profile, Trial, Trials, TuneOptions, TuneStep, tune};
