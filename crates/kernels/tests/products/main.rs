//! Matrix products against their definition, on every instruction set that this CPU has.
//!
//! - `twin`: equal bits with the order of operations of NUMBERS.md, written out here from decoded codes;
//! - `truth`: within the error that 8-bit activations allow of an f64 product of the decoded weights.

#![allow(clippy::unwrap_used, reason = "tests")]

mod random;
mod reference;
mod truth;
mod twin;
