//! Which experts run, and which are cached: routing policies, logical caches and their evictions (METHOD.md).
//!
//! Pure decisions: no clock, no thread, no file, no allocation per token. The same scores and state give the same choice
//! everywhere, so that a lossy run can be repeated bit by bit.
//!
//! ```text
//! router scores -> ranking -> policy (looks at the logical cache) -> Selection -> touch -> eviction
//! ```
//!
//! One [`SessionRouting`] per session; the engine calls [`SessionRouting::route`] once per token and MoE layer. Routing
//! weights are the engine's: they always come from the original scores.
//!
//! Reading order: `options`, `scores`, `session`, `layer`, `ranking`, `policies`, `evictions`, `selection`, `figures`, `belady`, `global`, `state`,
//! `trace`.

#![forbid(unsafe_code)]

mod belady;
mod bits;
mod error;
mod evictions;
mod figures;
mod global;
mod layer;
mod options;
mod order;
mod policies;
mod ranking;
mod scores;
mod selection;
mod session;
mod softmax;
mod spec;
mod splitmix;
mod start;
mod state;
mod trace;

pub use belady::belady;
pub use error::Error;
pub use evictions::EvictionSpec;
pub use figures::{Counts, Lifetimes, effective_experts};
pub use global::{Batch, GlobalLru, GlobalShape, Lookups, global_belady};
pub use options::{LayerShape, Phase, RoutingOptions, TouchOrder};
pub use policies::{CachePrior, Cumulative, DropCold, Except, Lambda, MaxRank, Policy, Prune, Swap, default_protected};
pub use scores::RouterScores;
pub use selection::Selection;
pub use session::SessionRouting;
pub use start::Start;
pub use state::{EvictionState, LayerState};
pub use trace::{
    Precision, ScoreKind, ScoreReplay, SelectionReplay, StoredScores, TextStart, TraceError, TraceHeader, TraceLayer,
    TraceModel, TraceReader, TraceToken, TraceWriter,
};
