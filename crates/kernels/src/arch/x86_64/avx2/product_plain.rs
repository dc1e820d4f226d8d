//! One activation vector times quantised rows as they stand in the file, eight at a time.
//!
//! With many tokens it pays to put rows in kernel order first; with one it does not. Here a register holds the 32 codes of one row's
//! block, and the products of eight rows are summed across lanes by a tree that ends with one row a lane, as [`super::product`] has
//! them. Integers are exact in any order; what follows is the same sequence of roundings.

#![allow(clippy::needless_range_loop, reason = "an index names one register of several arrays")]

use super::product::{Codes, broadcast, without_offset};
use crate::activations::CodeBlock;
use crate::product::tile::PlainRows;
use moce_quant::Format;
use std::arch::x86_64::*;
use std::mem::offset_of;

/// Rows that are computed together.
const ROWS: usize = 8;

/// How a format's block becomes 32 codes.
trait Unpack {
    const FORMAT: Format;
    const CODES: Codes;

    /// The codes of one row's block, in the order of the weights.
    ///
    /// # Safety
    /// `block` points to a quant block of this format.
    unsafe fn codes(block: *const u8) -> __m256i;
}

/// The nibbles of 16 bytes: the low ones, then the high ones.
///
/// # Safety
/// `bytes` points to 16 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn nibbles(bytes: *const u8) -> __m256i {
    // SAFETY: the caller's.
    let bytes = unsafe { _mm_loadu_si128(bytes.cast()) };
    let both = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(bytes), _mm_srli_epi16::<4>(bytes));
    _mm256_and_si256(both, _mm256_set1_epi8(15))
}

struct Q4_0;

impl Unpack for Q4_0 {
    const FORMAT: Format = Format::Q4_0;
    const CODES: Codes = Codes::FourBits;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(block: *const u8) -> __m256i {
        // SAFETY: the caller's: behind the scale.
        unsafe { nibbles(block.add(2)) }
    }
}

struct Q4_1;

impl Unpack for Q4_1 {
    const FORMAT: Format = Format::Q4_1;
    const CODES: Codes = Codes::FourBits;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(block: *const u8) -> __m256i {
        // SAFETY: the caller's: behind the scale and the minimum.
        unsafe { nibbles(block.add(4)) }
    }
}

struct Q5_0;

impl Unpack for Q5_0 {
    const FORMAT: Format = Format::Q5_0;
    const CODES: Codes = Codes::FiveBits;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(block: *const u8) -> __m256i {
        // Each byte of the 32 fifth bits goes where its eight weights are; a weight's own bit is then tested in place.
        let spread = _mm256_setr_epi8(
            0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3,
        );
        let own = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
        // SAFETY: the caller's: behind the scale stand 4 bytes of fifth bits, then the nibbles.
        let (bits, nibbles) = unsafe { (block.add(2).cast::<i32>().read_unaligned(), nibbles(block.add(6))) };
        let bits = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), spread), own);
        let fifth = _mm256_and_si256(_mm256_cmpeq_epi8(bits, own), _mm256_set1_epi8(16));
        _mm256_or_si256(nibbles, fifth)
    }
}

struct Q8_0;

impl Unpack for Q8_0 {
    const FORMAT: Format = Format::Q8_0;
    const CODES: Codes = Codes::Signed;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(block: *const u8) -> __m256i {
        // SAFETY: the caller's: behind the scale.
        unsafe { _mm256_loadu_si256(block.add(2).cast()) }
    }
}

