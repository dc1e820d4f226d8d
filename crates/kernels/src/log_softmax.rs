//! Logarithms of probabilities, in f64: what likelihoods and their differences are made of. Terms are summed one after another.
//!
//! The arithmetic is plain f64, which the compiler puts on the lanes of the instruction set that an operation is inlined into. So loops, not
//! the methods of arrays, whose inside would be compiled for itself and call a function for every fused multiply-add.

use crate::Cpu;
use crate::lanes::{LANES, Lanes, Operation, largest};
use crate::math::{exp_nonpositive, ln_f64};

impl Cpu {
    /// ln Σ exp(x) = ln Σ exp(x - max(x)) + max(x). NaN if `x` holds a NaN or +inf, or nothing above -inf.
    pub fn log_sum_exp(&self, x: &[f32]) -> f64 {
        self.on_lanes(LogSumExp { x })
    }

    /// Kullback-Leibler divergence Σ p·(ln p - ln q) in nats, with p = softmax(`own`) and q = softmax(`other`), whose
    /// [`Cpu::log_sum_exp`] are given.
    ///
    /// # Panics
    /// The slices have different lengths.
    pub fn divergence(&self, own: &[f32], own_log_sum: f64, other: &[f32], other_log_sum: f64) -> f64 {
        assert_eq!(own.len(), other.len(), "logits of one vocabulary");
        self.on_lanes(Divergence { own, own_log_sum, other, other_log_sum })
    }
}

struct LogSumExp<'a> {
    x: &'a [f32],
}

impl Operation for LogSumExp<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> f64 {
        let (chunks, tail) = self.x.as_chunks();
        let m = f64::from(largest(l, chunks.iter(), tail));
        let (x, tail) = self.x.as_chunks::<LANES>();
        let mut sum = 0.0;
        for x in x {
            let mut e = [0.0; LANES];
            for (e, &x) in e.iter_mut().zip(x) {
                *e = exp_nonpositive(f64::from(x) - m);
            }
            e.iter().for_each(|e| sum += e);
        }
        for &x in tail {
            sum += exp_nonpositive(f64::from(x) - m);
        }
        ln_f64(sum) + m
    }
}

struct Divergence<'a> {
    own: &'a [f32],
    own_log_sum: f64,
    other: &'a [f32],
    other_log_sum: f64,
}

impl Divergence<'_> {
    /// p·(ln p - ln q) of one entry.
    #[inline(always)]
    fn term(&self, own: f32, other: f32) -> f64 {
        let log_p = f64::from(own) - self.own_log_sum;
        let term = exp_nonpositive(log_p) * (log_p - (f64::from(other) - self.other_log_sum));
        // What cannot be has no weight. Chosen afterwards, not by a branch, so that lanes stay together.
        if log_p == f64::NEG_INFINITY { 0.0 } else { term }
    }
}

impl Operation for Divergence<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) -> f64 {
        let (own, own_tail) = self.own.as_chunks::<LANES>();
        let (other, other_tail) = self.other.as_chunks::<LANES>();
        let mut sum = 0.0;
        for (own, other) in own.iter().zip(other) {
            let mut terms = [0.0; LANES];
            for lane in 0..LANES {
                terms[lane] = self.term(own[lane], other[lane]);
            }
            terms.iter().for_each(|term| sum += term);
        }
        for (&own, &other) in own_tail.iter().zip(other_tail) {
            sum += self.term(own, other);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use crate::Cpu;
    use crate::twin::{Random, on_every_cpu};

    /// The result, which has the same bits with every instruction set.
    fn everywhere(compute: impl Fn(&Cpu) -> f64) -> f64 {
        let quarters = on_every_cpu(|cpu| {
            let found = compute(cpu);
            let quarter = |index| f32::from((found.to_bits() >> (16 * index)) as u16);
            (0..4).map(|index| if found.is_nan() { f32::NAN } else { quarter(index) }).collect()
        });
        if quarters[0].is_nan() {
            return f64::NAN;
        }
        f64::from_bits(quarters.iter().rev().fold(0, |bits, &quarter| bits << 16 | u64::from(quarter as u16)))
    }

    fn log_sum_exp(x: &[f32]) -> f64 {
        everywhere(|cpu| cpu.log_sum_exp(x))
    }

    fn divergence(own: &[f32], other: &[f32]) -> f64 {
        let (own_sum, other_sum) = (log_sum_exp(own), log_sum_exp(other));
        everywhere(|cpu| cpu.divergence(own, own_sum, other, other_sum))
    }

    #[test]
    fn equal_bits_everywhere_and_near_the_truth() {
        let mut random = Random::new(11);
        for len in [1, 2, 15, 16, 17, 60, 1000] {
            let own: Vec<f32> = random.normal(len).iter().map(|x| x * 8.0).collect();
            let other: Vec<f32> = own.iter().zip(random.normal(len)).map(|(x, noise)| x + noise).collect();
            let sum: f64 = own.iter().map(|&x| f64::from(x).exp()).sum();
            assert!((log_sum_exp(&own) - sum.ln()).abs() < 1e-13 * sum.ln().abs().max(1.0));
            let other_sum: f64 = other.iter().map(|&x| f64::from(x).exp()).sum();
            let truth: f64 = own
                .iter()
                .zip(&other)
                .map(|(&own, &other)| {
                    let (p, q) = (f64::from(own).exp() / sum, f64::from(other).exp() / other_sum);
                    p * (p / q).ln()
                })
                .sum();
            assert!((divergence(&own, &other) - truth).abs() < 1e-11, "{len}");
            assert_eq!(divergence(&own, &own), 0.0);
        }
    }

    #[test]
    fn divergence_is_that_of_the_textbook() {
        // p = (3/4, 1/4), q = (1/2, 1/2): 3/4 ln 3/2 + 1/4 ln 1/2.
        let (p, q) = ([3f32.ln(), 0.0], [5.0f32, 5.0]);
        assert!((divergence(&p, &q) - (0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln())).abs() < 1e-7);
        assert!((divergence(&q, &p) - (0.5 * (2.0f64 / 3.0).ln() + 0.5 * 2f64.ln())).abs() < 1e-7);
    }

    #[test]
    fn what_can_not_be_has_no_weight_and_nothing_hides_a_nan() {
        let mut x = vec![1.5; 40];
        x[20..].fill(f32::NEG_INFINITY);
        assert!((log_sum_exp(&x) - (1.5 + 20f64.ln())).abs() < 1e-14);
        for bad in [f32::NAN, f32::INFINITY] {
            for at in [0, 15, 16, 39] {
                let mut x = x.clone();
                x[at] = bad;
                assert!(log_sum_exp(&x).is_nan());
            }
        }
        assert!(log_sum_exp(&[f32::NEG_INFINITY; 3]).is_nan());
        assert_eq!(divergence(&x, &x), 0.0);
        assert!((divergence(&x, &[1.5; 40]) - 2f64.ln()).abs() < 1e-14);
    }
}
