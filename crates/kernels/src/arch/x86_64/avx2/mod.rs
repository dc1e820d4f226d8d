//! AVX2 with FMA and F16C ([`crate::Isa::Avx2`]).

pub(crate) mod activations;
pub(crate) mod ceiling;
pub(crate) mod lanes;
pub(crate) mod product;
pub(crate) mod product_float;
pub(crate) mod product_plain;
