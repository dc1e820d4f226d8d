//! The registry of architectures: GGUF's name, and the function that reads the model.
//!
//! One architecture is one file here plus one line in [`REGISTRY`]. A file declares its tensors and writes the forward pass down
//! in the paper's order; the parts that architectures share stand in `layers/`.

mod llama;
mod qwen2moe;

use crate::load::Loader;
use crate::step::Step;
use crate::weights::VectorId;
use crate::{Error, Hyperparameters, packed};

/// A network that can be stepped.
pub(crate) trait Architecture: Send + Sync {
    /// The shape, as read from the metadata.
    fn hyperparameters(&self) -> &Hyperparameters;

    /// What the rotary frequencies are divided by, where the model has such a tensor.
    fn frequency_factors(&self) -> Option<VectorId> {
        None
    }

    /// Runs the tokens of `step` through all layers; leaves the residual stream after the last layer in it.
    fn forward(&self, step: &mut Step<'_>) -> Result<(), Error>;
}

/// Declares an architecture's tensors.
type Load = fn(&mut Loader<'_>) -> Result<Box<dyn Architecture>, Error>;

const REGISTRY: &[(&str, Load)] = &[("llama", llama::load), ("qwen2moe", qwen2moe::load)];

/// Declares the tensors of the architecture that the file names.
pub(crate) fn load(loader: &mut Loader<'_>) -> Result<Box<dyn Architecture>, Error> {
    let name = packed::architecture(loader.gguf())?;
    match REGISTRY.iter().find(|(known, _)| *known == name) {
        Some((_, load)) => load(loader),
        None => {
            let known: Vec<&str> = REGISTRY.iter().map(|(name, _)| *name).collect();
            Err(Error::unknown_architecture(loader.gguf(), name, known.join(", ")))
        }
    }
}
