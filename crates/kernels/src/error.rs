//! What can go wrong when the kernels are chosen or called.

use crate::{Isa, KvShape};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `MOCE_ISA` or a caller named an instruction set that does not exist here.
    #[error("unknown instruction set '{given}' (known on this processor family: {known})")]
    UnknownIsa {
        /// What was given.
        given: String,
        /// What could have been given.
        known: String,
    },
    /// The instruction set exists, but this CPU lacks it.
    #[error("this CPU has no {0} (it has: {1})")]
    IsaAbsent(Isa, String),
    /// The system refused a compute thread.
    #[error("cannot start a compute thread: {0}")]
    Thread(#[source] std::io::Error),
    /// A thread cannot be bound to a processor.
    #[error("cannot bind a compute thread to processor {processor}: {reason}")]
    Affinity {
        /// The processor asked for.
        processor: usize,
        /// What the system says.
        reason: String,
    },
    /// Fewer processors were listed than there are threads.
    #[error("affinity lists {processors} processors for {threads} compute threads")]
    AffinityTooShort {
        /// Compute threads.
        threads: usize,
        /// Processors listed.
        processors: usize,
    },
    /// The shape of a matrix does not fit its bytes or its format.
    #[error(
        "a {format} matrix of {rows} x {columns} in {found} bytes (expected {})",
        expected.map_or("a whole number of quant blocks a row".to_owned(), |bytes| bytes.to_string())
    )]
    MatrixBytes {
        /// GGUF's name of the format.
        format: &'static str,
        /// Rows given.
        rows: usize,
        /// Columns given.
        columns: usize,
        /// Bytes of such a matrix; `None` if there is no such matrix.
        expected: Option<usize>,
        /// Bytes given.
        found: usize,
    },
    /// A parameter of the rotary embedding is out of its range.
    #[error("rotary embedding: {what} {found}, expected {expected}")]
    Rope {
        /// The parameter.
        what: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A KV cache cannot have this shape.
    #[error(
        "a {} KV cache of {} positions, {} heads, key and value dimensions {} and {}: {reason}",
        shape.kv_type, shape.context, shape.kv_heads, shape.key_dim, shape.value_dim
    )]
    KvShape {
        /// What was asked for.
        shape: KvShape,
        /// Why not.
        reason: &'static str,
    },
    /// The system refused the memory of a KV cache.
    #[error("cannot allocate {bytes} bytes for the KV cache: {source}")]
    KvMemory {
        /// What was asked for.
        bytes: usize,
        /// What the system says.
        source: std::io::Error,
    },
    /// An activation became infinite or not a number.
    #[error("non-finite activation")]
    NonFinite,
}
