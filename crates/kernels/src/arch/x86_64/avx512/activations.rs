//! Activation codes, 16 values a register.

use crate::activations::{BLOCK_LEN, CodeBlock, MAX_OF_ZERO_BLOCK};
use std::arch::x86_64::*;

/// Makes the codes of whole blocks; `false` if any value is not finite.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) fn quantize(values: &[f32], blocks: &mut [CodeBlock]) -> bool {
    let magnitude = _mm512_set1_epi32(i32::MAX);
    let mut finite = true;
    for (values, block) in values.as_chunks::<BLOCK_LEN>().0.iter().zip(blocks) {
        // SAFETY: a block has 32 values.
        let (low, high) =
            unsafe { (_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values.as_ptr().add(BLOCK_LEN / 2))) };
        // Among magnitudes the order of the bits is the order of the values, with infinity and then NaN on top.
        let magnitudes = _mm512_max_epu32(
            _mm512_and_si512(_mm512_castps_si512(low), magnitude),
            _mm512_and_si512(_mm512_castps_si512(high), magnitude),
        );
        let max = f32::from_bits(_mm512_reduce_max_epu32(magnitudes));
        finite &= max.is_finite();
        *block = CodeBlock::default();
        if max < MAX_OF_ZERO_BLOCK || !max.is_finite() {
            continue;
        }
        let (scale, inverse) = (max / 127.0, _mm512_set1_ps(127.0 / max));
        // Conversion rounds to even, as the control register says from the start of every thread.
        let low = _mm512_cvtps_epi32(_mm512_mul_ps(low, inverse));
        let high = _mm512_cvtps_epi32(_mm512_mul_ps(high, inverse));
        let sum = _mm512_reduce_add_epi32(_mm512_add_epi32(low, high));
        let codes = block.codes.as_mut_ptr();
        // SAFETY: a block has 32 codes.
        unsafe {
            _mm_storeu_si128(codes.cast(), _mm512_cvtepi32_epi8(low));
            _mm_storeu_si128(codes.add(BLOCK_LEN / 2).cast(), _mm512_cvtepi32_epi8(high));
        }
        block.scale = scale;
        block.scaled_sum = scale * sum as f32;
        (block.minus_8_sums, block.minus_128_sums) = (-8 * sum, -128 * sum);
    }
    finite
}
