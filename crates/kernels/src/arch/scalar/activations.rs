//! Activation codes in plain Rust.

use crate::activations::{BLOCK_LEN, CodeBlock, MAX_OF_ZERO_BLOCK};

/// Makes the codes of whole blocks; `false` if any value is not finite.
pub(crate) fn quantize(values: &[f32], blocks: &mut [CodeBlock]) -> bool {
    let mut finite = true;
    for (values, block) in values.as_chunks::<BLOCK_LEN>().0.iter().zip(blocks) {
        // Among magnitudes the order of the bits is the order of the values, with infinity and then NaN on top.
        let max = f32::from_bits(values.iter().map(|x| x.abs().to_bits()).max().unwrap_or(0));
        finite &= max.is_finite();
        *block = CodeBlock::default();
        if max < MAX_OF_ZERO_BLOCK || !max.is_finite() {
            continue;
        }
        let (scale, inverse) = (max / 127.0, 127.0 / max);
        let mut sum = 0;
        for (code, x) in block.codes.iter_mut().zip(values) {
            *code = (x * inverse).round_ties_even() as i8;
            sum += i32::from(*code);
        }
        block.scale = scale;
        block.scaled_sum = scale * sum as f32;
        (block.minus_8_sums, block.minus_128_sums) = (-8 * sum, -128 * sum);
    }
    finite
}
