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
mod attention;
mod ceiling;
mod cpu;
mod error;
mod feed_forward;
mod isa;
mod kv;
mod lanes;
mod log_softmax;
pub mod math;
mod matrix;
mod norm;
mod order;
mod parts;
mod pool;
mod product;
mod residual;
mod rope;
mod softmax;
mod topology;
#[cfg(test)]
mod twin;

pub use activations::Activations;
pub use affinity::Binding;
pub use attention::Attention;
pub use ceiling::ReadLoop;
pub use cpu::{Cpu, CpuOptions};
pub use error::Error;
pub use feed_forward::{ExpertSum, SharedExpert};
pub use isa::Isa;
pub use kv::{KvCache, KvShape, KvType};
pub use matrix::{Layout, Matrix};
pub use order::{order, restore};
pub use pool::{Pool, split};
pub use product::{Product, Rows};
pub use rope::{Rope, RopePairing, RopeParameters, RopeScaling, RopeTable};
