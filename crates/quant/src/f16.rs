//! F16: IEEE half, little endian. Also the f16 scales and minima of the quant block formats.
//!
//! Encoding rounds to nearest even, overflows to infinity and keeps subnormals. A NaN stays a NaN (made quiet).

use half::f16;

/// Weights in one quant block.
const LEN: usize = 1;
/// Bytes of one quant block.
const BYTES: usize = 2;

pub(crate) fn decode(bytes: &[u8; BYTES], out: &mut [f32; LEN]) {
    out[0] = read(*bytes);
}

pub(crate) fn encode(values: &[f32; LEN], out: &mut [u8; BYTES]) {
    *out = write(values[0]);
}

/// A half as f32; exact.
pub(crate) fn read(bytes: [u8; 2]) -> f32 {
    f16::from_le_bytes(bytes).to_f32()
}

/// The half nearest to `value`.
pub(crate) fn write(value: f32) -> [u8; 2] {
    f16::from_f32(value).to_le_bytes()
}
