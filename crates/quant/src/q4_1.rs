//! Q4_1: 32 weights `d · code + m`; codes 0 to 15.
//!
//! | bytes | content |
//! | --- | --- |
//! | 0..2 | `d`, f16 |
//! | 2..4 | `m`, f16: the least weight |
//! | 4..20 | codes: byte `i` holds weight `i` in its low nibble and weight `16 + i` in its high one |
//!
//! Decoding rounds once: `d · code` is exact in f32 (11 + 4 bits).

use crate::{extremes, f16};

const LEN: usize = 32;
const BYTES: usize = 20;

pub(crate) fn decode(bytes: &[u8; BYTES], out: &mut [f32; LEN]) {
    let d = f16::read([bytes[0], bytes[1]]);
    let m = f16::read([bytes[2], bytes[3]]);
    for (i, &pair) in bytes[4..].iter().enumerate() {
        out[i] = d * f32::from(pair & 15) + m;
        out[16 + i] = d * f32::from(pair >> 4) + m;
    }
}

pub(crate) fn encode(values: &[f32; LEN], out: &mut [u8; BYTES]) {
    let (least, greatest) = extremes::least_and_greatest(values);
    let d = (greatest - least) / 15.0;
    let inverse = extremes::reciprocal(d);
    let code = |x: f32| (((x - least) * inverse + 0.5) as u8).min(15);
    out[..2].copy_from_slice(&f16::write(d));
    out[2..4].copy_from_slice(&f16::write(least));
    for i in 0..16 {
        out[4 + i] = code(values[i]) | code(values[16 + i]) << 4;
    }
}
