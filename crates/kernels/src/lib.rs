//! Everything that is computed on activations: matrix products, norms, rotary embedding, attention, softmax.
//!
//! Each result has one order of operations (docs: `NUMBERS.md` rules), so every instruction set, batch size, thread count and
//! weight layout gives the same bits. [`Cpu`] is the kernel table chosen once at start together with the worker pool; engine
//! code calls its methods and never sees an intrinsic.
//!
//! Reading order: [`Isa`] (what this processor has), [`Cpu`], [`Pool`], then one file per operation, then `arch/`, where the
//! same file names stand in a folder per instruction set.
//!
//! `unsafe` zone 2 (SAFETY.md): loads through pointers, and calls into functions compiled for a proven CPU feature.

mod activations;
mod affinity;
mod arch;
mod ceiling;
mod cpu;
mod error;
mod isa;
mod matrix;
mod order;
mod pool;
mod product;
mod topology;

pub use activations::Activations;
pub use ceiling::ReadLoop;
pub use cpu::{Cpu, CpuOptions};
pub use error::Error;
pub use isa::Isa;
pub use matrix::{Layout, Matrix};
pub use order::restore;
pub use pool::{Pool, split};
pub use product::{Product, Rows};
