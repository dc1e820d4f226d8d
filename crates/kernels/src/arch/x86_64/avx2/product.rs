//! Quantised weights in [`crate::Layout::Rows8`]: one 32-bit lane a row, so that nothing is summed across lanes.
//!
//! `maddubs` multiplies unsigned weights with signed activation codes and adds neighbours in 16 bits, saturating; [`Codes`] says for
//! each format why nothing saturates. A format says how its words become codes ([`Unpack`]); the loop is the same for all.

#![allow(clippy::needless_range_loop, reason = "an index names one register of several arrays")]

use crate::activations::CodeBlock;
use crate::order::Shape;
use crate::product::tile::{Groups, TILE_TOKENS};
use crate::split;
use moce_quant::Format;
use std::arch::x86_64::*;
use std::mem::offset_of;

/// Rows in a group.
const ROWS: usize = 8;

/// Tokens whose accumulators fit the 16 registers. Four spill, and do a tenth less.
const TOKENS_MAX: usize = 3;

/// How far ahead of the loads weights are asked for, into L2.
const PREFETCH_BYTES: usize = 16 << 10;

/// What the codes are, and so how their products are added. Activation codes are in [-127, 127].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Codes {
    /// 0 to 15: 8 words · 2 · 15 · 127 = 30,480 fits 16 bits.
    FourBits,
    /// 0 to 31: 4 words · 2 · 31 · 127 = 31,496 fits 16 bits, so two halves are added in 32.
    FiveBits,
    /// -128 to 127: the magnitude is multiplied with the activation code that takes the sign; 2 · 128 · 127 = 32,512 fits, a second
    /// word does not.
    Signed,
}

/// How a format's words become codes.
trait Unpack {
    const FORMAT: Format;
    const CODES: Codes;

    /// Word `j` and word `j + 4` of 8 rows (weights `4·j..` and `16 + 4·j..`) as codes, for `j < 4`.
    ///
    /// # Safety
    /// `group` points to a group's block of this format.
    unsafe fn words(group: *const u8, j: usize) -> (__m256i, __m256i);
}

/// The part of a format that the loop needs, derived.
trait Sizes: Unpack {
    const SHAPE: Shape = Shape::of(Self::FORMAT).expect("a format with quant blocks");
    const GROUP_BLOCK_BYTES: usize = ROWS * Self::FORMAT.block_bytes();
    const PLANES_AT: usize = 2 * ROWS * Self::SHAPE.scales;
    const WORDS_AT: usize = Self::PLANES_AT + 4 * ROWS * Self::SHAPE.planes;
    const HAS_MINIMUM: bool = Self::SHAPE.scales == 2;
    /// Words (of each nibble) that are added in 16 bits before they go on to 32.
    const WORDS_IN_16_BITS: usize = match Self::CODES {
        Codes::FourBits => 4,
        Codes::FiveBits => 2,
        Codes::Signed => 1,
    };
}

impl<F: Unpack> Sizes for F {}

/// Word `j` of 8 rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load_words<F: Unpack>(group: *const u8, j: usize) -> __m256i {
    // SAFETY: the caller's; word j starts at this offset.
    unsafe { _mm256_loadu_si256(group.add(F::WORDS_AT + 4 * ROWS * j).cast()) }
}

/// The low and the high nibbles of word `j`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn nibbles<F: Unpack>(group: *const u8, j: usize) -> (__m256i, __m256i) {
    let mask = _mm256_set1_epi8(15);
    // SAFETY: the caller's.
    let words = unsafe { load_words::<F>(group, j) };
    (_mm256_and_si256(words, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(words), mask))
}

struct Q4_0;

impl Unpack for Q4_0 {
    const FORMAT: Format = Format::Q4_0;
    const CODES: Codes = Codes::FourBits;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn words(group: *const u8, j: usize) -> (__m256i, __m256i) {
        // SAFETY: the caller's.
        unsafe { nibbles::<Self>(group, j) }
    }
}

struct Q4_1;

