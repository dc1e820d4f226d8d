//! Q4_0: 32 weights `d · (code - 8)`; codes 0 to 15.
//!
//! | bytes | content |
//! | --- | --- |
//! | 0..2 | `d`, f16 |
//! | 2..18 | codes: byte `i` holds weight `i` in its low nibble and weight `16 + i` in its high one |
//!
//! The weight of the largest magnitude gets code 0, so `d` has the opposite of its sign.

use crate::{extremes, f16};

const LEN: usize = 32;
const BYTES: usize = 18;

pub(crate) fn decode(bytes: &[u8; BYTES], out: &mut [f32; LEN]) {
    let d = f16::read([bytes[0], bytes[1]]);
    for (i, &pair) in bytes[2..].iter().enumerate() {
        out[i] = d * (f32::from(pair & 15) - 8.0);
        out[16 + i] = d * (f32::from(pair >> 4) - 8.0);
    }
}

pub(crate) fn encode(values: &[f32; LEN], out: &mut [u8; BYTES]) {
    let d = extremes::of_largest_magnitude(values) / -8.0;
    let inverse = extremes::reciprocal(d);
    // Product and sum are rounded each. `as` truncates, and turns a NaN into 0.
    let code = |x: f32| ((x * inverse + 8.5) as u8).min(15);
    out[..2].copy_from_slice(&f16::write(d));
    for i in 0..16 {
        out[2 + i] = code(values[i]) | code(values[16 + i]) << 4;
    }
}
