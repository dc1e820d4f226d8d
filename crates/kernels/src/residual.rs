//! Sums of activations: the residual stream, biases; and the check that all of them are finite.

use crate::Cpu;
use crate::lanes::{LANES, Lanes, Operation};

impl Cpu {
    /// `x += y`, element by element.
    ///
    /// # Panics
    /// The lengths differ.
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len(), "values to add");
        self.rows_in_parts(x, 1, 1, |first, x| {
            let y = &y[first..][..x.len()];
            self.on_lanes(Add { x, y });
        });
    }

    /// `x += bias` for each row of `bias.len()` values: `[n, d] += [d]`.
    ///
    /// # Panics
    /// `x` is no whole number of rows.
    pub fn add_bias(&self, x: &mut [f32], bias: &[f32]) {
        self.rows_in_parts(x, bias.len(), bias.len(), |_, x| {
            for x in x.chunks_exact_mut(bias.len()) {
                self.on_lanes(Add { x, y: bias });
            }
        });
    }

    /// Whether no value is infinite or NaN.
    pub fn all_finite(&self, x: &[f32]) -> bool {
        self.on_lanes(AllFinite { x })
    }
}

struct Add<'a> {
    x: &'a mut [f32],
    y: &'a [f32],
}

impl Operation for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (x, x_tail) = self.x.as_chunks_mut::<LANES>();
        let (y, y_tail) = self.y.as_chunks::<LANES>();
        for (x, y) in x.iter_mut().zip(y) {
            l.store(l.add(l.load(x), l.load(y)), x);
        }
        l.store_first(l.add(l.load_first(x_tail, 0.0), l.load_first(y_tail, 0.0)), x_tail);
    }
}

struct AllFinite<'a> {
    x: &'a [f32],
}

impl Operation for AllFinite<'_> {
    type Output = bool;

    /// 0 · x is 0 for finite x and NaN otherwise, and NaN stays in a sum.
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> bool {
        let zero = l.splat(0.0);
        // Four sums, so that none waits for the one before it.
        let mut s = [zero; 4];
        let (x, tail) = self.x.as_chunks::<LANES>();
        let (groups, rest) = x.as_chunks::<4>();
        for group in groups {
            for (s, x) in s.iter_mut().zip(group) {
                *s = l.fma(l.load(x), zero, *s);
            }
        }
        for x in rest {
            s[0] = l.fma(l.load(x), zero, s[0]);
        }
        s[1] = l.fma(l.load_first(tail, 0.0), zero, s[1]);
        l.sum(l.add(l.add(s[0], s[1]), l.add(s[2], s[3]))) == 0.0
    }
}

#[cfg(test)]
mod tests {
    use crate::twin::{Random, assert_bits, on_every_cpu};

    #[test]
    fn sums_are_those_of_f32() {
        let mut random = Random::new(4);
        for len in [0, 1, 16, 31, 100_003] {
            let (x, y) = (random.normal(len), random.normal(len));
            let out = on_every_cpu(|cpu| {
                let mut x = x.clone();
                cpu.add(&mut x, &y);
                x
            });
            assert_bits(&out, &x.iter().zip(&y).map(|(x, y)| x + y).collect::<Vec<_>>());
        }
        for (rows, width) in [(1, 5), (3, 16), (7, 33), (80, 1000)] {
            let (x, bias) = (random.normal(rows * width), random.normal(width));
            let out = on_every_cpu(|cpu| {
                let mut x = x.clone();
                cpu.add_bias(&mut x, &bias);
                x
            });
            assert_bits(&out, &x.iter().enumerate().map(|(i, x)| x + bias[i % width]).collect::<Vec<_>>());
        }
    }

    #[test]
    fn one_bad_value_anywhere_is_found() {
        for len in [1, 15, 16, 64, 100, 131] {
            let mut x = vec![f32::MAX; len];
            for (i, x) in x.iter_mut().enumerate() {
                *x = [f32::MAX, -f32::MAX, 0.0, -0.0, f32::from_bits(1)][i % 5];
            }
            assert_eq!(on_every_cpu(|cpu| vec![f32::from(u8::from(cpu.all_finite(&x)))]), [1.0]);
            for at in 0..len {
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let good = std::mem::replace(&mut x[at], bad);
                    assert_eq!(on_every_cpu(|cpu| vec![f32::from(u8::from(cpu.all_finite(&x)))]), [0.0]);
                    x[at] = good;
                }
            }
        }
    }
}
