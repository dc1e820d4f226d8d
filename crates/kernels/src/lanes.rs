//! Sixteen lanes of f32: what every operation but the matrix products is written in, once for all instruction sets.
//!
//! An [`Operation`] is generic over [`Lanes`]; [`Cpu::on_lanes`] runs it inside a function compiled for the instruction set in
//! use, into which all of it is inlined (so `#[inline(always)]` on every function on the way is part of the design). Each method is
//! one rounding, or none, and the same on every instruction set: the same bits follow without further care.
//!
//! NaN: where operands are NaN the result is, but its sign and payload are not fixed.

use crate::{Cpu, Isa, arch};

/// Lanes in one vector; R16's number of partial sums.
pub(crate) const LANES: usize = 16;

/// Sixteen values in memory.
pub(crate) type Chunk<T = f32> = [T; LANES];

/// Operations on sixteen lanes. A value of this type proves that the CPU can do them.
pub(crate) trait Lanes: Copy + Send + Sync {
    /// Sixteen f32 in registers.
    type F: Copy;

    /// Queries that attention takes together: 4 where registers hold 32 vectors, 6 where they hold 8 (a sum for each, and what is
    /// read serves all of them), 1 where they hold none.
    const TILE: usize;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// From memory of any alignment.
    fn load(self, from: &Chunk) -> Self::F;
    /// To memory of any alignment.
    fn store(self, a: Self::F, to: &mut Chunk);
    /// From IEEE halfs: exact.
    fn load_f16(self, from: &Chunk<u16>) -> Self::F;
    /// To IEEE halfs, ties to even.
    fn store_f16(self, a: Self::F, to: &mut Chunk<u16>);
    /// All lanes the IEEE half with these bits.
    fn splat_f16(self, bits: u16) -> Self::F;
    /// From signed bytes: exact.
    fn load_i8(self, from: &Chunk<i8>) -> Self::F;

    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The other sign.
    fn neg(self, a: Self::F) -> Self::F;
    /// `a > b ? a : b`: where either is NaN, `b`.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? a : b`: where either is NaN, `b`.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// `a · 2^n`, rounded once, for integers n in -160..=130 and a in [0.5, 2]; NaN where `a` is.
    fn scale(self, a: Self::F, n: Self::F) -> Self::F;
    /// The first `count` lanes of `a`, the others of `b`.
    fn first(self, count: usize, a: Self::F, b: Self::F) -> Self::F;
    /// Lanes 0 0 2 2 4 4 ...
    fn even(self, a: Self::F) -> Self::F;
    /// Lanes 1 1 3 3 5 5 ...
    fn odd(self, a: Self::F) -> Self::F;
    /// R16's last part: for w = 8, 4, 2, 1: `s_i += s_(i+w)`; s_0.
    fn sum(self, a: Self::F) -> f32;
    /// The largest lane, combined as [`Lanes::sum`] combines.
    fn largest(self, a: Self::F) -> f32;

    /// Up to sixteen values; the lanes after them are `rest`.
    #[inline(always)]
    fn load_first(self, from: &[f32], rest: f32) -> Self::F {
        let mut chunk = [rest; LANES];
        chunk[..from.len()].copy_from_slice(from);
        self.load(&chunk)
    }

    /// The first `to.len()` lanes, at most sixteen.
    #[inline(always)]
    fn store_first(self, a: Self::F, to: &mut [f32]) {
        let mut chunk = [0.0; LANES];
        self.store(a, &mut chunk);
        to.copy_from_slice(&chunk[..to.len()]);
    }
}

/// Something to compute with lanes of any instruction set.
pub(crate) trait Operation {
    /// What it gives.
    type Output;

    /// Computes it; implementations are `#[inline(always)]`.
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

impl Cpu {
    /// Runs `operation` compiled for the instruction set in use.
    pub(crate) fn on_lanes<O: Operation>(&self, operation: O) -> O::Output {
        match self.isa {
            Isa::Scalar => operation.run(arch::scalar::lanes::Scalar),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Cpu::new` holds only what `Isa::is_available` found, which is all that the function is compiled for.
            Isa::Avx2 => unsafe { arch::x86_64::avx2::lanes::run(operation) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx512Vnni => unsafe { arch::x86_64::avx512::lanes::run(operation) },
            #[cfg(not(target_arch = "x86_64"))]
            isa => unreachable!("{isa} was found to be available"),
        }
    }
}

/// R16(a, b) for slices of one length.
#[inline(always)]
pub(crate) fn dot<L: Lanes>(l: L, a: &[f32], b: &[f32]) -> f32 {
    debug_assert_eq!(a.len(), b.len());
    let (a, a_tail) = a.as_chunks::<LANES>();
    let (b, b_tail) = b.as_chunks::<LANES>();
    let mut s = l.splat(0.0);
    for (a, b) in a.iter().zip(b) {
        s = l.fma(l.load(a), l.load(b), s);
    }
    if !a_tail.is_empty() {
        let sum = l.fma(l.load_first(a_tail, 0.0), l.load_first(b_tail, 0.0), s);
        s = l.first(a_tail.len(), sum, s);
    }
    l.sum(s)
}

/// The largest value of whole chunks and the fewer than sixteen after them; -inf for none.
#[inline(always)]
pub(crate) fn largest<'a, L: Lanes>(l: L, chunks: impl Iterator<Item = &'a Chunk>, tail: &[f32]) -> f32 {
    let mut m = l.splat(f32::NEG_INFINITY);
    for a in chunks {
        m = l.max(l.load(a), m);
    }
    l.largest(l.max(l.load_first(tail, f32::NEG_INFINITY), m))
}

#[cfg(test)]
mod tests;
