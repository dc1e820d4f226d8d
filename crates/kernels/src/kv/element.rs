//! What differs between the types of a KV cache: how values are rounded to it and read back as f32.

use super::KvType;
use crate::lanes::{Chunk, LANES, Lanes};
use bytemuck::Pod;
use moce_quant::Format;

/// Values that are encoded together: a Q8_0 quant block.
pub(super) const PIECE: usize = 32;

/// A type of stored values.
pub(crate) trait Element: 'static {
    const TYPE: KvType;
    /// One stored value, without its scale.
    type Stored: Pod + Send + Sync;

    /// Rounds up to 32 values; returns their common scale as an IEEE half (not used by floats).
    fn encode<L: Lanes>(l: L, values: &[f32], stored: &mut [Self::Stored; PIECE]) -> u16;

    /// The stored values as f32, without their scale.
    fn load<L: Lanes>(l: L, stored: &Chunk<Self::Stored>) -> L::F;
}

/// IEEE single.
pub(crate) struct F32;

impl Element for F32 {
    const TYPE: KvType = KvType::F32;
    type Stored = f32;

    #[inline(always)]
    fn encode<L: Lanes>(_: L, values: &[f32], stored: &mut [f32; PIECE]) -> u16 {
        stored[..values.len()].copy_from_slice(values);
        0
    }

    #[inline(always)]
    fn load<L: Lanes>(l: L, stored: &Chunk) -> L::F {
        l.load(stored)
    }
}

/// IEEE half.
pub(crate) struct F16;

impl Element for F16 {
    const TYPE: KvType = KvType::F16;
    type Stored = u16;

    #[inline(always)]
    fn encode<L: Lanes>(l: L, values: &[f32], stored: &mut [u16; PIECE]) -> u16 {
        for (values, stored) in values.chunks(LANES).zip(stored.as_chunks_mut::<LANES>().0) {
            l.store_f16(l.load_first(values, 0.0), stored);
        }
        0
    }

    #[inline(always)]
    fn load<L: Lanes>(l: L, stored: &Chunk<u16>) -> L::F {
        l.load_f16(stored)
    }
}

/// Signed bytes with a scale.
pub(crate) struct Q8;

impl Element for Q8 {
    const TYPE: KvType = KvType::Q8_0;
    type Stored = i8;

    #[inline(always)]
    fn encode<L: Lanes>(_: L, values: &[f32], stored: &mut [i8; PIECE]) -> u16 {
        let mut block = [0u8; Format::Q8_0.block_bytes()];
        moce_quant::encode(Format::Q8_0, values, &mut block);
        let (scale, codes) = block.split_at(2);
        stored.copy_from_slice(bytemuck::cast_slice(codes));
        u16::from_le_bytes([scale[0], scale[1]])
    }

    #[inline(always)]
    fn load<L: Lanes>(l: L, stored: &Chunk<i8>) -> L::F {
        l.load_i8(stored)
    }
}
