//! AVX-512 with VNNI ([`crate::Isa::Avx512Vnni`]).

pub(crate) mod activations;
pub(crate) mod ceiling;
pub(crate) mod lanes;
pub(crate) mod product;
pub(crate) mod product_float;