impl Unpack for Q4_1 {
    const FORMAT: Format = Format::Q4_1;
    const CODES: Codes = Codes::FourBits;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn words(group: *const u8, j: usize) -> (__m256i, __m256i) {
        // SAFETY: the caller's.
        unsafe { nibbles::<Self>(group, j) }
    }
}

struct Q5_0;

impl Unpack for Q5_0 {
    const FORMAT: Format = Format::Q5_0;
    const CODES: Codes = Codes::FiveBits;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn words(group: *const u8, j: usize) -> (__m256i, __m256i) {
        let fifth = _mm256_set1_epi8(16);
        // SAFETY: the caller's.
        let (low, high, planes) = unsafe {
            let (low, high) = nibbles::<Self>(group, j);
            (low, high, _mm256_loadu_si256(group.add(Self::PLANES_AT).cast()))
        };
        // Plane j moves up to bit 4, plane j + 4 down to it; what other bits the 16-bit shift brings is masked.
        let for_low = _mm256_sll_epi16(planes, _mm_cvtsi32_si128(4 - j as i32));
        let for_high = _mm256_srl_epi16(planes, _mm_cvtsi32_si128(j as i32));
        (
            _mm256_or_si256(low, _mm256_and_si256(for_low, fifth)),
            _mm256_or_si256(high, _mm256_and_si256(for_high, fifth)),
        )
    }
}

struct Q8_0;

impl Unpack for Q8_0 {
    const FORMAT: Format = Format::Q8_0;
    const CODES: Codes = Codes::Signed;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn words(group: *const u8, j: usize) -> (__m256i, __m256i) {
        // SAFETY: the caller's.
        unsafe { (load_words::<Self>(group, j), load_words::<Self>(group, j + 4)) }
    }
}

/// A field of a code block, in all lanes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn broadcast(block: *const CodeBlock, offset: usize) -> __m256i {
    // SAFETY: the caller's: `block` points to a code block, `offset + 4` is inside it.
    _mm256_set1_epi32(unsafe { block.cast::<u8>().add(offset).cast::<i32>().read() })
}

/// Products of four codes a lane, neighbours added in 16 bits.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn multiply<F: Unpack>(weights: __m256i, activations: __m256i) -> __m256i {
    match F::CODES {
        Codes::FourBits | Codes::FiveBits => _mm256_maddubs_epi16(weights, activations),
        Codes::Signed => _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(activations, weights)),
    }
}

/// Dot products of the weights themselves: without the 8 or 16 that unsigned codes of some formats are above them.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn without_offset(format: Format, dots: __m256i, minus_8_sums: __m256i) -> __m256i {
    match format {
        Format::Q4_0 => _mm256_add_epi32(dots, minus_8_sums),
        Format::Q5_0 => _mm256_add_epi32(dots, _mm256_slli_epi32::<1>(minus_8_sums)),
        _ => dots,
    }
}

