//! Measurements on top of the engine. They run the engine's own code and add only bookkeeping. So far: [`perplexity`].

#![forbid(unsafe_code)]

mod error;
mod perplexity;

pub use error::Error;
pub use perplexity::{LayerReport, PerplexityOptions, PerplexityReport, perplexity};
