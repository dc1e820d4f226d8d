//! Q5_0: 32 weights `d · (code - 16)`; codes 0 to 31, their highest bits apart.
//!
//! | bytes | content |
//! | --- | --- |
//! | 0..2 | `d`, f16 |
//! | 2..6 | bit 4 of the codes, u32: bit `i` belongs to weight `i` |
//! | 6..22 | bits 0 to 3: byte `i` holds weight `i` in its low nibble and weight `16 + i` in its high one |
//!
//! The weight of the largest magnitude gets code 0, so `d` has the opposite of its sign.

use crate::{extremes, f16};

const LEN: usize = 32;
const BYTES: usize = 22;

pub(crate) fn decode(bytes: &[u8; BYTES], out: &mut [f32; LEN]) {
    let d = f16::read([bytes[0], bytes[1]]);
    let high = u32::from_le_bytes([bytes[2], bytes[3], bytes[4], bytes[5]]);
    let bit_4 = |i: usize| ((high >> i & 1) << 4) as u8;
    for (i, &pair) in bytes[6..].iter().enumerate() {
        out[i] = d * (f32::from(pair & 15 | bit_4(i)) - 16.0);
        out[16 + i] = d * (f32::from(pair >> 4 | bit_4(16 + i)) - 16.0);
    }
}

pub(crate) fn encode(values: &[f32; LEN], out: &mut [u8; BYTES]) {
    let d = extremes::of_largest_magnitude(values) / -16.0;
    let inverse = extremes::reciprocal(d);
    let code = |x: f32| ((x * inverse + 16.5) as u8).min(31);
    let mut high = 0u32;
    for i in 0..16 {
        let (low, upper) = (code(values[i]), code(values[16 + i]));
        out[6 + i] = low & 15 | (upper & 15) << 4;
        high |= u32::from(low >> 4) << i | u32::from(upper >> 4) << (16 + i);
    }
    out[..2].copy_from_slice(&f16::write(d));
    out[2..6].copy_from_slice(&high.to_le_bytes());
}
