//! Encode and decode whole rows: cuts them into quant blocks and hands each to its format's file.

use crate::{Format, bf16, f16, f32, q4_0, q4_1, q5_0, q8_0};

/// Decodes quant blocks to f32.
///
/// # Panics
///
/// If `out` is no whole number of quant blocks, or `bytes` is not [`Format::row_bytes`] of its length.
pub fn decode(format: Format, bytes: &[u8], out: &mut [f32]) {
    check(format, bytes.len(), out.len());
    match format {
        Format::F32 => decode_blocks(bytes, out, f32::decode),
        Format::F16 => decode_blocks(bytes, out, f16::decode),
        Format::BF16 => decode_blocks(bytes, out, bf16::decode),
        Format::Q4_0 => decode_blocks(bytes, out, q4_0::decode),
        Format::Q4_1 => decode_blocks(bytes, out, q4_1::decode),
        Format::Q5_0 => decode_blocks(bytes, out, q5_0::decode),
        Format::Q8_0 => decode_blocks(bytes, out, q8_0::decode),
    }
}

/// Encodes weights as ggml's reference quantisation does, each quant block by itself.
///
/// A NaN among the weights of a quant block gives it a NaN scale. A scale over f16's range becomes infinite. Neither
/// passes unnoticed: decoding such a block gives non-finite weights. Who converts models refuses them before.
///
/// # Panics
///
/// If `values` is no whole number of quant blocks, or `out` is not [`Format::row_bytes`] of its length.
pub fn encode(format: Format, values: &[f32], out: &mut [u8]) {
    check(format, out.len(), values.len());
    match format {
        Format::F32 => encode_blocks(values, out, f32::encode),
        Format::F16 => encode_blocks(values, out, f16::encode),
        Format::BF16 => encode_blocks(values, out, bf16::encode),
        Format::Q4_0 => encode_blocks(values, out, q4_0::encode),
        Format::Q4_1 => encode_blocks(values, out, q4_1::encode),
        Format::Q5_0 => encode_blocks(values, out, q5_0::encode),
        Format::Q8_0 => encode_blocks(values, out, q8_0::encode),
    }
}

fn check(format: Format, bytes: usize, weights: usize) {
    let name = format.name();
    let expected = format
        .row_bytes(weights)
        .unwrap_or_else(|| panic!("{name}: {weights} weights are no whole number of {}", format.block_len()));
    assert_eq!(bytes, expected, "{name}: bytes of {weights} weights");
}

fn decode_blocks<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    for (block, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        decode(block, out);
    }
}

fn encode_blocks<const BYTES: usize, const LEN: usize>(
    values: &[f32],
    out: &mut [u8],
    encode: impl Fn(&[f32; LEN], &mut [u8; BYTES]),
) {
    for (values, out) in values.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        encode(values, out);
    }
}

#[cfg(test)]
mod tests {
    use super::{decode, encode};
    use crate::Format;

    /// Weights that every format stores exactly: -8 to 7, scale 1.
    #[test]
    fn small_integers_survive_every_format() {
        let values: Vec<f32> = (0..96).map(|i| (i * 7 % 16) as f32 - 8.0).collect();
        for format in Format::ALL {
            // The largest magnitude of Q8_0 gets code 127, of Q4_1 the range gets 15 steps, of Q5_0 the extreme gets -16.
            let scale = if format == Format::Q8_0 { 127.0 / 8.0 } else { 1.0 };
            let values: Vec<f32> = values.iter().map(|x| x * scale).collect();
            let mut bytes = vec![0; format.row_bytes(values.len()).unwrap()];
            encode(format, &values, &mut bytes);
            let mut back = vec![f32::NAN; values.len()];
            decode(format, &bytes, &mut back);
            let worst = values.iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let bound = if format == Format::Q8_0 { 0.5 } else { 0.0 };
            assert!(worst <= bound, "{}: off by {worst}", format.name());
        }
    }

    #[test]
    fn a_block_with_a_nan_decodes_to_nan_and_an_overflow_is_not_finite() {
        for format in Format::ALL {
            for (bad, position) in
                [(f32::NAN, 0), (f32::NAN, 17), (f32::INFINITY, 31), (f32::NEG_INFINITY, 5), (1e30, 9)]
            {
                let mut values = [1.0f32; 32];
                values[position] = bad;
                let mut bytes = vec![0; format.row_bytes(32).unwrap()];
                encode(format, &values, &mut bytes);
                let mut back = [0.0; 32];
                decode(format, &bytes, &mut back);
                let stored_exactly = bad == 1e30 && matches!(format, Format::F32 | Format::BF16);
                assert!(
                    stored_exactly || !back[position].is_finite(),
                    "{}: {bad} became {}",
                    format.name(),
                    back[position]
                );
            }
        }
    }

    #[test]
    #[should_panic(expected = "Q4_0: 31 weights are no whole number of 32")]
    fn partial_blocks_panic() {
        decode(Format::Q4_0, &[0; 18], &mut [0.0; 31]);
    }

    #[test]
    #[should_panic(expected = "Q4_1: bytes of 64 weights")]
    fn wrong_byte_counts_panic() {
        encode(Format::Q4_1, &[0.0; 64], &mut [0; 20]);
    }
}
