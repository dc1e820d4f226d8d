//! Reading one head of a KV cache as lanes.

use super::element::{Element, PIECE};
use super::{KvCache, KvType};
use crate::lanes::{Chunk, LANES, Lanes};

impl KvCache {
    /// The keys and values of one head; `E` must be the cache's own type.
    pub(crate) fn head<E: Element>(&self, layer: usize, kv_head: usize) -> KvHead<'_, E> {
        assert!(E::TYPE == self.shape.kv_type && kv_head < self.shape.kv_heads, "head {kv_head} as {}", E::TYPE);
        let head_bytes = self.regions.head_bytes();
        let head = &self.memory[self.layer_range(layer)][kv_head * head_bytes..][..head_bytes];
        let [keys, key_scales, values, value_scales] = self.regions.ranges();
        KvHead {
            key_dim: self.shape.key_dim,
            value_dim: self.shape.value_dim,
            keys: chunks(&head[keys]),
            key_scales: chunks(&head[key_scales]),
            values: chunks(&head[values]),
            value_scales: bytemuck::cast_slice(&head[value_scales]),
        }
    }
}

/// The whole chunks of a region, which may end in less than one.
fn chunks<T: bytemuck::Pod>(bytes: &[u8]) -> &[Chunk<T>] {
    bytemuck::cast_slice::<u8, T>(bytes).as_chunks().0
}

/// One head of one layer, to read.
pub(crate) struct KvHead<'a, E: Element> {
    pub(super) key_dim: usize,
    pub(super) value_dim: usize,
    keys: &'a [Chunk<E::Stored>],
    key_scales: &'a [Chunk<u16>],
    values: &'a [Chunk<E::Stored>],
    value_scales: &'a [u16],
}

/// Sixteen keys of one head.
pub(crate) struct KeyGroup<'a, E: Element> {
    keys: &'a [Chunk<E::Stored>],
    scales: &'a [Chunk<u16>],
}

impl<'a, E: Element> KvHead<'a, E> {
    /// The keys of positions `16 · group` to `16 · group + 15`; those never stored, or stored before going back, are garbage.
    #[inline(always)]
    pub(crate) fn key_group(&self, group: usize) -> KeyGroup<'a, E> {
        let scales_each = if E::TYPE == KvType::Q8_0 { self.key_dim / PIECE } else { 0 };
        KeyGroup {
            keys: &self.keys[group * self.key_dim..][..self.key_dim],
            scales: &self.key_scales[group * scales_each..][..scales_each],
        }
    }

    /// Dimensions `16 · chunk` to `16 · chunk + 15` of the value at `position`.
    #[inline(always)]
    pub(crate) fn value<L: Lanes>(&self, l: L, position: usize, chunk: usize) -> L::F {
        let value = E::load(l, &self.values[position * self.value_dim.div_ceil(LANES) + chunk]);
        if E::TYPE == KvType::Q8_0 {
            let scale = self.value_scales[position * (self.value_dim / PIECE) + chunk * LANES / PIECE];
            l.mul(value, l.splat_f16(scale))
        } else {
            value
        }
    }
}

impl<E: Element> KeyGroup<'_, E> {
    /// Dimension `d` of all sixteen.
    #[inline(always)]
    pub(crate) fn dimension<L: Lanes>(&self, l: L, d: usize) -> L::F {
        let key = E::load(l, &self.keys[d]);
        if E::TYPE == KvType::Q8_0 { l.mul(key, l.load_f16(&self.scales[d / PIECE])) } else { key }
    }
}
