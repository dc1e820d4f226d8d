//! Root mean square norm (Zhang and Sennrich 2019, arXiv 1910.07467).

use crate::Cpu;
use crate::lanes::{LANES, Lanes, Operation, dot};

impl Cpu {
    /// `out = x / sqrt(mean(x²) + eps) · weight`, for each row of `weight.len()` values: `[n, d]`, `[d] -> [n, d]`.
    ///
    /// # Panics
    /// `x` and `out` differ in length, or are no whole number of rows.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        assert_eq!(x.len(), out.len(), "values in and out");
        let width = weight.len();
        self.rows_in_parts(out, width, 2 * width, |first, out| {
            let x = &x[first * width..][..out.len()];
            self.on_lanes(RmsNorm { x, weight, eps, out });
        });
    }
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Operation for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let width = self.weight.len();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let mean = dot(l, x, x) / width as f32;
            let inverse = l.splat(1.0 / (mean + self.eps).sqrt());
            let (x, x_tail) = x.as_chunks::<LANES>();
            let (w, w_tail) = self.weight.as_chunks::<LANES>();
            let (out, out_tail) = out.as_chunks_mut::<LANES>();
            for ((x, w), out) in x.iter().zip(w).zip(out) {
                l.store(l.mul(l.mul(l.load(x), inverse), l.load(w)), out);
            }
            let y = l.mul(l.mul(l.load_first(x_tail, 0.0), inverse), l.load_first(w_tail, 0.0));
            l.store_first(y, out_tail);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::twin::{Random, assert_bits, on_every_cpu};

    #[test]
    fn equal_bits_everywhere_and_near_the_truth() {
        let mut random = Random::new(1);
        for (rows, width) in [(1, 1), (3, 15), (2, 16), (5, 17), (1, 576), (70, 1000), (2, 2048)] {
            let (x, weight) = (random.normal(rows * width), random.normal(width));
            let out = on_every_cpu(|cpu| {
                let mut out = vec![f32::NAN; x.len()];
                cpu.rms_norm(&x, &weight, 1e-5, &mut out);
                // A row alone gives what it gives in the batch.
                let mut alone = vec![f32::NAN; width];
                cpu.rms_norm(&x[(rows - 1) * width..], &weight, 1e-5, &mut alone);
                assert_bits(&alone, &out[(rows - 1) * width..]);
                out
            });
            for (x, out) in x.chunks(width).zip(out.chunks(width)) {
                let mean = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / width as f64;
                for ((x, w), out) in x.iter().zip(&weight).zip(out) {
                    let truth = f64::from(*x) * f64::from(*w) / (mean + 1e-5).sqrt();
                    // The sum of squares: width/16 + 4 roundings, halved by the root; six more; 2^-24 each.
                    let bound = truth.abs() * ((width as f64 / 16.0 + 5.0) / 2.0 + 6.0) * 2f64.powi(-24);
                    assert!((f64::from(*out) - truth).abs() <= bound, "{out} {truth}");
                }
            }
        }
    }

    #[test]
    fn the_order_is_the_written_one() {
        let mut random = Random::new(2);
        let (x, weight) = (random.normal(37), random.normal(37));
        let mut s = [0f32; 16];
        for (k, &x) in x.iter().enumerate() {
            s[k % 16] = x.mul_add(x, s[k % 16]);
        }
        for w in [8, 4, 2, 1] {
            for i in 0..w {
                s[i] += s[i + w];
            }
        }
        let inverse = 1.0 / (s[0] / 37.0 + 1e-6).sqrt();
        let expected: Vec<f32> = x.iter().zip(&weight).map(|(x, w)| (x * inverse) * w).collect();
        let out = on_every_cpu(|cpu| {
            let mut out = vec![0.0; 37];
            cpu.rms_norm(&x, &weight, 1e-6, &mut out);
            out
        });
        assert_bits(&out, &expected);
    }
}
