//! F32: IEEE single, little endian; nothing is rounded.

/// Weights in one quant block.
const LEN: usize = 1;
/// Bytes of one quant block.
const BYTES: usize = 4;

pub(crate) fn decode(bytes: &[u8; BYTES], out: &mut [f32; LEN]) {
    out[0] = f32::from_le_bytes(*bytes);
}

pub(crate) fn encode(values: &[f32; LEN], out: &mut [u8; BYTES]) {
    *out = values[0].to_le_bytes();
}
