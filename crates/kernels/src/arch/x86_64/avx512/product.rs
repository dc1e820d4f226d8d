//! Quantised weights in [`crate::Layout::Rows16`]: one 32-bit lane a row, so that nothing is summed across lanes.
//!
//! `vpdpbusd` multiplies unsigned weights with signed activation codes and adds four products to each lane; the activation word is
//! broadcast from memory by the instruction itself. A format says how its words become unsigned codes ([`Unpack`]); the loop is the
//! same for all. The sum starts at -offset · Σ activation codes, which takes the weights' offset back exactly.

#![allow(clippy::needless_range_loop, reason = "an index names one register of several arrays")]

use crate::activations::CodeBlock;
use crate::order::Shape;
use crate::product::tile::{Groups, TILE_TOKENS};
use moce_quant::Format;
use std::arch::x86_64::*;
use std::mem::offset_of;

/// Rows in a group.
const ROWS: usize = 16;

/// How far ahead of the loads weights are asked for, into L2. Anything from 12 to 64 KiB does the same on Zen 4.
const PREFETCH_BYTES: usize = 16 << 10;

/// Tokens from which asking ahead pays. Below, loads follow each other closely enough for the hardware to run ahead by itself, and
/// asking only costs (30 against 22 GB/s for one token); above, arithmetic keeps them apart (Q8_0 and 8 tokens: 11 against 23 GB/s).
const PREFETCH_TOKENS: usize = 3;

/// What is added to the signed codes to make them unsigned.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Offset {
    None,
    By8,
    By16,
    By128,
}

/// How a format's words become codes.
trait Unpack {
    const FORMAT: Format;
    const OFFSET: Offset;

    /// Word `j` and word `j + 4` of 16 rows (weights `4·j..` and `16 + 4·j..`) as unsigned codes, for `j < 4`.
    ///
    /// # Safety
    /// `group` points to a group's block of this format.
    unsafe fn words(group: *const u8, j: usize) -> (__m512i, __m512i);
}

/// The part of a format that the loop needs, derived.
trait Sizes: Unpack {
    const SHAPE: Shape = Shape::of(Self::FORMAT).expect("a format with quant blocks");
    const GROUP_BLOCK_BYTES: usize = ROWS * Self::FORMAT.block_bytes();
    const PLANES_AT: usize = 2 * ROWS * Self::SHAPE.scales;
    const WORDS_AT: usize = Self::PLANES_AT + 4 * ROWS * Self::SHAPE.planes;
    const HAS_MINIMUM: bool = Self::SHAPE.scales == 2;
}

impl<F: Unpack> Sizes for F {}

/// Word `j` of 16 rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn load_words<F: Unpack>(group: *const u8, j: usize) -> __m512i {
    // SAFETY: the caller's; word j starts at this offset.
    unsafe { _mm512_loadu_si512(group.add(F::WORDS_AT + 4 * ROWS * j).cast()) }
}

/// The low and the high nibbles of word `j`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn nibbles<F: Unpack>(group: *const u8, j: usize) -> (__m512i, __m512i) {
    let mask = _mm512_set1_epi8(15);
    // SAFETY: the caller's.
    let words = unsafe { load_words::<F>(group, j) };
    (_mm512_and_si512(words, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(words), mask))
}

struct Q4_0;

impl Unpack for Q4_0 {
    const FORMAT: Format = Format::Q4_0;
    const OFFSET: Offset = Offset::By8;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn words(group: *const u8, j: usize) -> (__m512i, __m512i) {
        // SAFETY: the caller's.
        unsafe { nibbles::<Self>(group, j) }
    }
}

struct Q4_1;

impl Unpack for Q4_1 {
    const FORMAT: Format = Format::Q4_1;
    const OFFSET: Offset = Offset::None;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn words(group: *const u8, j: usize) -> (__m512i, __m512i) {
        // SAFETY: the caller's.
        unsafe { nibbles::<Self>(group, j) }
    }
}

struct Q5_0;

impl Unpack for Q5_0 {
    const FORMAT: Format = Format::Q5_0;
    const OFFSET: Offset = Offset::By16;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn words(group: *const u8, j: usize) -> (__m512i, __m512i) {
        let fifth = _mm512_set1_epi8(16);
        // SAFETY: the caller's.
        let (low, high, planes) = unsafe {
            let (low, high) = nibbles::<Self>(group, j);
            (low, high, _mm512_loadu_si512(group.add(Self::PLANES_AT).cast()))
        };
        // Plane j moves up to bit 4, plane j + 4 down to it; what other bits the 16-bit shift brings is masked.
        let for_low = _mm512_sll_epi16(planes, _mm_cvtsi32_si128(4 - j as i32));
        let for_high = _mm512_srl_epi16(planes, _mm_cvtsi32_si128(j as i32));
        const OR_AND: i32 = 0xf0 | 0xcc & 0xaa;
        (
            _mm512_ternarylogic_epi32::<OR_AND>(low, for_low, fifth),
            _mm512_ternarylogic_epi32::<OR_AND>(high, for_high, fifth),
        )
    }
}

