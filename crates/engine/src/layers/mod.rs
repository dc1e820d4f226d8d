//! The parts that architectures are made of. Each declares its tensors in `load` and does its step in `forward`.

mod attention;
mod embedding;
mod feed_forward;
mod head;
mod mixture_of_experts;
mod prefetch;

pub(crate) use attention::SelfAttention;
pub(crate) use embedding::Embedding;
pub(crate) use feed_forward::FeedForward;
pub(crate) use head::{Head, LogitsWanted};
pub(crate) use mixture_of_experts::{MixtureOfExperts, is_wide};
pub use prefetch::Prefetch;
pub(crate) use prefetch::PrefetchScratch;

use moce_kernels::{Activations, Matrix, Product, Rows};

/// Every vector of a batch times a matrix.
fn times<'a>(weights: Matrix<'a>, input: &'a Activations, output: &'a mut [f32]) -> Product<'a> {
    Product { weights, input, input_rows: Rows::All, output }
}
