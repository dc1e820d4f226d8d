//! The atomic that the slot protocol rests on, from `std` or, under `--cfg loom`, from the model checker.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, Ordering};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU32, Ordering};
