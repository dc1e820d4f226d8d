//! Routed experts: where each lies in the file (`catalogue`), and the slots that hold some or all of them (`store`).

mod catalogue;
mod layer;
mod map;
mod pinned;
mod staging;
mod store;

pub(crate) use catalogue::ExpertCatalogue;
pub use catalogue::LayerCatalogue;
pub use map::ExpertMap;
pub(crate) use pinned::PinnedExpert;
pub(crate) use store::{ExpertStore, Group, StoreOptions};

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
pub struct ProjectionShape {
    /// How a weight is stored.
    pub format: Format,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// How the rows stand in the file.
    pub layout: Layout,
    /// Bytes of one expert's matrix.
    pub bytes: usize,
    /// Part of the model file that holds it.
    pub part: usize,
    /// Where expert 0's matrix starts in it.
    pub offset: u64,
    /// Bytes from one expert's matrix to the next one's.
    pub stride: u64,
}

/// How the projections of an expert stand in its slot: as in the file, or in this CPU's kernel order.
type Layouts = [Layout; PROJECTIONS];
