//! Routed experts: where each one lies in the file, and the slots that hold them.
//!
//! The catalogue gives the byte ranges of an expert's gate, up and down projection (they are contiguous slices of the stacked
//! tensors); a slot holds the three, one behind the other, in kernel order. Every expert has a slot of its own here: all
//! of them are read when the model is loaded.

use crate::Error;
use crate::weights::check_tensor;
use moce_flash::Memory;
use moce_gguf::{Gguf, Tensor};
use moce_kernels::{Cpu, Layout, Matrix};
use moce_quant::Format;

/// Each projection starts on a cache line of its slot.
const ALIGNMENT: usize = 64;

/// The MoE layers of a model, in order.
pub(crate) struct ExpertCatalogue<'g> {
    gguf: &'g Gguf,
    layers: Vec<LayerCatalogue<'g>>,
}

struct LayerCatalogue<'g> {
    count: usize,
    projections: [Projection<'g>; 3],
    slot_bytes: usize,
}

/// One of gate, up, down: a stacked tensor with one matrix an expert.
struct Projection<'g> {
    tensor: &'g Tensor,
    format: Format,
    rows: usize,
    columns: usize,
    /// Bytes of one expert's matrix; expert e lies at e times this in the tensor.
    bytes: usize,
    /// Where the matrix starts in a slot.
    slot_offset: usize,
}

/// The number of an MoE layer among the MoE layers of the model (dense layers do not count).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MoeLayer(pub(crate) usize);

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
        let mut slot_bytes = 0usize;
        let mut project = |name: &str, rows: usize, columns: usize| {
            let tensor = self.gguf.tensor(&format!("blk.{layer}.{name}.weight"))?;
            let format = check_tensor(self.gguf, tensor, &[columns, rows, count])?;
            // The shape holds, so the tensor is a whole number of equal matrices.
            let bytes = tensor.bytes() / count;
            let slot_offset = slot_bytes;
            slot_bytes += bytes.next_multiple_of(ALIGNMENT);
            Ok::<_, Error>(Projection { tensor, format, rows, columns, bytes, slot_offset })
        };
        let projections = [
            project("ffn_gate_exps", feed_forward, hidden)?,
            project("ffn_up_exps", feed_forward, hidden)?,
            project("ffn_down_exps", hidden, feed_forward)?,
        ];
        self.layers.push(LayerCatalogue { count, projections, slot_bytes });
        Ok(MoeLayer(self.layers.len() - 1))
    }

    /// Bytes of memory that all experts need.
    pub(crate) fn bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.count * layer.slot_bytes).sum()
    }

    /// Reserves a slot for every expert and reads them all.
    pub(crate) fn load(self, cpu: &Cpu) -> Result<ExpertStore, Error> {
        let bytes = self.bytes();
        let mut memory = Memory::reserve(bytes).map_err(|cause| Error::Memory { bytes: bytes as u64, cause })?;
        let mut layers = Vec::with_capacity(self.layers.len());
        let mut start = 0;
        for layer in &self.layers {
            let mut slots = LayerSlots::new(layer, start);
            for expert in 0..layer.count {
                for (projection, slot) in layer.projections.iter().zip(&mut slots.projections) {
                    let at = start + expert * layer.slot_bytes + projection.slot_offset;
                    let destination = &mut memory[at..at + projection.bytes];
                    let offset = projection.tensor.offset() + (expert * projection.bytes) as u64;
                    self.gguf.read_at(projection.tensor.part(), offset, destination)?;
                    slot.layout = cpu.order(projection.format, projection.rows, projection.columns, destination);
                }
            }
            start += layer.count * layer.slot_bytes;
            layers.push(slots);
        }
        Ok(ExpertStore { memory, layers })
    }
}

/// The experts of a loaded model.
#[derive(Debug)]
pub(crate) struct ExpertStore {
    memory: Memory,
    layers: Vec<LayerSlots>,
}

#[derive(Debug)]
struct LayerSlots {
    count: usize,
    start: usize,
    slot_bytes: usize,
    projections: [SlotProjection; 3],
}

#[derive(Clone, Copy, Debug)]
struct SlotProjection {
    format: Format,
    rows: usize,
    columns: usize,
    layout: Layout,
    offset: usize,
    bytes: usize,
}

impl LayerSlots {
    fn new(layer: &LayerCatalogue<'_>, start: usize) -> LayerSlots {
        let projections = layer.projections.each_ref().map(|p| SlotProjection {
            format: p.format,
            rows: p.rows,
            columns: p.columns,
            layout: Layout::Plain,
            offset: p.slot_offset,
            bytes: p.bytes,
        });
        LayerSlots { count: layer.count, start, slot_bytes: layer.slot_bytes, projections }
    }
}

/// One expert, ready to compute with.
#[derive(Clone, Copy)]
pub(crate) struct Expert<'a> {
    /// `[feed_forward, hidden]`
    pub(crate) gate: Matrix<'a>,
    /// `[feed_forward, hidden]`
    pub(crate) up: Matrix<'a>,
    /// `[hidden, feed_forward]`
    pub(crate) down: Matrix<'a>,
}

impl ExpertStore {
    /// Experts of each MoE layer.
    pub(crate) fn counts(&self) -> impl Iterator<Item = usize> + '_ {
        self.layers.iter().map(|layer| layer.count)
    }

    /// An expert of a layer.
    pub(crate) fn expert(&self, layer: MoeLayer, expert: usize) -> Expert<'_> {
        let slots = &self.layers[layer.0];
        let slot = &self.memory[slots.start + expert * slots.slot_bytes..][..slots.slot_bytes];
        let [gate, up, down] = slots.projections.map(|p| Matrix {
            format: p.format,
            rows: p.rows,
            columns: p.columns,
            layout: p.layout,
            bytes: &slot[p.offset..p.offset + p.bytes],
        });
        Expert { gate, up, down }
    }
}
