//! Memory and devices that experts are read from. So far: [`Memory`], the aligned, huge-page region that weights live in.
//!
//! `unsafe` zone 1 (SAFETY.md).

mod memory;

pub use memory::Memory;