/// The dot products of eight rows' codes with the activation codes, one row a lane.
///
/// Neighbours are added in 16 bits as often as [`Codes`] says that they fit: eight products of pairs for four bits, four for five.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dots(kind: Codes, codes: [__m256i; ROWS], activations: __m256i) -> __m256i {
    let ones = _mm256_set1_epi16(1);
    let products = codes.map(|codes| match kind {
        Codes::FourBits | Codes::FiveBits => _mm256_maddubs_epi16(codes, activations),
        Codes::Signed => {
            let products = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(activations, codes));
            _mm256_madd_epi16(products, ones)
        }
    });
    let add = |a, b| match kind {
        Codes::FourBits | Codes::FiveBits => _mm256_add_epi16(a, b),
        Codes::Signed => _mm256_add_epi32(a, b),
    };
    // Within each half of a register: a b a b from a and b, then a b c d from those.
    let pair = |a, b| add(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let four = |a, b| add(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    let [a, b, c, d, e, f, g, h] = products;
    let mut first = four(pair(a, b), pair(c, d));
    let mut second = four(pair(e, f), pair(g, h));
    if kind == Codes::FiveBits {
        (first, second) = (_mm256_madd_epi16(first, ones), _mm256_madd_epi16(second, ones));
    }
    let low = _mm256_permute2x128_si256::<0x20>(first, second);
    let high = _mm256_permute2x128_si256::<0x31>(first, second);
    match kind {
        Codes::FourBits => _mm256_madd_epi16(_mm256_add_epi16(low, high), ones),
        Codes::FiveBits | Codes::Signed => _mm256_add_epi32(low, high),
    }
}

/// The f16 values that stand `offset` bytes into the blocks of eight rows.
///
/// # Safety
/// All `blocks` point to quant blocks, and the value lies inside.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load_scales(blocks: &[*const u8; ROWS], offset: usize) -> __m256 {
    // SAFETY: the caller's.
    let [a, b, c, d, e, f, g, h] = blocks.map(|block| unsafe { block.add(offset).cast::<i16>().read_unaligned() });
    _mm256_cvtph_ps(_mm_setr_epi16(a, b, c, d, e, f, g, h))
}

/// The micro-kernel: all rows of format `F` times the token. Its exact twin is `arch/scalar/product.rs`, as that of every order.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn all_rows<F: Unpack>(job: &PlainRows) {
    let block_bytes = F::FORMAT.block_bytes();
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    for first in (0..job.rows).step_by(ROWS) {
        let count = ROWS.min(job.rows - first);
        let valid = _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), lanes);
        // SAFETY: the caller's: rows, the token's code blocks and outputs are as `PlainRows` says (a missing row is replaced by the
        // last one, and not written); the prefetch may point outside, which is allowed.
        unsafe {
            let group = job.weights.add(first * job.row_bytes);
            // Eight short rows are too scattered for the hardware to run ahead; but the next eight lie in one piece behind these.
            let ahead = group.wrapping_add(ROWS * job.row_bytes);
            let starts: [*const u8; ROWS] = std::array::from_fn(|row| group.add(row.min(count - 1) * job.row_bytes));
            let mut sums = _mm256_setzero_ps();
            for block in 0..job.blocks {
                let offset = block * block_bytes;
                for line in 0..(ROWS * block_bytes).div_ceil(64) {
                    _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(ROWS * offset + 64 * line).cast());
                }
                let blocks = starts.map(|start| start.add(offset));
                let token = job.token.add(block);
                let activations = _mm256_loadu_si256(token.cast::<u8>().add(offset_of!(CodeBlock, codes)).cast());
                let mut codes = [_mm256_setzero_si256(); ROWS];
                for row in 0..ROWS {
                    codes[row] = F::codes(blocks[row]);
                }
                let dot = dots(F::CODES, codes, activations);
                let minus_8_sums = broadcast(token, offset_of!(CodeBlock, minus_8_sums));
                let dot = without_offset(F::FORMAT, dot, minus_8_sums);
                let activation_scale = _mm256_castsi256_ps(broadcast(token, offset_of!(CodeBlock, scale)));
                let scale = _mm256_mul_ps(load_scales(&blocks, 0), activation_scale);
                sums = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dot), sums);
                if F::FORMAT == Format::Q4_1 {
                    let scaled_sum = _mm256_castsi256_ps(broadcast(token, offset_of!(CodeBlock, scaled_sum)));
                    sums = _mm256_fmadd_ps(load_scales(&blocks, 2), scaled_sum, sums);
                }
            }
            _mm256_maskstore_ps(job.output.add(first), valid, sums);
        }
    }
}

/// Computes rows times one token.
///
/// # Safety
/// The job's pointers are valid for what [`PlainRows`] says.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn rows(format: Format, job: &PlainRows) {
    // SAFETY: the caller's.
    unsafe {
        match format {
            Format::Q4_0 => all_rows::<Q4_0>(job),
            Format::Q4_1 => all_rows::<Q4_1>(job),
            Format::Q5_0 => all_rows::<Q5_0>(job),
            Format::Q8_0 => all_rows::<Q8_0>(job),
            _ => unreachable!("{} has no quant blocks of 32", format.name()),
        }
    }
}
