//! Ceilings of AVX-512: 64-byte loads, `vpdpbusd` from registers.

use crate::ceiling::ReadLoop;
use std::arch::x86_64::*;

/// Independent accumulators of the dot loop: latency 4 to 5 times two a cycle at most.
const ACCUMULATORS: usize = 12;

/// Reads whole turns of all streams; returns all words folded together.
#[target_feature(enable = "avx512f")]
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

#[target_feature(enable = "avx512f")]
fn streams<const STREAMS: usize, const PREFETCH: bool>(bytes: &[u8], ahead: usize) -> u64 {
    let stream_bytes = bytes.len() / STREAMS;
    let mut folded = [_mm512_setzero_si512(); 4];
    for offset in (0..stream_bytes / 256 * 256).step_by(256) {
        for stream in 0..STREAMS {
            let turn = bytes.as_ptr().wrapping_add(stream * stream_bytes + offset);
            for (line, folded) in folded.iter_mut().enumerate() {
                if PREFETCH {
                    _mm_prefetch::<_MM_HINT_T0>(turn.wrapping_add(ahead + 64 * line).cast());
                }
                // SAFETY: offset + 256 <= stream_bytes, so the turn lies inside the slice.
                *folded = _mm512_xor_si512(*folded, unsafe { _mm512_loadu_si512(turn.add(64 * line).cast()) });
            }
        }
    }
    let [a, b, c, d] = folded;
    let folded = _mm512_xor_si512(_mm512_xor_si512(a, b), _mm512_xor_si512(c, d));
    _mm512_reduce_add_epi64(folded).cast_unsigned()
}

/// Multiply-adds of `vpdpbusd`; returns their number.
#[target_feature(enable = "avx512f,avx512vnni")]
pub(crate) fn dots(rounds: usize) -> u64 {
    let weights = _mm512_set1_epi32(std::hint::black_box(0x0304_0506));
    let activations = _mm512_set1_epi32(std::hint::black_box(0x0102_0304));
    let mut sums = [_mm512_setzero_si512(); ACCUMULATORS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, weights, activations);
        }
    }
    for sum in sums {
        std::hint::black_box(_mm512_reduce_add_epi32(sum));
    }
    (rounds * ACCUMULATORS * 64) as u64
}
