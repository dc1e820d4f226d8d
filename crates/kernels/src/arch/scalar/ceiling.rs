//! Ceilings of plain Rust.

use crate::ceiling::ReadLoop;

/// Reads whole turns of all streams; returns all words folded together. There is no prefetch in plain Rust.
pub(crate) fn read(bytes: &[u8], how: ReadLoop) -> u64 {
    let stream_bytes = bytes.len() / how.streams;
    let mut folded = [0u64; 32];
    for offset in (0..stream_bytes).step_by(256) {
        for stream in 0..how.streams {
            let turn = &bytes[stream * stream_bytes + offset..][..256];
            for (folded, word) in folded.iter_mut().zip(turn.as_chunks().0) {
                *folded ^= u64::from_le_bytes(*word);
            }
        }
    }
    folded.iter().fold(0, |a, b| a ^ b)
}

/// Multiply-adds of 16-bit codes into 32-bit sums, as `product` does them; returns their number.
pub(crate) fn dots(rounds: usize) -> u64 {
    let weights = std::hint::black_box([3i16; 32]);
    let mut sums = [0i32; 32];
    for _ in 0..rounds {
        let activations = std::hint::black_box([5i16; 32]);
        for i in 0..32 {
            sums[i] = sums[i].wrapping_add(i32::from(weights[i]) * i32::from(activations[i]));
        }
    }
    std::hint::black_box(sums);
    rounds as u64 * 32
}
