//! The catalogue of experts: the byte ranges of each one's gate, up and down slices, from the headers alone.

use super::{MoeLayer, PROJECTIONS, ProjectionShape};
use crate::Error;
use crate::weights::check_tensor;
use moce_flash::Slice;
use moce_gguf::Gguf;

/// The MoE layers of a model, in order.
pub(crate) struct ExpertCatalogue<'g> {
    gguf: &'g Gguf,
    layers: Vec<LayerCatalogue>,
}

/// The experts of one layer.
#[derive(Clone, Debug)]
pub(crate) struct LayerCatalogue {
    /// N
    pub(crate) count: usize,
    pub(crate) projections: [ProjectionShape; PROJECTIONS],
}

impl<'g> ExpertCatalogue<'g> {
    pub(crate) fn new(gguf: &'g Gguf) -> ExpertCatalogue<'g> {
        ExpertCatalogue { gguf, layers: Vec::new() }
    }

    /// Declares the experts of layer `layer`: `count` networks from `hidden` to `feed_forward` and back.
    pub(crate) fn declare(
        &mut self,
        layer: usize,
        count: usize,
        hidden: usize,
        feed_forward: usize,
    ) -> Result<MoeLayer, Error> {
        let name = |projection: &str| format!("blk.{layer}.ffn_{projection}_exps.weight");
        // `parts` matrices of `rows` rows stand behind each other in each expert of the tensor; this is the `part`-th.
        let project = |tensor: &str, rows: usize, columns: usize, part: usize, parts: usize| {
            let tensor = self.gguf.tensor(tensor)?;
            let format = check_tensor(self.gguf, tensor, &[columns, parts * rows, count])?;
            // The shape holds, so the tensor is a whole number of equal matrices.
            let stride = (tensor.bytes() / count) as u64;
            let bytes = tensor.bytes() / count / parts;
            let offset = tensor.offset() + (part * bytes) as u64;
            Ok::<_, Error>(ProjectionShape { format, rows, columns, bytes, part: tensor.part(), offset, stride })
        };
        let fused = name("gate_up");
        let (gate, up) = match self.gguf.find_tensor(&fused) {
            Some(_) => (project(&fused, feed_forward, hidden, 0, 2)?, project(&fused, feed_forward, hidden, 1, 2)?),
            None => {
                let project = |projection| project(&name(projection), feed_forward, hidden, 0, 1);
                (project("gate")?, project("up")?)
            }
        };
        let projections = [gate, up, project(&name("down"), hidden, feed_forward, 0, 1)?];
        self.layers.push(LayerCatalogue { count, projections });
        Ok(MoeLayer(self.layers.len() - 1))
    }

    /// The layers, in order.
    pub(crate) fn layers(&self) -> &[LayerCatalogue] {
        &self.layers
    }
}

impl LayerCatalogue {
    /// Bytes of one expert.
    pub(crate) fn expert_bytes(&self) -> u64 {
        self.projections.iter().map(|projection| projection.bytes as u64).sum()
    }

    /// Bytes of a slot that takes any of these experts.
    pub(crate) fn slot_bytes(&self, block_bytes: usize) -> usize {
        moce_flash::slot_bytes(&self.projections.map(|projection| projection.bytes), block_bytes)
    }

    /// Where the slices of an expert lie, in the order in which they are used.
    pub(crate) fn slices(&self, expert: u32) -> [Slice; PROJECTIONS] {
        self.projections.map(|projection| Slice {
            file: projection.part,
            offset: projection.offset + u64::from(expert) * projection.stride,
            bytes: projection.bytes,
        })
    }
}
