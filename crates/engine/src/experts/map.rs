//! Where the experts of a model lie, for tools that read them without running the model.

use super::LayerCatalogue;
use crate::load::Loader;
use crate::{Error, ModelIdentity, architectures};
use moce_gguf::Gguf;

/// The experts of a model, from its headers alone.
#[derive(Clone, Debug)]
pub struct ExpertMap {
    /// GGUF's name of the network.
    pub architecture: String,
    /// Which model it is.
    pub identity: ModelIdentity,
    /// The layers that have experts, in order.
    pub layers: Vec<LayerCatalogue>,
    /// The tensors that hold them.
    pub tensors: Vec<String>,
}

impl ExpertMap {
    /// The map of a model, packed or not; without layers if it is dense.
    ///
    /// # Errors
    /// The model is of an architecture that moce does not run, or its tensors have not the shapes that it needs.
    pub fn of(gguf: &Gguf) -> Result<ExpertMap, Error> {
        let mut loader = Loader::new(gguf);
        let architecture = architectures::load(&mut loader)?;
        let (layers, tensors) = loader.experts.into_parts();
        let architecture = architecture.hyperparameters().architecture.clone();
        Ok(ExpertMap { identity: ModelIdentity::of(gguf, &architecture)?, architecture, layers, tensors })
    }
}
