//! The KV cache of one session: keys and values of every layer, head and position, in memory allocated once.
//!
//! The layout is made for attention. A layer is its heads one after the other. Within a head, keys lie in groups of 16 positions,
//! `[dimension][16]`: one vector holds one dimension of 16 keys, so scores need no horizontal sums. Values are rows,
//! `[position][dimension]`, padded to 16. Q8_0 keeps scales apart from codes, one for 32 dimensions of a position.
//!
//! Values are rounded when they are stored. Positions may be stored again in any order: going back is overwriting.

mod element;

use crate::lanes::{Chunk, LANES, Lanes, Operation};
use crate::parts::Parts;
use crate::{Cpu, Error, split};
use element::PIECE;
pub(crate) use element::{Element, F16, F32, Q8};
use moce_flash::Memory;
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

/// What one layer keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// How it is stored.
    pub kv_type: KvType,
    /// Positions.
    pub context: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Values of one key; a multiple of 32 for Q8_0.
    pub key_dim: usize,
    /// Values of one value; a multiple of 32 for Q8_0.
    pub value_dim: usize,
}

/// Keys and values of one session, all layers alike.
#[derive(Debug)]
pub struct KvCache {
    shape: KvShape,
    regions: Regions,
    layers: usize,
    memory: Memory,
}

/// Where the regions of one head end, in bytes from its start: keys, their scales, values, their scales.
#[derive(Clone, Copy, Debug)]
struct Regions {
    ends: [usize; 4],
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

impl KvShape {
    /// Bytes of `layers` layers.
    ///
    /// # Errors
    /// A dimension is 0 or does not fit the type, or the sum is over the address space.
    pub fn bytes(&self, layers: usize) -> Result<usize, Error> {
        let layer = self.regions()?.head_bytes().checked_mul(self.kv_heads);
        let bytes = layer.and_then(|layer| layer.checked_mul(layers)).filter(|&bytes| isize::try_from(bytes).is_ok());
        bytes.ok_or_else(|| self.refuse("its size is over the address space"))
    }

    fn regions(&self) -> Result<Regions, Error> {
        let KvShape { kv_type, context, kv_heads, key_dim, value_dim } = *self;
        if [context, kv_heads, key_dim, value_dim].contains(&0) {
            return Err(self.refuse("nothing may be 0"));
        }
        if kv_type == KvType::Q8_0 && !(key_dim.is_multiple_of(PIECE) && value_dim.is_multiple_of(PIECE)) {
            return Err(self.refuse("q8_0 needs dimensions that are multiples of 32"));
        }
        let (value_bytes, scale_bytes) = match kv_type {
            KvType::F32 => (4, 0),
            KvType::F16 => (2, 0),
            KvType::Q8_0 => (1, 2),
        };
        let ends = || {
            let positions = context.checked_next_multiple_of(LANES)?;
            let value_width = value_dim.checked_next_multiple_of(LANES)?;
            let sizes = [
                positions.checked_mul(key_dim)?.checked_mul(value_bytes)?,
                positions.checked_mul(key_dim / PIECE)?.checked_mul(scale_bytes)?,
                context.checked_mul(value_width)?.checked_mul(value_bytes)?,
                context.checked_mul(value_dim / PIECE)?.checked_mul(scale_bytes)?,
            ];
            let mut end = 0usize;
            let mut ends = [0; 4];
            for (size, at) in sizes.into_iter().zip(&mut ends) {
                // Whole cache lines, so that vectors do not straddle them.
                end = end.checked_add(size.checked_next_multiple_of(64)?)?;
                *at = end;
            }
            Some(Regions { ends })
        };
        ends().ok_or_else(|| self.refuse("its size is over the address space"))
    }

    fn refuse(&self, reason: &'static str) -> Error {
        Error::KvShape { shape: *self, reason }
    }
}

impl Regions {
    fn head_bytes(&self) -> usize {
        self.ends[3]
    }

