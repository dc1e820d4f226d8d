//! Float weights: R16 with one lane an `s_i`, several rows and tokens at a time to hide the latency of the chains.

#![allow(clippy::needless_range_loop, reason = "an index names one register of several arrays")]

use crate::product::tile::{FloatRows, TILE_TOKENS};
use moce_quant::Format;
use std::arch::x86_64::*;

/// How far ahead of the loads weights are asked for at least, into L2.
const PREFETCH_BYTES: usize = 16 << 10;

/// How 16 weights become f32.
trait Load {
    const BYTES: usize;

    /// # Safety
    /// `weights` points to 16 weights.
    unsafe fn load(weights: *const u8) -> __m512;

    /// The same for the lanes in `mask`; others are 0.
    ///
    /// # Safety
    /// The weights in `mask` are readable.
    unsafe fn load_some(weights: *const u8, mask: __mmask16) -> __m512;
}

struct F32;

impl Load for F32 {
    const BYTES: usize = 4;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn load(weights: *const u8) -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_loadu_ps(weights.cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn load_some(weights: *const u8, mask: __mmask16) -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_maskz_loadu_ps(mask, weights.cast()) }
    }
}

struct F16;

impl Load for F16 {
    const BYTES: usize = 2;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn load(weights: *const u8) -> __m512 {
        // SAFETY: the caller's.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(weights.cast()) })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn load_some(weights: *const u8, mask: __mmask16) -> __m512 {
        // SAFETY: the caller's.
        _mm512_cvtph_ps(unsafe { _mm256_maskz_loadu_epi16(mask, weights.cast()) })
    }
}

struct Bf16;

/// The upper halves of singles.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn from_upper_halves(halves: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
}

impl Load for Bf16 {
    const BYTES: usize = 2;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn load(weights: *const u8) -> __m512 {
        // SAFETY: the caller's.
        from_upper_halves(unsafe { _mm256_loadu_si256(weights.cast()) })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn load_some(weights: *const u8, mask: __mmask16) -> __m512 {
        // SAFETY: the caller's.
        from_upper_halves(unsafe { _mm256_maskz_loadu_epi16(mask, weights.cast()) })
    }
}

/// The tree that ends R16: lane i takes lane i + 8, then 4, 2, 1.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn reduce(sums: __m512) -> f32 {
    let sums = _mm256_add_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps::<1>(sums));
    let sums = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps::<1>(sums));
    let sums = _mm_add_ps(sums, _mm_movehl_ps(sums, sums));
    _mm_cvtss_f32(_mm_add_ss(sums, _mm_movehdup_ps(sums)))
}

/// `R` rows from row `first` on, times `T` tokens.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn tile<F: Load, const R: usize, const T: usize>(job: &FloatRows, first: usize, first_token: usize) {
    let mut tokens = [std::ptr::null(); T];
    tokens.copy_from_slice(&job.tokens[first_token..first_token + T]);
    let mut sums = [[_mm512_setzero_ps(); T]; R];
    // SAFETY: the caller's: rows, tokens and outputs are as `FloatRows` says; the prefetch may point outside.
    unsafe {
        let weights = job.weights.add(first * job.row_bytes);
        let whole = job.columns / 16 * 16;
        // Behind these R rows, or each of them would ask for what another one is reading.
        let ahead = PREFETCH_BYTES.max(R * job.row_bytes);
        for k in (0..whole).step_by(16) {
            for r in 0..R {
                let source = weights.add(r * job.row_bytes + k * F::BYTES);
                _mm_prefetch::<_MM_HINT_T1>(source.wrapping_add(ahead).cast());
                let row = F::load(source);
                for t in 0..T {
                    sums[r][t] = _mm512_fmadd_ps(row, _mm512_loadu_ps(tokens[t].add(k)), sums[r][t]);
                }
            }
        }
        if whole < job.columns {
            // Lanes without a term keep their sum: adding a product with zero could lose the sign of a zero.
            let mask = ((1u32 << (job.columns - whole)) - 1) as __mmask16;
            for r in 0..R {
                let row = F::load_some(weights.add(r * job.row_bytes + whole * F::BYTES), mask);
                for t in 0..T {
                    let values = _mm512_maskz_loadu_ps(mask, tokens[t].add(whole));
                    sums[r][t] = _mm512_mask3_fmadd_ps(row, values, sums[r][t], mask);
                }
            }
        }
        for r in 0..R {
            for t in 0..T {
                job.output.add((first_token + t) * job.output_stride + first + r).write(reduce(sums[r][t]));
            }
        }
    }
}

/// All rows times `T` tokens, four rows at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn row_tiles<F: Load, const T: usize>(job: &FloatRows, first_token: usize) {
    let mut first = 0;
    while first < job.rows {
        // SAFETY: the caller's.
        unsafe {
            if first + 4 <= job.rows {
                tile::<F, 4, T>(job, first, first_token);
                first += 4;
            } else {
                tile::<F, 1, T>(job, first, first_token);
                first += 1;
            }
        }
    }
}

/// Cuts the tile of tokens into fours and a rest.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn token_tiles<F: Load>(tokens: usize, job: &FloatRows) {
    let mut first = 0;
    while first < tokens {
        let count = (tokens - first).min(4);
        // SAFETY: the caller's.
        unsafe {
            match count {
                1 => row_tiles::<F, 1>(job, first),
                2 => row_tiles::<F, 2>(job, first),
                3 => row_tiles::<F, 3>(job, first),
                _ => row_tiles::<F, 4>(job, first),
            }
        }
        first += count;
    }
}

/// Computes rows times a tile of `tokens` tokens.
///
/// # Safety
/// The job's pointers are valid for what [`FloatRows`] says.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn rows(format: Format, tokens: usize, job: &FloatRows) {
    assert!(tokens <= TILE_TOKENS);
    // SAFETY: the caller's.
    unsafe {
        match format {
            Format::F32 => token_tiles::<F32>(tokens, job),
            Format::F16 => token_tiles::<F16>(tokens, job),
            Format::BF16 => token_tiles::<Bf16>(tokens, job),
            _ => unreachable!("{} is no float format", format.name()),
        }
    }
}