struct Q8_0;

impl Unpack for Q8_0 {
    const FORMAT: Format = Format::Q8_0;
    const OFFSET: Offset = Offset::By128;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn words(group: *const u8, j: usize) -> (__m512i, __m512i) {
        // SAFETY: the caller's.
        unsafe { (load_words::<Self>(group, j), load_words::<Self>(group, j + 4)) }
    }
}

/// A field of a code block, in all lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn broadcast(block: *const CodeBlock, offset: usize) -> __m512i {
    // SAFETY: the caller's: `block` points to a code block, `offset + 4` is inside it.
    _mm512_set1_epi32(unsafe { block.cast::<u8>().add(offset).cast::<i32>().read() })
}

/// The micro-kernel: row groups of format `F` times `T` tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn tile<F: Unpack, const T: usize>(job: &Groups) {
    let mut tokens = [std::ptr::null(); T];
    tokens.copy_from_slice(&job.tokens[..T]);
    let valid: __mmask16 = ((1u32 << job.group_rows) - 1) as __mmask16;
    for group in 0..job.groups {
        // SAFETY: the caller's: the groups' weights, the tokens' code blocks and the outputs are as `Groups` says; the prefetch
        // may point outside, which is allowed.
        unsafe {
            let mut weights = job.weights.add(group * job.group_bytes);
            let output = job.output.add(group * ROWS);
            let mut sums = [_mm512_setzero_ps(); T];
            if job.resume {
                for t in 0..T {
                    sums[t] = _mm512_maskz_loadu_ps(valid, output.add(t * job.output_stride));
                }
            }
            for block in 0..job.blocks {
                if T >= PREFETCH_TOKENS && job.from_memory {
                    for line in 0..F::GROUP_BLOCK_BYTES.div_ceil(64) {
                        _mm_prefetch::<_MM_HINT_T1>(weights.wrapping_add(PREFETCH_BYTES + 64 * line).cast());
                    }
                }
                let scale = _mm512_cvtph_ps(_mm256_loadu_si256(weights.cast()));
                let mut dots = [_mm512_setzero_si512(); T];
                for t in 0..T {
                    let activations = tokens[t].add(block);
                    dots[t] = match F::OFFSET {
                        Offset::None => _mm512_setzero_si512(),
                        Offset::By8 => broadcast(activations, offset_of!(CodeBlock, minus_8_sums)),
                        Offset::By16 => {
                            let minus_8_sums = broadcast(activations, offset_of!(CodeBlock, minus_8_sums));
                            _mm512_add_epi32(minus_8_sums, minus_8_sums)
                        }
                        Offset::By128 => broadcast(activations, offset_of!(CodeBlock, minus_128_sums)),
                    };
                }
                for j in 0..4 {
                    let (low, high) = F::words(weights, j);
                    for t in 0..T {
                        dots[t] = _mm512_dpbusd_epi32(dots[t], low, broadcast(tokens[t].add(block), 4 * j));
                    }
                    for t in 0..T {
                        dots[t] = _mm512_dpbusd_epi32(dots[t], high, broadcast(tokens[t].add(block), 16 + 4 * j));
                    }
                }
                for t in 0..T {
                    let activation_scale = broadcast(tokens[t].add(block), offset_of!(CodeBlock, scale));
                    let scale = _mm512_mul_ps(scale, _mm512_castsi512_ps(activation_scale));
                    sums[t] = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(dots[t]), sums[t]);
                }
                if F::HAS_MINIMUM {
                    let minimum = _mm512_cvtph_ps(_mm256_loadu_si256(weights.add(2 * ROWS).cast()));
                    for t in 0..T {
                        let scaled_sum = broadcast(tokens[t].add(block), offset_of!(CodeBlock, scaled_sum));
                        sums[t] = _mm512_fmadd_ps(minimum, _mm512_castsi512_ps(scaled_sum), sums[t]);
                    }
                }
                weights = weights.add(F::GROUP_BLOCK_BYTES);
            }
            for t in 0..T {
                _mm512_mask_storeu_ps(output.add(t * job.output_stride), valid, sums[t]);
            }
        }
    }
}

/// Picks the micro-kernel of a tile size.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn tiles<F: Unpack>(tokens: usize, job: &Groups) {
    const { assert!(TILE_TOKENS == 8) };
    // SAFETY: the caller's.
    unsafe {
        match tokens {
            1 => tile::<F, 1>(job),
            2 => tile::<F, 2>(job),
            3 => tile::<F, 3>(job),
            4 => tile::<F, 4>(job),
            5 => tile::<F, 5>(job),
            6 => tile::<F, 6>(job),
            7 => tile::<F, 7>(job),
            8 => tile::<F, 8>(job),
            _ => unreachable!("a tile of {tokens} tokens"),
        }
    }
}

/// Computes row groups times a tile of `tokens` tokens.
///
/// # Safety
/// The job's pointers are valid for what [`Groups`] says.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) unsafe fn groups(format: Format, tokens: usize, job: &Groups) {
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
