//! The sizes of a KV cache: where the regions of a head lie. No memory is touched here.

use super::KvType;
use super::element::PIECE;
use crate::Error;
use crate::lanes::LANES;
use std::ops::Range;

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

/// Where the regions of one head end, in bytes from its start: keys, their scales, values, their scales.
#[derive(Clone, Copy, Debug)]
pub(super) struct Regions {
    ends: [usize; 4],
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

    pub(super) fn regions(&self) -> Result<Regions, Error> {
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
    pub(super) fn head_bytes(&self) -> usize {
        self.ends[3]
    }

    pub(super) fn ranges(&self) -> [Range<usize>; 4] {
        let [keys, key_scales, values, value_scales] = self.ends;
        [0..keys, keys..key_scales, key_scales..values, values..value_scales]
    }
}
