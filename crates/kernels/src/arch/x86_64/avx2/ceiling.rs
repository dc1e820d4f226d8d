//! Ceilings of AVX2: 32-byte loads, `vpmaddubsw` from registers (without the additions that a dot product needs beside it).

use crate::ceiling::ReadLoop;
use std::arch::x86_64::*;

/// Independent accumulators of the dot loop: a latency of 3 to 5 times two a cycle.
const ACCUMULATORS: usize = 12;

/// Reads whole turns of all streams; returns all words folded together.
#[target_feature(enable = "avx2")]
pub(crate) fn read(bytes: &[u8], how: ReadLoop) -> u64 {
    match (how.streams, how.prefetch_bytes) {
        (1, 0) => streams::<1, false>(bytes, 0),
        (2, 0) => streams::<2, false>(bytes, 0),
        (4, 0) => streams::<4, false>(bytes, 0),
        (8, 0) => streams::<8, false>(bytes, 0),
        (1, ahead) => streams::<1, true>(bytes, ahead),
        (2, ahead) => streams::<2, true>(bytes, ahead),
        (4, ahead) => streams::<4, true>(bytes, ahead),
        (8, ahead) => streams::<8, true>(bytes, ahead),
        (streams, _) => unreachable!("a read loop of {streams} streams"),
    }
}

#[target_feature(enable = "avx2")]
fn streams<const STREAMS: usize, const PREFETCH: bool>(bytes: &[u8], ahead: usize) -> u64 {
    let stream_bytes = bytes.len() / STREAMS;
    let mut folded = [_mm256_setzero_si256(); 8];
    for offset in (0..stream_bytes / 256 * 256).step_by(256) {
        for stream in 0..STREAMS {
            let turn = bytes.as_ptr().wrapping_add(stream * stream_bytes + offset);
            for (half_line, folded) in folded.iter_mut().enumerate() {
                if PREFETCH && half_line % 2 == 0 {
                    _mm_prefetch::<_MM_HINT_T0>(turn.wrapping_add(ahead + 32 * half_line).cast());
                }
                // SAFETY: offset + 256 <= stream_bytes, so the turn lies inside the slice.
                *folded = _mm256_xor_si256(*folded, unsafe { _mm256_loadu_si256(turn.add(32 * half_line).cast()) });
            }
        }
    }
    let folded = folded.into_iter().fold(_mm256_setzero_si256(), |a, b| _mm256_xor_si256(a, b));
    let mut words = [0; 4];
    // SAFETY: four 64-bit words.
    unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), folded) };
    words.iter().fold(0, |a: u64, b| a ^ b)
}

/// Multiply-adds of `vpmaddubsw`; returns their number.
#[target_feature(enable = "avx2")]
pub(crate) fn dots(rounds: usize) -> u64 {
    let activations = _mm256_set1_epi32(std::hint::black_box(0x0102_0304));
    let mut products = [_mm256_set1_epi32(std::hint::black_box(0x0304_0506)); ACCUMULATORS];
    for _ in 0..rounds {
        for product in &mut products {
            // Each depends on the one before, so that the compiler cannot take it out of the loop.
            *product = _mm256_maddubs_epi16(*product, activations);
        }
    }
    for product in products {
        std::hint::black_box(_mm256_extract_epi32::<0>(product));
    }
    (rounds * ACCUMULATORS * 32) as u64
}
