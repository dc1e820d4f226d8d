//! Loading, in two phases: an architecture declares its tensors against the file's directory, then everything is read.
//!
//! After the first phase every size is known and no tensor data has been touched: the memory plan and `inspect` stop there.

use crate::experts::ExpertCatalogue;
use crate::weights::WeightPlan;
use moce_gguf::Gguf;

/// What an architecture declares its tensors to.
pub(crate) struct Loader<'g> {
    gguf: &'g Gguf,
    /// Everything that is always resident.
    pub(crate) weights: WeightPlan<'g>,
    /// Routed experts.
    pub(crate) experts: ExpertCatalogue<'g>,
}

impl<'g> Loader<'g> {
    pub(crate) fn new(gguf: &'g Gguf) -> Loader<'g> {
        Loader { gguf, weights: WeightPlan::new(gguf), experts: ExpertCatalogue::new(gguf) }
    }

    /// The file's directory.
    pub(crate) fn gguf(&self) -> &'g Gguf {
        self.gguf
    }
}
