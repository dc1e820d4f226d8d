//! Rounding keys and values and putting them in their places.

use super::element::{Element, F16, F32, PIECE, Q8};
use super::shape::Regions;
use super::{KvCache, KvShape, KvType};
use crate::lanes::{Chunk, LANES, Lanes, Operation};
use crate::parts::Parts;
use crate::{Cpu, split};
use std::ops::Range;

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
                // SAFETY: each head is stored by one part.
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

/// The whole chunks of a region, which may end in less than one.
fn chunks_mut<T: bytemuck::Pod>(bytes: &mut [u8]) -> &mut [Chunk<T>] {
    bytemuck::cast_slice_mut::<u8, T>(bytes).as_chunks_mut().0
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
