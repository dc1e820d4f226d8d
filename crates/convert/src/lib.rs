//! Makes model files.
//!
//! ```text
//! model --Pack--> the same with its experts in one piece each, in kernel order, with checksums
//! model --verify--> what is damaged
//! Shape (dimensions of a real model) --Synthetic--> GGUF of full size with random weights
//! ```
//!
//! Everything is written beside its place under a temporary name and renamed when whole, by [`moce_gguf::Writer`]; whoever calls may stop
//! it after each piece. Nothing is left behind then, nor by a full disk.
//!
//! Reading order: [`Shape`], `synthetic/` (tensors, weights, vocabulary), `pack`, `verify`, `pipeline` (made on all cores while the last
//! piece is written), `state` (did the source change meanwhile), `disk` (is there room).

#![forbid(unsafe_code)]

mod disk;
mod error;
mod pack;
mod pipeline;
mod shape;
mod state;
mod synthetic;
mod verify;

pub use disk::{check_space, free_bytes};
pub use error::Error;
pub use pack::Pack;
pub use shape::{Shape, ShapeArchitecture};
pub use synthetic::{Synthetic, write_shape};
pub use verify::{Damage, Verification, verify};

/// Called with the bytes of tensor data written so far; [`ControlFlow::Break`](std::ops::ControlFlow::Break) stops the work.
pub type Progress<'a> = dyn FnMut(u64) -> std::ops::ControlFlow<()> + 'a;
