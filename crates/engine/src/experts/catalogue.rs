//! The catalogue of experts: the byte ranges of each one's gate, up and down slices, from the headers alone, whether the model is a plain
//! GGUF file or a packed one. Whoever reads experts asks here, and nobody else needs to know the kind of file.

use super::{Layouts, MoeLayer, PROJECTIONS, ProjectionShape};
use crate::weights::check_tensor;
use crate::{Error, packed};
use moce_flash::Slice;
use moce_gguf::Gguf;
use moce_kernels::{Isa, Layout};

/// The MoE layers of a model, in order.
pub(crate) struct ExpertCatalogue<'g> {
    gguf: &'g Gguf,
    layers: Vec<LayerCatalogue>,
    tensors: Vec<String>,
}

/// The experts of one layer.
#[derive(Clone, Debug)]
pub struct LayerCatalogue {
    /// Which transformer block.
    pub block: usize,
    /// N: experts.
    pub count: usize,
    /// Gate, up and down.
    pub projections: [ProjectionShape; PROJECTIONS],
}

/// A layer as an architecture describes it: `count` networks from `hidden` to `width` and back.
struct Wanted {
    block: usize,
    count: usize,
    hidden: usize,
    width: usize,
}

impl<'g> ExpertCatalogue<'g> {
    pub(crate) fn new(gguf: &'g Gguf) -> ExpertCatalogue<'g> {
        ExpertCatalogue { gguf, layers: Vec::new(), tensors: Vec::new() }
    }

    /// Declares the experts of layer `layer`: `count` networks from `hidden` to `feed_forward` and back.
    pub(crate) fn declare(
        &mut self,
        layer: usize,
        count: usize,
        hidden: usize,
        feed_forward: usize,
    ) -> Result<MoeLayer, Error> {
        let wanted = Wanted { block: layer, count, hidden, width: feed_forward };
        let projections = match packed::Header::read(self.gguf)? {
            Some(header) => self.packed(&wanted, &header)?,
            None => self.stacked(&wanted)?,
        };
        self.layers.push(LayerCatalogue { block: layer, count, projections });
        Ok(MoeLayer(self.layers.len() - 1))
    }

    /// Plain GGUF: a projection of all experts of a layer is one tensor; gate and up may share one.
    fn stacked(&mut self, wanted: &Wanted) -> Result<[ProjectionShape; PROJECTIONS], Error> {
        let &Wanted { block, count, hidden, width } = wanted;
        let name = |projection: &str| format!("blk.{block}.ffn_{projection}_exps.weight");
        // `parts` matrices of `rows` rows stand behind each other in each expert of the tensor; this is the `part`-th.
        let mut project = |tensor: String, rows: usize, columns: usize, part: usize, parts: usize| {
            let found = self.gguf.tensor(&tensor)?;
            let format = check_tensor(self.gguf, found, &[columns, parts * rows, count])?;
            // The shape holds, so the tensor is a whole number of equal matrices.
            let stride = (found.bytes() / count) as u64;
            let bytes = found.bytes() / count / parts;
            let offset = found.offset() + (part * bytes) as u64;
            if part == 0 {
                self.tensors.push(tensor);
            }
            let layout = Layout::Plain;
            Ok::<_, Error>(ProjectionShape { format, rows, columns, layout, bytes, part: found.part(), offset, stride })
        };
        let fused = name("gate_up");
        let (gate, up) = match self.gguf.find_tensor(&fused) {
            Some(_) => (project(fused.clone(), width, hidden, 0, 2)?, project(fused, width, hidden, 1, 2)?),
            None => (project(name("gate"), width, hidden, 0, 1)?, project(name("up"), width, hidden, 0, 1)?),
        };
        Ok([gate, up, project(name("down"), hidden, width, 0, 1)?])
    }

    /// A packed file: each expert of a layer is one piece.
    fn packed(&mut self, wanted: &Wanted, header: &packed::Header) -> Result<[ProjectionShape; PROJECTIONS], Error> {
        let layer = header.layers.iter().find(|layer| layer.block as usize == wanted.block);
        let layer = layer.ok_or_else(|| Error::shape(self.gguf, format!("layer {} has no experts", wanted.block)))?;
        let found = [layer.count, layer.hidden, layer.width].map(|number| number as usize);
        let expected = [wanted.count, wanted.hidden, wanted.width];
        if found != expected {
            let what =
                format!("experts, hidden and width of layer {} are {found:?}, expected {expected:?}", wanted.block);
            return Err(Error::shape(self.gguf, what));
        }
        let (tensor, offsets, stride) = header.body(self.gguf, layer)?;
        let (bytes, shapes) = (layer.bytes().expect("`body` has looked"), layer.shapes());
        self.tensors.push(layer.tensor());
        Ok(std::array::from_fn(|index| ProjectionShape {
            format: layer.formats[index],
            rows: shapes[index].0,
            columns: shapes[index].1,
            layout: layer.layouts[index],
            bytes: bytes[index],
            part: tensor.part(),
            offset: offsets[index],
            stride,
        }))
    }

    /// The layers, in order.
    pub(crate) fn layers(&self) -> &[LayerCatalogue] {
        &self.layers
    }

    /// The layers, and the names of the tensors that hold their experts.
    pub(crate) fn into_parts(self) -> (Vec<LayerCatalogue>, Vec<String>) {
        (self.layers, self.tensors)
    }

    /// Whether experts stand in the kernel order of another instruction set, and have to be re-ordered before they are computed with.
    pub(crate) fn is_foreign(&self, isa: Isa) -> bool {
        let mut projections = self.layers.iter().flat_map(|layer| &layer.projections);
        projections.any(|shape| shape.layout != Layout::Plain && shape.layout != isa.layout(shape.format))
    }
}

impl LayerCatalogue {
    /// Bytes of one expert.
    pub fn expert_bytes(&self) -> u64 {
        self.projections.iter().map(|projection| projection.bytes as u64).sum()
    }

    /// Bytes of a slot that takes any of these experts.
    pub(crate) fn slot_bytes(&self, block_bytes: usize) -> usize {
        moce_flash::slot_bytes(&self.projections.map(|projection| projection.bytes), block_bytes)
    }

    /// How the projections stand when they have been read.
    pub(crate) fn layouts(&self) -> Layouts {
        self.projections.map(|projection| projection.layout)
    }

    /// Where the slices of an expert lie, in the order in which they are used.
    pub fn slices(&self, expert: u32) -> [Slice; PROJECTIONS] {
        self.projections.map(|projection| Slice {
            file: projection.part,
            offset: projection.offset + u64::from(expert) * projection.stride,
            bytes: projection.bytes,
        })
    }
}