    fn ranges(&self) -> [Range<usize>; 4] {
        let [keys, key_scales, values, value_scales] = self.ends;
        [0..keys, keys..key_scales, key_scales..values, values..value_scales]
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

fn chunks_mut<T: bytemuck::Pod>(bytes: &mut [u8]) -> &mut [Chunk<T>] {
    bytemuck::cast_slice_mut::<u8, T>(bytes).as_chunks_mut().0
}

/// One head of one layer, to read.
pub(crate) struct KvHead<'a, E: Element> {
    key_dim: usize,
    value_dim: usize,
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

impl Cpu {
    /// Stores keys and values of the tokens from `first_position` on: `[tokens, kv_heads, key_dim]` and
    /// `[tokens, kv_heads, value_dim]`.
    ///
    /// # Panics
    /// The shapes do not fit, or a position is outside the context.
    pub fn store_kv(&self, cache: &mut KvCache, layer: usize, first_position: usize, k: &[f32], v: &[f32]) {
        let KvShape { kv_type, context, kv_heads, key_dim, value_dim } = cache.shape;
        let tokens = k.len() / (kv_heads * key_dim);
        assert_eq!(k.len(), tokens * kv_heads * key_dim, "keys of {tokens} tokens");
        assert_eq!(v.len(), tokens * kv_heads * value_dim, "values of {tokens} tokens");
        assert!(
            first_position <= context && tokens <= context - first_position,
            "{tokens} tokens from position {first_position} on in a context of {context}"
        );
        let (shape, regions, range) = (cache.shape, cache.regions, cache.layer_range(layer));
        let head_bytes = regions.head_bytes();
        let memory = Parts::new(&mut cache.memory[range]);
        let store_heads = |heads: Range<usize>| {
            for kv_head in heads {
                // SAFETY: each head is stored by one worker.
                let head = unsafe { memory.part(kv_head * head_bytes..(kv_head + 1) * head_bytes) };
                let tokens = Tokens { head, regions, shape, kv_head, first_position, k, v };
                match kv_type {
                    KvType::F32 => self.on_lanes(Store::<F32>(tokens, std::marker::PhantomData)),
                    KvType::F16 => self.on_lanes(Store::<F16>(tokens, std::marker::PhantomData)),
                    KvType::Q8_0 => self.on_lanes(Store::<Q8>(tokens, std::marker::PhantomData)),
                }
            }
        };
        // A stored value is a handful of instructions.
        if kv_heads > 1 && self.is_worth_a_region(8 * (k.len() + v.len())) {
            self.pool.run(&|index| store_heads(split(kv_heads, self.threads(), index)));
        } else {
            store_heads(0..kv_heads);
        }
    }
}

/// What to store in one head.
struct Tokens<'a> {
    head: &'a mut [u8],
    regions: Regions,
    shape: KvShape,
    kv_head: usize,
    first_position: usize,
    /// Of all heads.
    k: &'a [f32],
    v: &'a [f32],
}

struct Store<'a, E>(Tokens<'a>, std::marker::PhantomData<E>);

impl<E: Element> Operation for Store<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Tokens { head, regions, shape, kv_head, first_position, k, v } = self.0;
        let KvShape { kv_heads, key_dim, value_dim, .. } = shape;
        let [keys, key_scales, values, value_scales] = regions.ranges();
        let [keys, key_scales, values, value_scales] =
            head.get_disjoint_mut([keys, key_scales, values, value_scales]).expect("regions follow one another");
        let (keys, key_scales) = (chunks_mut::<E::Stored>(keys), chunks_mut::<u16>(key_scales));
        let values: &mut [E::Stored] = bytemuck::cast_slice_mut(values);
        let value_scales: &mut [u16] = bytemuck::cast_slice_mut(value_scales);
        let mut piece = [<E::Stored as bytemuck::Zeroable>::zeroed(); PIECE];

        for (i, k) in k.chunks_exact(key_dim).skip(kv_head).step_by(kv_heads).enumerate() {
            let (group, lane) = ((first_position + i) / LANES, (first_position + i) % LANES);
            for (p, k) in k.chunks(PIECE).enumerate() {
                let scale = E::encode(l, k, &mut piece);
                let keys = &mut keys[group * key_dim + p * PIECE..][..k.len()];
                keys.iter_mut().zip(&piece).for_each(|(key, stored)| key[lane] = *stored);
                if E::TYPE == KvType::Q8_0 {
                    key_scales[group * (key_dim / PIECE) + p][lane] = scale;
                }
            }
        }
        for (i, v) in v.chunks_exact(value_dim).skip(kv_head).step_by(kv_heads).enumerate() {
            let position = first_position + i;
            for (p, v) in v.chunks(PIECE).enumerate() {
                let scale = E::encode(l, v, &mut piece);
                let start = position * value_dim.next_multiple_of(LANES) + p * PIECE;
                values[start..][..v.len()].copy_from_slice(&piece[..v.len()]);
                if E::TYPE == KvType::Q8_0 {
                    value_scales[position * (value_dim / PIECE) + p] = scale;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
