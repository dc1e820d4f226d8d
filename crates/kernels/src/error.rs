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
    /// An activation became infinite or not a number.
    #[error("non-finite activation")]
    NonFinite,
}
