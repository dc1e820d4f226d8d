//! An expert in use: it stays where it is, and its matrices can be computed with.

use super::{LayerCatalogue, Layouts, Projection};
use moce_flash::Pin;
use moce_kernels::Matrix;

/// An expert that stays where it is.
pub(crate) struct PinnedExpert<'a> {
    pub(super) pin: Pin<'a>,
    pub(super) layouts: Layouts,
    pub(super) catalogue: &'a LayerCatalogue,
}

impl PinnedExpert<'_> {
    /// One of its matrices, which has landed: gate and up `[feed_forward, hidden]`, down `[hidden, feed_forward]`.
    pub(crate) fn matrix(&self, projection: Projection) -> Matrix<'_> {
        let slice = projection as usize;
        let shape = &self.catalogue.projections[slice];
        let bytes = self.pin.slice(slice).expect("the projection has been waited for");
        Matrix { format: shape.format, rows: shape.rows, columns: shape.columns, layout: self.layouts[slice], bytes }
    }
}
