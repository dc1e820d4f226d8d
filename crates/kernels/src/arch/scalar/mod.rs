//! Plain Rust: the twins that every instruction set is compared with.

pub(crate) mod activations;
pub(crate) mod ceiling;
pub(crate) mod lanes;
pub(crate) mod order;
pub(crate) mod product;
