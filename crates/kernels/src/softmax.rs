//! Softmax of one row, and the pieces of it that attention uses.

use crate::Cpu;
use crate::lanes::{Chunk, LANES, Lanes, Operation, largest};
use crate::math::exp_lanes;

impl Cpu {
    /// `x = exp(x - max(x)) / Σ exp(x - max(x))`, over all of `x`. A NaN or +inf anywhere makes every result NaN.
    pub fn softmax(&self, x: &mut [f32]) {
        self.on_lanes(Softmax { x });
    }
}

struct Softmax<'a> {
    x: &'a mut [f32],
}

impl Operation for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (x, tail) = self.x.as_chunks_mut::<LANES>();
        let m = largest(l, x.iter(), tail);
        let z = l.splat(exponentials(l, x.iter_mut(), tail, m));
        for x in x {
            l.store(l.div(l.load(x), z), x);
        }
        l.store_first(l.div(l.load_first(tail, 0.0), z), tail);
    }
}

/// `x = exp(x - m)` for whole chunks and the fewer than sixteen after them; returns their sum, R16(x, 1).
#[inline(always)]
pub(crate) fn exponentials<'a, L: Lanes>(
    l: L,
    chunks: impl Iterator<Item = &'a mut Chunk>,
    tail: &mut [f32],
    m: f32,
) -> f32 {
    let m = l.splat(m);
    let mut s = l.splat(0.0);
    for x in chunks {
        let e = exp_lanes(l, l.sub(l.load(x), m));
        l.store(e, x);
        s = l.add(s, e);
    }
    if !tail.is_empty() {
        let e = exp_lanes(l, l.sub(l.load_first(tail, 0.0), m));
        l.store_first(e, tail);
        s = l.first(tail.len(), l.add(s, e), s);
    }
    l.sum(s)
}

#[cfg(test)]
mod tests {
    use crate::math;
    use crate::twin::{Random, assert_bits, on_every_cpu};

    #[test]
    fn equal_bits_everywhere_in_the_written_order_and_near_the_truth() {
        let mut random = Random::new(3);
        for len in [1, 2, 15, 16, 17, 60, 1000] {
            let mut x = random.normal(len);
            x.iter_mut().for_each(|x| *x *= 8.0);
            if len > 2 {
                x[1] = f32::NEG_INFINITY;
                x[2] = -1e30;
            }
            let out = on_every_cpu(|cpu| {
                let mut x = x.clone();
                cpu.softmax(&mut x);
                x
            });
            let m = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let e: Vec<f32> = x.iter().map(|x| math::exp(x - m)).collect();
            let mut s = [0f32; 16];
            e.iter().enumerate().for_each(|(k, e)| s[k % 16] += e);
            for w in [8, 4, 2, 1] {
                for i in 0..w {
                    s[i] += s[i + w];
                }
            }
            assert_bits(&out, &e.iter().map(|e| e / s[0]).collect::<Vec<_>>());
            let z: f64 = x.iter().map(|&x| (f64::from(x) - f64::from(m)).exp()).sum();
            for (x, out) in x.iter().zip(&out) {
                let truth = (f64::from(*x) - f64::from(m)).exp() / z;
                // x - m is rounded: an error of |x - m|·2^-24 in the exponent; then exp, the sum and the quotient.
                let exponent = if x.is_finite() { f64::from(m - x) } else { 0.0 };
                let bound = truth * (exponent + len as f64 / 16.0 + 12.0) * 2f64.powi(-24) + 1e-44;
                assert!((f64::from(*out) - truth).abs() <= bound, "{out:e} {truth:e}");
            }
        }
    }

    #[test]
    fn nothing_hides_a_nan_or_an_infinity() {
        for bad in [f32::NAN, f32::INFINITY] {
            for at in [0, 15, 16, 20] {
                let mut x = vec![1.0; 21];
                x[at] = bad;
                let out = on_every_cpu(|cpu| {
                    let mut x = x.clone();
                    cpu.softmax(&mut x);
                    x
                });
                assert!(out.iter().all(|p| p.is_nan()) || (bad.is_infinite() && out[at].is_nan()), "{out:?}");
            }
        }
    }
}
