//! Lanes as one AVX-512 register.

use crate::lanes::{Chunk, Lanes, Operation};
use std::arch::x86_64::*;

/// The CPU has AVX-512 F, BW, DQ, VL, VBMI and VNNI. Only [`run`] makes one.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

/// Runs `operation` with everything inlined into code for AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
pub(crate) fn run<O: Operation>(operation: O) -> O::Output {
    operation.run(Avx512(()))
}

/// An intrinsic on registers.
macro_rules! op {
    ($function:ident $(::<$constant:tt>)? ($($operand:expr),+)) => {
        // SAFETY: an `Avx512` exists only where the CPU has this instruction.
        unsafe { $function $(::<$constant>)? ($($operand),+) }
    };
}

/// Combines lane i with lane i + w for w = 8, 4, 2, 1.
macro_rules! fold {
    ($a:expr, $eight:ident, $four:ident) => {
        // SAFETY: an `Avx512` exists only where the CPU has these instructions.
        unsafe {
            let a = $eight(_mm512_castps512_ps256($a), _mm512_extractf32x8_ps::<1>($a));
            let a = $four(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = $four(a, _mm_movehl_ps(a, a));
            let a = $four(a, _mm_movehdup_ps(a));
            _mm_cvtss_f32(a)
        }
    };
}

impl Lanes for Avx512 {
    type F = __m512;

    const TILE: usize = 4;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        op!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn load(self, from: &Chunk) -> Self::F {
        // SAFETY: as in `op!`; sixteen values lie behind the reference.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, a: Self::F, to: &mut Chunk) {
        // SAFETY: as in `load`.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), a) }
    }

    #[inline(always)]
    fn load_f16(self, from: &Chunk<u16>) -> Self::F {
        // SAFETY: as in `load`.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn store_f16(self, a: Self::F, to: &mut Chunk<u16>) {
        // SAFETY: as in `load`.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a)) }
    }

    #[inline(always)]
    fn splat_f16(self, bits: u16) -> Self::F {
        op!(_mm512_cvtph_ps(_mm256_set1_epi16(bits as i16)))
    }

    #[inline(always)]
    fn load_i8(self, from: &Chunk<i8>) -> Self::F {
        // SAFETY: as in `load`.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        op!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn neg(self, a: Self::F) -> Self::F {
        op!(_mm512_xor_ps(a, self.splat(-0.0)))
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        op!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }

    #[inline(always)]
    fn scale(self, a: Self::F, n: Self::F) -> Self::F {
        op!(_mm512_scalef_ps(a, n))
    }

    #[inline(always)]
    fn first(self, count: usize, a: Self::F, b: Self::F) -> Self::F {
        let mask = ((1u32 << count) - 1) as __mmask16;
        op!(_mm512_mask_blend_ps(mask, b, a))
    }

    #[inline(always)]
    fn even(self, a: Self::F) -> Self::F {
        op!(_mm512_moveldup_ps(a))
    }

    #[inline(always)]
    fn odd(self, a: Self::F) -> Self::F {
        op!(_mm512_movehdup_ps(a))
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
