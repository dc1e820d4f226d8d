//! Lanes as two AVX2 registers: lanes 0 to 7, then 8 to 15.

use crate::lanes::{Chunk, Lanes, Operation};
use std::arch::x86_64::*;

/// The CPU has AVX2, FMA and F16C. Only [`run`] makes one.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

/// Runs `operation` with everything inlined into code for AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn run<O: Operation>(operation: O) -> O::Output {
    operation.run(Avx2(()))
}

/// Applies an intrinsic to both halves.
macro_rules! both {
    ($function:ident $(::<$constant:tt>)? ($($operand:expr),+)) => {
        // SAFETY: an `Avx2` exists only where the CPU has these instructions.
        unsafe { ($function $(::<$constant>)? ($($operand.0),+), $function $(::<$constant>)? ($($operand.1),+)) }
    };
}

/// Combines lane i with lane i + w for w = 8, 4, 2, 1.
macro_rules! fold {
    ($a:expr, $eight:ident, $four:ident) => {
        // SAFETY: an `Avx2` exists only where the CPU has these instructions.
        unsafe {
            let a = $eight($a.0, $a.1);
            let a = $four(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = $four(a, _mm_movehl_ps(a, a));
            let a = $four(a, _mm_movehdup_ps(a));
            _mm_cvtss_f32(a)
        }
    };
}

impl Lanes for Avx2 {
    type F = (__m256, __m256);

    const TILE: usize = 6;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        // SAFETY: an `Avx2` exists only where the CPU has these instructions.
        let a = unsafe { _mm256_set1_ps(x) };
        (a, a)
    }

    #[inline(always)]
    fn load(self, from: &Chunk) -> Self::F {
        let at = from.as_ptr();
        // SAFETY: as in `splat`; 8 + 8 values lie behind the reference.
        unsafe { (_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))) }
    }

    #[inline(always)]
    fn store(self, a: Self::F, to: &mut Chunk) {
        let at = to.as_mut_ptr();
        // SAFETY: as in `load`.
        unsafe {
            _mm256_storeu_ps(at, a.0);
            _mm256_storeu_ps(at.add(8), a.1);
        }
    }

    #[inline(always)]
    fn load_f16(self, from: &Chunk<u16>) -> Self::F {
        let at = from.as_ptr();
        // SAFETY: as in `load`.
        unsafe { (_mm256_cvtph_ps(_mm_loadu_si128(at.cast())), _mm256_cvtph_ps(_mm_loadu_si128(at.add(8).cast()))) }
    }

    #[inline(always)]
    fn store_f16(self, a: Self::F, to: &mut Chunk<u16>) {
        let at = to.as_mut_ptr();
        // SAFETY: as in `load`.
        unsafe {
            _mm_storeu_si128(at.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a.0));
            _mm_storeu_si128(at.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a.1));
        }
    }

    #[inline(always)]
    fn splat_f16(self, bits: u16) -> Self::F {
        // SAFETY: as in `splat`.
        let a = unsafe { _mm256_cvtph_ps(_mm_set1_epi16(bits as i16)) };
        (a, a)
    }

    #[inline(always)]
    fn load_i8(self, from: &Chunk<i8>) -> Self::F {
        // SAFETY: as in `load`.
        unsafe {
            let a = _mm_loadu_si128(from.as_ptr().cast());
            let high = _mm_unpackhi_epi64(a, a);
            (_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(a)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high)))
        }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        both!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn neg(self, a: Self::F) -> Self::F {
        both!(_mm256_xor_ps(a, self.splat(-0.0)))
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_min_ps(a, b))
    }

    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        both!(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }

    #[inline(always)]
    fn scale(self, a: Self::F, n: Self::F) -> Self::F {
        (scale_eight(a.0, n.0), scale_eight(a.1, n.1))
    }

    #[inline(always)]
    fn first(self, count: usize, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: as in `splat`.
        unsafe {
            let count = _mm256_set1_epi32(count as i32);
            let low = _mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
            let high = _mm256_cmpgt_epi32(count, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15));
            (
                _mm256_blendv_ps(b.0, a.0, _mm256_castsi256_ps(low)),
                _mm256_blendv_ps(b.1, a.1, _mm256_castsi256_ps(high)),
            )
        }
    }

    #[inline(always)]
    fn even(self, a: Self::F) -> Self::F {
        both!(_mm256_moveldup_ps(a))
    }

    #[inline(always)]
    fn odd(self, a: Self::F) -> Self::F {
        both!(_mm256_movehdup_ps(a))
    }

    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        fold!(a, _mm256_add_ps, _mm_add_ps)
    }

    #[inline(always)]
    fn largest(self, a: Self::F) -> f32 {
        fold!(a, _mm256_max_ps, _mm_max_ps)
    }
}

/// Two steps, since 2^n itself may be out of range; the first is exact.
#[inline(always)]
fn scale_eight(a: __m256, n: __m256) -> __m256 {
    // SAFETY: an `Avx2` exists only where the CPU has these instructions, and only its methods call this.
    unsafe {
        let n = _mm256_cvtps_epi32(n);
        let half = _mm256_srai_epi32::<1>(n);
        let bias = _mm256_set1_epi32(127);
        let power = |n| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, bias)));
        _mm256_mul_ps(_mm256_mul_ps(a, power(half)), power(_mm256_sub_epi32(n, half)))
    }
}
