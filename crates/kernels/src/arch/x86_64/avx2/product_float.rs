//! Float weights: R16 with two registers for `s_0..8` and `s_8..16`, rows and tokens two at a time to hide the latency of the chains.

#![allow(clippy::needless_range_loop, reason = "an index names one register of several arrays")]

use crate::product::tile::{FloatRows, TILE_TOKENS};
use half::{bf16, f16};
use moce_quant::Format;
use std::arch::x86_64::*;

/// How far ahead of the loads weights are asked for at least, into L2.
const PREFETCH_BYTES: usize = 16 << 10;

/// How weights become f32.
trait Load {
    const BYTES: usize;

    /// 8 weights.
    ///
    /// # Safety
    /// `weights` points to 8 weights.
    unsafe fn load(weights: *const u8) -> __m256;

    /// One weight.
    ///
    /// # Safety
    /// `weight` points to a weight.
    unsafe fn load_one(weight: *const u8) -> f32;
}

struct F32;

impl Load for F32 {
    const BYTES: usize = 4;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(weights: *const u8) -> __m256 {
        // SAFETY: the caller's.
        unsafe { _mm256_loadu_ps(weights.cast()) }
    }

    unsafe fn load_one(weight: *const u8) -> f32 {
        // SAFETY: the caller's.
        unsafe { weight.cast::<f32>().read_unaligned() }
    }
}

struct F16;

impl Load for F16 {
    const BYTES: usize = 2;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(weights: *const u8) -> __m256 {
        // SAFETY: the caller's.
        _mm256_cvtph_ps(unsafe { _mm_loadu_si128(weights.cast()) })
    }

    unsafe fn load_one(weight: *const u8) -> f32 {
        // SAFETY: the caller's.
        f16::from_bits(unsafe { weight.cast::<u16>().read_unaligned() }).to_f32()
    }
}

struct Bf16;

impl Load for Bf16 {
    const BYTES: usize = 2;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(weights: *const u8) -> __m256 {
        // SAFETY: the caller's.
        let halves = unsafe { _mm_loadu_si128(weights.cast()) };
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
    }

    unsafe fn load_one(weight: *const u8) -> f32 {
        // SAFETY: the caller's.
        bf16::from_bits(unsafe { weight.cast::<u16>().read_unaligned() }).to_f32()
    }
}

/// The tree that ends R16: lane i takes lane i + 8, then 4, 2, 1.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn reduce(low: __m256, high: __m256) -> f32 {
    let sums = _mm256_add_ps(low, high);
    let sums = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps::<1>(sums));
    let sums = _mm_add_ps(sums, _mm_movehl_ps(sums, sums));
    _mm_cvtss_f32(_mm_add_ss(sums, _mm_movehdup_ps(sums)))
}

/// `R` rows from row `first` on, times `T` tokens.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<F: Load, const R: usize, const T: usize>(job: &FloatRows, first: usize, first_token: usize) {
    let mut tokens = [std::ptr::null(); T];
    tokens.copy_from_slice(&job.tokens[first_token..first_token + T]);
    let mut sums = [[[_mm256_setzero_ps(); 2]; T]; R];
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
                let row = [F::load(source), F::load(source.add(8 * F::BYTES))];
                for t in 0..T {
                    for h in 0..2 {
                        sums[r][t][h] =
                            _mm256_fmadd_ps(row[h], _mm256_loadu_ps(tokens[t].add(k + 8 * h)), sums[r][t][h]);
                    }
                }
            }
        }
        for r in 0..R {
            for t in 0..T {
                let [mut low, mut high] = sums[r][t];
                if whole < job.columns {
                    let mut lanes = [0.0f32; 16];
                    _mm256_storeu_ps(lanes.as_mut_ptr(), low);
                    _mm256_storeu_ps(lanes.as_mut_ptr().add(8), high);
                    for k in whole..job.columns {
                        let weight = F::load_one(weights.add(r * job.row_bytes + k * F::BYTES));
                        lanes[k - whole] = weight.mul_add(tokens[t].add(k).read(), lanes[k - whole]);
                    }
                    (low, high) = (_mm256_loadu_ps(lanes.as_ptr()), _mm256_loadu_ps(lanes.as_ptr().add(8)));
                }
                job.output.add((first_token + t) * job.output_stride + first + r).write(reduce(low, high));
            }
        }
    }
}

/// All rows times `T` tokens, two rows at a time.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn row_tiles<F: Load, const T: usize>(job: &FloatRows, first_token: usize) {
    let mut first = 0;
    while first < job.rows {
        // SAFETY: the caller's.
        unsafe {
            if first + 2 <= job.rows {
                tile::<F, 2, T>(job, first, first_token);
            } else {
                tile::<F, 1, T>(job, first, first_token);
            }
        }
        first += 2;
    }
}

/// Cuts the tile of tokens into pairs and a rest.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn token_tiles<F: Load>(tokens: usize, job: &FloatRows) {
    let mut first = 0;
    while first < tokens {
        // SAFETY: the caller's.
        unsafe {
            if first + 2 <= tokens {
                row_tiles::<F, 2>(job, first);
            } else {
                row_tiles::<F, 1>(job, first);
            }
        }
        first += 2;
    }
}

/// Computes rows times a tile of `tokens` tokens.
///
/// # Safety
/// The job's pointers are valid for what [`FloatRows`] says.
#[target_feature(enable = "avx2,fma,f16c")]
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
