//! The KV cache of one session: keys and values of every layer, head and position, in memory allocated once.
//!
//! The layout is made for attention. A layer is its heads one after the other. Within a head, keys lie in groups of 16 positions,
//! `[dimension][16]`: one vector holds one dimension of 16 keys, so scores need no horizontal sums. Values are rows,
//! `[position][dimension]`, padded to 16. Q8_0 keeps scales apart from codes, one for 32 dimensions of a position.
//!
//! Values are rounded when they are stored. Positions may be stored again in any order: going back is overwriting.

mod element;
mod head;
mod shape;
mod store;

use crate::Error;
pub(crate) use element::{Element, F16, F32, Q8};
pub(crate) use head::{KeyGroup, KvHead};
use moce_flash::Memory;
pub use shape::KvShape;
use shape::Regions;
use std::fmt;
use std::ops::Range;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[allow(non_camel_case_types)] // the names of the formats
pub enum KvType {
    /// IEEE single: not rounded.
    F32,
    /// IEEE half.
    #[default]
    F16,
    /// Signed bytes with an IEEE half as scale for every 32.
    Q8_0,
}

/// Keys and values of one session, all layers alike.
#[derive(Debug)]
pub struct KvCache {
    shape: KvShape,
    regions: Regions,
    layers: usize,
    memory: Memory,
}

impl KvType {
    /// Its name in lower case, as options give it.
    pub const fn name(self) -> &'static str {
        match self {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
            KvType::Q8_0 => "q8_0",
        }
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl KvCache {
    /// Allocates and touches [`KvShape::bytes`] of memory.
    ///
    /// # Errors
    /// As for [`KvShape::bytes`], or the system refuses the memory.
    pub fn new(shape: KvShape, layers: usize) -> Result<KvCache, Error> {
        let bytes = shape.bytes(layers)?;
        let mut memory = Memory::reserve(bytes).map_err(|source| Error::KvMemory { bytes, source })?;
        memory.fill(0);
        Ok(KvCache { shape, regions: shape.regions()?, layers, memory })
    }

    /// What one layer keeps.
    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Layers.
    pub fn layers(&self) -> usize {
        self.layers
    }

    fn layer_range(&self, layer: usize) -> Range<usize> {
        assert!(layer < self.layers, "layer {layer} of {}", self.layers);
        let layer_bytes = self.shape.kv_heads * self.regions.head_bytes();
        layer * layer_bytes..(layer + 1) * layer_bytes
    }
}

#[cfg(test)]
mod tests;
