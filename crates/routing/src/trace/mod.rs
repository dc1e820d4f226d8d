//! Traces: what routers said and what was chosen, token by token, as bytes (docs/formats/trace.md has the byte table).
//!
//! ```text
//! header | token | token | ... | end
//! ```
//!
//! [`TraceWriter`] and [`TraceReader`] stream over any writer and reader, token by token; [`ScoreReplay`] keeps the scores of a
//! trace to feed them to another model, [`SelectionReplay`] its selections to force them on the same one. A trace may be wrong or malicious: every number is checked before it is used, and
//! nothing is allocated that the bytes read so far do not justify. Files are the caller's.

mod error;
mod header;
mod reader;
mod replay;
mod selections;
mod stream;
mod token;
mod writer;

pub use error::TraceError;
pub use header::{Precision, ScoreKind, StoredScores, TraceHeader, TraceLayer, TraceModel};
pub use reader::TraceReader;
pub use replay::ScoreReplay;
pub use selections::SelectionReplay;
pub use token::{TextStart, TraceToken};
pub use writer::TraceWriter;

/// The first bytes of a trace.
const MAGIC: &[u8; 8] = b"moce-trc";
/// The version written, and the only one read.
const VERSION: u32 = 1;
/// Stands in for a token's flags behind the last token.
const END: u32 = u32::MAX;
/// Stands in for an unknown token id.
const NO_TOKEN: u32 = u32::MAX;
/// Fills up a selection of fewer than K experts.
const NO_EXPERT: u16 = u16::MAX;
/// A token's flags.
const GENERATED: u32 = 1;
const STARTS_SEQUENCE: u32 = 2;
const STARTS_WINDOW: u32 = 4;
