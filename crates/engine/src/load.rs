//! Loading, in two phases: an architecture declares its tensors against the file's directory, then everything is read.
//!
//! After the first phase every size is known and no tensor data has been touched: the memory plan and `inspect` stop there.

use crate::experts::ExpertCatalogue;
use crate::plan::DenseBytes;
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

    /// Bytes of the declared weights that are always resident. Of an embedding that is not the head's matrix too, a token reads one row.
    pub(crate) fn dense_bytes(&self) -> DenseBytes {
        let bytes = self.weights.bytes() as u64;
        let is_tied = self.gguf.find_tensor("output.weight").is_none();
        let embedding = self.gguf.find_tensor("token_embd.weight").filter(|_| !is_tied);
        DenseBytes { bytes, token_bytes: bytes - embedding.map_or(0, |tensor| tensor.bytes() as u64).min(bytes) }
    }

    /// The file's directory.
    pub(crate) fn gguf(&self) -> &'g Gguf {
        self.gguf
    }
}
