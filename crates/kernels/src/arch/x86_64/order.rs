//! Kernel order with SSE2, which every x86-64 has: four words of four rows at a time.

use crate::order::{PLANE_STEPS, Shape};
use std::arch::x86_64::*;

/// Interleaves quant blocks, block after block until `out` is full; row `i` is read from `plain[rows[i]..]`.
#[target_feature(enable = "sse2")]
pub(crate) fn interleave<const R: usize, const SCALES: usize, const PLANES: usize, const WORDS: usize>(
    plain: &[u8],
    rows: &[usize; R],
    flip: u32,
    out: &mut [u8],
) {
    const { assert!(R.is_multiple_of(4) && WORDS.is_multiple_of(4) && PLANES <= 1) }
    let bytes = Shape { scales: SCALES, planes: PLANES, words: WORDS }.bytes();
    let blocks = out.len() / (R * bytes);
    assert!(rows.iter().all(|&start| start <= plain.len() && plain.len() - start >= blocks * bytes));
    let flip = _mm_set1_epi32(flip.cast_signed());
    for block in 0..blocks {
        // SAFETY: block < blocks, so each row's block lies inside `plain` (asserted), and R of them inside `out`; all offsets below are
        // inside a row's block, or R times one.
        unsafe {
            let source = |row: usize| plain.as_ptr().add(rows[row] + block * bytes);
            let out = out.as_mut_ptr().add(block * R * bytes);
            for row in 0..R {
                for i in 0..SCALES {
                    let scale = source(row).add(2 * i).cast::<[u8; 2]>().read();
                    out.add(2 * (R * i + row)).cast::<[u8; 2]>().write(scale);
                }
            }
            let words = out.add(2 * R * SCALES);
            for first_row in (0..R).step_by(4) {
                if PLANES == 1 {
                    let bits = |row: usize| source(first_row + row).add(2 * SCALES).cast::<i32>().read_unaligned();
                    let planes = planes_from_bits(_mm_setr_epi32(bits(0), bits(1), bits(2), bits(3)));
                    _mm_storeu_si128(words.add(4 * first_row).cast(), planes);
                }
                for first_word in (PLANES..PLANES + WORDS).step_by(4) {
                    let load = |row: usize| {
                        _mm_loadu_si128(source(first_row + row).add(2 * SCALES + 4 * first_word).cast::<__m128i>())
                    };
                    let columns = transpose([load(0), load(1), load(2), load(3)]);
                    for (i, column) in columns.into_iter().enumerate() {
                        let out = words.add(4 * (R * (first_word + i) + first_row));
                        _mm_storeu_si128(out.cast(), _mm_xor_si128(column, flip));
                    }
                }
            }
        }
    }
}

/// Asks for `bytes` to be brought into L2.
pub(crate) fn prefetch(bytes: &[u8]) {
    for line in bytes.chunks(64) {
        // SAFETY: every x86-64 has SSE; a prefetch reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
}

/// Four rows of four words to four columns of four words.
#[inline]
#[target_feature(enable = "sse2")]
fn transpose([a, b, c, d]: [__m128i; 4]) -> [__m128i; 4] {
    let (ab_low, cd_low) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
    let (ab_high, cd_high) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
    [
        _mm_unpacklo_epi64(ab_low, cd_low),
        _mm_unpackhi_epi64(ab_low, cd_low),
        _mm_unpacklo_epi64(ab_high, cd_high),
        _mm_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// The steps of [`PLANE_STEPS`] on four words.
#[inline]
#[target_feature(enable = "sse2")]
fn planes_from_bits(bits: __m128i) -> __m128i {
    let mut x = bits;
    for (distance, mask) in PLANE_STEPS {
        let distance = _mm_cvtsi32_si128(distance.cast_signed());
        let mask = _mm_set1_epi32(mask.cast_signed());
        let changed = _mm_and_si128(_mm_xor_si128(_mm_srl_epi32(x, distance), x), mask);
        x = _mm_xor_si128(_mm_xor_si128(x, changed), _mm_sll_epi32(changed, distance));
    }
    x
}
