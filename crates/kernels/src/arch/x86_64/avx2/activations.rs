//! Activation codes, 8 values a register.

use crate::activations::{BLOCK_LEN, CodeBlock, MAX_OF_ZERO_BLOCK};
use std::arch::x86_64::*;

/// Makes the codes of whole blocks; `false` if any value is not finite.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn quantize(values: &[f32], blocks: &mut [CodeBlock]) -> bool {
    let magnitude = _mm256_set1_epi32(i32::MAX);
    let mut finite = true;
    for (values, block) in values.as_chunks::<BLOCK_LEN>().0.iter().zip(blocks) {
        let mut x = [_mm256_setzero_ps(); 4];
        let mut magnitudes = _mm256_setzero_si256();
        for (x, values) in x.iter_mut().zip(values.as_chunks::<8>().0) {
            // SAFETY: 8 values.
            *x = unsafe { _mm256_loadu_ps(values.as_ptr()) };
            // Among magnitudes the order of the bits is the order of the values, with infinity and then NaN on top.
            magnitudes = _mm256_max_epu32(magnitudes, _mm256_and_si256(_mm256_castps_si256(*x), magnitude));
        }
        let max = f32::from_bits(horizontal(magnitudes, |a, b| _mm_max_epu32(a, b)));
        finite &= max.is_finite();
        *block = CodeBlock::default();
        if max < MAX_OF_ZERO_BLOCK || !max.is_finite() {
            continue;
        }
        let (scale, inverse) = (max / 127.0, _mm256_set1_ps(127.0 / max));
        // Conversion rounds to even, as the control register says from the start of every thread.
        let codes = x.map(|x| _mm256_cvtps_epi32(_mm256_mul_ps(x, inverse)));
        let sums = _mm256_add_epi32(_mm256_add_epi32(codes[0], codes[1]), _mm256_add_epi32(codes[2], codes[3]));
        let sum = horizontal(sums, |a, b| _mm_add_epi32(a, b)).cast_signed();
        // Packing works within 128-bit halves; the permutation puts the eight groups of four codes back in line.
        let packed = _mm256_packs_epi16(_mm256_packs_epi32(codes[0], codes[1]), _mm256_packs_epi32(codes[2], codes[3]));
        let packed = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        // SAFETY: a block has 32 codes.
        unsafe { _mm256_storeu_si256(block.codes.as_mut_ptr().cast(), packed) };
        block.scale = scale;
        block.scaled_sum = scale * sum as f32;
        (block.minus_8_sums, block.minus_128_sums) = (-8 * sum, -128 * sum);
    }
    finite
}

/// Folds the 8 lanes into one.
#[inline]
#[target_feature(enable = "avx2")]
fn horizontal(x: __m256i, fold: impl Fn(__m128i, __m128i) -> __m128i) -> u32 {
    let x = fold(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
    let x = fold(x, _mm_shuffle_epi32::<0b01_00_11_10>(x));
    let x = fold(x, _mm_shuffle_epi32::<0b10_11_00_01>(x));
    _mm_cvtsi128_si32(x).cast_unsigned()
}
