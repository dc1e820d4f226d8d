//! Block formats of GGUF weights: geometry, encode and decode to f32.
//!
//! This crate is the numerical ground truth: plain Rust, no SIMD, no `unsafe`. Kernels compute from the encoded bytes and are
//! tested against what [`decode`] gives. One format is one file.
//!
//! A row of a matrix is a whole number of *quant blocks*; a quant block holds [`Format::block_len`] weights in
//! [`Format::block_bytes`] bytes, little endian.

#![forbid(unsafe_code)]

mod codec;
mod extremes;
mod format;

mod bf16;
mod f16;
mod f32;
mod q4_0;
mod q4_1;
mod q5_0;
mod q8_0;

pub use codec::{decode, encode};
pub use format::Format;
