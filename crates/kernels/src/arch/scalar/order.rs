//! Kernel order in plain Rust.

use crate::order::{Shape, planes_from_bits};

/// Interleaves quant blocks, block after block until `out` is full; row `i` is read from `plain[rows[i]..]`.
#[cfg_attr(all(target_arch = "x86_64", not(test)), allow(dead_code, reason = "the twin of x86_64"))]
pub(crate) fn interleave<const R: usize, const SCALES: usize, const PLANES: usize, const WORDS: usize>(
    plain: &[u8],
    rows: &[usize; R],
    flip: u32,
    out: &mut [u8],
) {
    let bytes = Shape { scales: SCALES, planes: PLANES, words: WORDS }.bytes();
    for (block, out) in out.chunks_exact_mut(R * bytes).enumerate() {
        let (scales, words) = out.split_at_mut(2 * R * SCALES);
        for (row, &start) in rows.iter().enumerate() {
            let source = &plain[start + block * bytes..][..bytes];
            for i in 0..SCALES {
                scales[2 * (R * i + row)..][..2].copy_from_slice(&source[2 * i..][..2]);
            }
            for (i, word) in source[2 * SCALES..].as_chunks::<4>().0.iter().enumerate() {
                let word = u32::from_le_bytes(*word);
                let word = if i < PLANES { planes_from_bits(word) } else { word ^ flip };
                words[4 * (R * i + row)..][..4].copy_from_slice(&word.to_le_bytes());
            }
        }
    }
}
