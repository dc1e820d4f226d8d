//! What can go wrong with a trace. Every message says where, what was expected and what was found.

use std::io;

/// An error of reading, writing or replaying a trace.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The system refused a read.
    #[error("reading the trace at byte {offset}: {cause}")]
    Read {
        /// Where in the trace.
        offset: u64,
        /// The system's error.
        cause: io::Error,
    },
    /// The system refused a write.
    #[error("writing the trace at byte {offset}: {cause}")]
    Write {
        /// Where in the trace.
        offset: u64,
        /// The system's error.
        cause: io::Error,
    },
    /// The bytes are something else.
    #[error("not a trace: it begins with '{}' instead of 'moce-trc'", found.escape_ascii())]
    NotATrace {
        /// The first bytes.
        found: [u8; 8],
    },
    /// A trace of a version that this program does not know.
    #[error("a trace of version {found}; this program reads version {known}")]
    Version {
        /// The version in the trace.
        found: u32,
        /// The version that is known.
        known: u32,
    },
    /// The trace ends before its end.
    #[error("the trace is cut off at byte {offset}, in {what}")]
    Truncated {
        /// Where it ends.
        offset: u64,
        /// In the midst of what.
        what: &'static str,
    },
    /// A field that cannot be.
    #[error("trace, byte {offset}: {what}: expected {expected}, found {found}")]
    Malformed {
        /// Where in the trace.
        offset: u64,
        /// Which field.
        what: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// What is to be written is no trace.
    #[error("cannot write the trace: {what}: expected {expected}, found {found}")]
    Unwritable {
        /// Which part.
        what: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A replay needs scores, and the trace has only selections.
    #[error("the trace holds selections without router scores; a replay needs scores")]
    NoScores,
    /// A replay needs at least one token.
    #[error("the trace holds no tokens")]
    NoTokens,
    /// The model to replay in has another shape.
    #[error(
        "the trace has {trace_experts} experts and {trace_per_token} a token, the model {experts} and {per_token}; both must be equal"
    )]
    Shape {
        /// N of the trace.
        trace_experts: usize,
        /// K of the trace.
        trace_per_token: usize,
        /// N of the model.
        experts: usize,
        /// K of the model.
        per_token: usize,
    },
}
