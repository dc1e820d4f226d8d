//! What can go wrong when the kernels are chosen or called.

use crate::Isa;

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
    /// An activation became infinite or not a number.
    #[error("non-finite activation")]
    NonFinite,
}
