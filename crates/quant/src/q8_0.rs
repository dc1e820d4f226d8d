//! Q8_0: 32 weights `d · code`; codes are i8. Encoding makes -127 to 127; a file may hold -128.
//!
//! | bytes | content |
//! | --- | --- |
//! | 0..2 | `d`, f16 |
//! | 2..34 | codes, one i8 a weight |

use crate::{extremes, f16};

const LEN: usize = 32;
const BYTES: usize = 34;

pub(crate) fn decode(bytes: &[u8; BYTES], out: &mut [f32; LEN]) {
    let d = f16::read([bytes[0], bytes[1]]);
    for (out, &code) in out.iter_mut().zip(&bytes[2..]) {
        *out = d * f32::from(code as i8);
    }
}

pub(crate) fn encode(values: &[f32; LEN], out: &mut [u8; BYTES]) {
    let d = extremes::of_largest_magnitude(values).abs() / 127.0;
    let inverse = extremes::reciprocal(d);
    out[..2].copy_from_slice(&f16::write(d));
    for (out, &x) in out[2..].iter_mut().zip(values) {
        // Halves away from zero, as ggml's `roundf`.
        *out = (x * inverse).round() as i8 as u8;
    }
}
