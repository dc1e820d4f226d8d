//! Routed experts: where each lies in the file (`catalogue`), and the slots that hold some or all of them (`store`).

mod catalogue;
mod layer;
mod staging;
mod store;

pub(crate) use catalogue::{ExpertCatalogue, LayerCatalogue};
pub(crate) use store::{ExpertStore, Group, PinnedExpert, StoreOptions};

use moce_kernels::Layout;
use moce_quant::Format;

/// The number of an MoE layer among the MoE layers of the model (dense layers do not count).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MoeLayer(pub(crate) usize);

/// Gate, up and down projection: the slices of an expert, in the order in which they are read and used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Projection {
    Gate,
    Up,
    Down,
}

/// Slices of an expert.
pub(crate) const PROJECTIONS: usize = 3;

/// One projection of the experts of a layer, the same for all of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProjectionShape {
    pub(crate) format: Format,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Bytes of one expert's matrix.
    pub(crate) bytes: usize,
    /// Part of the model file that holds the stacked tensor.
    part: usize,
    /// Where expert 0's matrix starts in it.
    offset: u64,
    /// Bytes from one expert's matrix to the next one's.
    stride: u64,
}

/// How the projections of an expert stand in its slot: plain, as in the file, or in this CPU's kernel order.
type Layouts = [Layout; PROJECTIONS];

/// As read.
const AS_READ: Layouts = [Layout::Plain; PROJECTIONS];