/// The micro-kernel: row groups of format `F` times `T` tokens from token `first` of the tile on. Asking ahead is a matter of the
/// type, for it costs a fifth of the speed where the weights are cached already, and so does a condition in the loop.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<F: Unpack, const T: usize, const PREFETCH: bool>(job: &Groups, first: usize) {
    let mut tokens = [std::ptr::null(); T];
    tokens.copy_from_slice(&job.tokens[first..first + T]);
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let valid = _mm256_cmpgt_epi32(_mm256_set1_epi32(job.group_rows as i32), lanes);
    let ones = _mm256_set1_epi16(1);
    for group in 0..job.groups {
        // SAFETY: the caller's: the groups' weights, the tokens' code blocks and the outputs are as `Groups` says; the prefetch
        // may point outside, which is allowed.
        unsafe {
            let mut weights = job.weights.add(group * job.group_bytes);
            let output = job.output.add(first * job.output_stride + group * ROWS);
            let mut sums = [_mm256_setzero_ps(); T];
            if job.resume {
                for t in 0..T {
                    sums[t] = _mm256_maskload_ps(output.add(t * job.output_stride), valid);
                }
            }
            for block in 0..job.blocks {
                if PREFETCH {
                    for line in 0..F::GROUP_BLOCK_BYTES.div_ceil(64) {
                        _mm_prefetch::<_MM_HINT_T1>(weights.wrapping_add(PREFETCH_BYTES + 64 * line).cast());
                    }
                }
                let mut dots = [_mm256_setzero_si256(); T];
                for part in 0..4 / F::WORDS_IN_16_BITS {
                    let mut pairs = [_mm256_setzero_si256(); T];
                    for j in part * F::WORDS_IN_16_BITS..(part + 1) * F::WORDS_IN_16_BITS {
                        let (low, high) = F::words(weights, j);
                        for t in 0..T {
                            let low = multiply::<F>(low, broadcast(tokens[t].add(block), 4 * j));
                            let high = multiply::<F>(high, broadcast(tokens[t].add(block), 16 + 4 * j));
                            if F::CODES == Codes::Signed {
                                let low = _mm256_madd_epi16(low, ones);
                                dots[t] =
                                    _mm256_add_epi32(dots[t], _mm256_add_epi32(low, _mm256_madd_epi16(high, ones)));
                            } else {
                                pairs[t] = _mm256_add_epi16(pairs[t], _mm256_add_epi16(low, high));
                            }
                        }
                    }
                    if F::CODES != Codes::Signed {
                        for t in 0..T {
                            dots[t] = _mm256_add_epi32(dots[t], _mm256_madd_epi16(pairs[t], ones));
                        }
                    }
                }
                let scale = _mm256_cvtph_ps(_mm_loadu_si128(weights.cast()));
                for t in 0..T {
                    let activations = tokens[t].add(block);
                    let minus_8_sums = broadcast(activations, offset_of!(CodeBlock, minus_8_sums));
                    let dot = without_offset(F::FORMAT, dots[t], minus_8_sums);
                    let activation_scale = broadcast(activations, offset_of!(CodeBlock, scale));
                    let scale = _mm256_mul_ps(scale, _mm256_castsi256_ps(activation_scale));
                    sums[t] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dot), sums[t]);
                }
                if F::HAS_MINIMUM {
                    let minimum = _mm256_cvtph_ps(_mm_loadu_si128(weights.add(2 * ROWS).cast()));
                    for t in 0..T {
                        let scaled_sum = broadcast(tokens[t].add(block), offset_of!(CodeBlock, scaled_sum));
                        sums[t] = _mm256_fmadd_ps(minimum, _mm256_castsi256_ps(scaled_sum), sums[t]);
                    }
                }
                weights = weights.add(F::GROUP_BLOCK_BYTES);
            }
            for t in 0..T {
                let output = output.add(t * job.output_stride);
                if job.group_rows == ROWS {
                    _mm256_storeu_ps(output, sums[t]);
                } else {
                    _mm256_maskstore_ps(output, valid, sums[t]);
                }
            }
        }
    }
}

/// Cuts the tile of tokens into what fits the registers.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tiles<F: Unpack>(tokens: usize, job: &Groups) {
    const { assert!(TOKENS_MAX == 3) };
    let parts = tokens.div_ceil(TOKENS_MAX);
    for part in 0..parts {
        let range = split(tokens, parts, part);
        // SAFETY: the caller's.
        unsafe {
            match range.len() {
                1 => tile::<F, 1, false>(job, range.start),
                2 => tile::<F, 2, false>(job, range.start),
                // With fewer tokens the hardware runs ahead by itself.
                _ if job.from_memory && part == 0 => tile::<F, 3, true>(job, range.start),
                _ => tile::<F, 3, false>(job, range.start),
            }
        }
    }
}

/// Computes row groups times a tile of `tokens` tokens.
///
/// # Safety
/// The job's pointers are valid for what [`Groups`] says.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn groups(format: Format, tokens: usize, job: &Groups) {
    assert!(tokens <= TILE_TOKENS);
    // SAFETY: the caller's.
    unsafe {
        match format {
            Format::Q4_0 => tiles::<Q4_0>(tokens, job),
            Format::Q4_1 => tiles::<Q4_1>(tokens, job),
            Format::Q5_0 => tiles::<Q5_0>(tokens, job),
            Format::Q8_0 => tiles::<Q8_0>(tokens, job),
            _ => unreachable!("{} has no kernel order", format.name()),
        }
    }
}
