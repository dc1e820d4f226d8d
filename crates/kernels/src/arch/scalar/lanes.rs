//! Lanes in plain Rust: the twin that says what the others must give.

use crate::lanes::{Chunk, LANES, Lanes};
use half::f16;
use std::array::from_fn;

/// Every CPU can do these.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

/// Combines lane i with lane i + w for w = 8, 4, 2, 1.
#[inline(always)]
fn fold(mut a: Chunk, combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            a[i] = combine(a[i], a[i + width]);
        }
        width /= 2;
    }
    a[0]
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// 2^n for n in -126..=127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

impl Lanes for Scalar {
    type F = Chunk;

    const TILE: usize = 1;

    #[inline(always)]
    fn splat(self, x: f32) -> Chunk {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, from: &Chunk) -> Chunk {
        *from
    }

    #[inline(always)]
    fn store(self, a: Chunk, to: &mut Chunk) {
        *to = a;
    }

    #[inline(always)]
    fn load_f16(self, from: &Chunk<u16>) -> Chunk {
        from.map(|bits| f16::from_bits(bits).to_f32())
    }

    #[inline(always)]
    fn store_f16(self, a: Chunk, to: &mut Chunk<u16>) {
        *to = a.map(|x| f16::from_f32(x).to_bits());
    }

    #[inline(always)]
    fn splat_f16(self, bits: u16) -> Chunk {
        [f16::from_bits(bits).to_f32(); LANES]
    }

    #[inline(always)]
    fn load_i8(self, from: &Chunk<i8>) -> Chunk {
        from.map(f32::from)
    }

    #[inline(always)]
    fn add(self, a: Chunk, b: Chunk) -> Chunk {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: Chunk, b: Chunk) -> Chunk {
        from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: Chunk, b: Chunk) -> Chunk {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: Chunk, b: Chunk) -> Chunk {
        from_fn(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn fma(self, a: Chunk, b: Chunk, c: Chunk) -> Chunk {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn neg(self, a: Chunk) -> Chunk {
        a.map(|x| -x)
    }

    #[inline(always)]
    fn max(self, a: Chunk, b: Chunk) -> Chunk {
        from_fn(|i| larger(a[i], b[i]))
    }

    #[inline(always)]
    fn min(self, a: Chunk, b: Chunk) -> Chunk {
        from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn round(self, a: Chunk) -> Chunk {
        a.map(f32::round_ties_even)
    }

    #[inline(always)]
    fn scale(self, a: Chunk, n: Chunk) -> Chunk {
        // Two steps, since 2^n itself may be out of range; the first is exact.
        from_fn(|i| {
            let n = n[i] as i32;
            let half = n >> 1;
            a[i] * power_of_two(half) * power_of_two(n - half)
        })
    }

    #[inline(always)]
    fn first(self, count: usize, a: Chunk, b: Chunk) -> Chunk {
        from_fn(|i| if i < count { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn even(self, a: Chunk) -> Chunk {
        from_fn(|i| a[i & !1])
    }

    #[inline(always)]
    fn odd(self, a: Chunk) -> Chunk {
        from_fn(|i| a[i | 1])
    }

    #[inline(always)]
    fn sum(self, a: Chunk) -> f32 {
        fold(a, |a, b| a + b)
    }

    #[inline(always)]
    fn largest(self, a: Chunk) -> f32 {
        fold(a, larger)
    }
}
