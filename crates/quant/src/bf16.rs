//! BF16: the upper half of an IEEE single, little endian.
//!
//! Encoding rounds to nearest even, overflows to infinity and keeps subnormals. A NaN stays a NaN (made quiet).

/// Weights in one quant block.
const LEN: usize = 1;
/// Bytes of one quant block.
const BYTES: usize = 2;

pub(crate) fn decode(bytes: &[u8; BYTES], out: &mut [f32; LEN]) {
    out[0] = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
}

pub(crate) fn encode(values: &[f32; LEN], out: &mut [u8; BYTES]) {
    *out = half::bf16::from_f32(values[0]).to_le_bytes();
}
