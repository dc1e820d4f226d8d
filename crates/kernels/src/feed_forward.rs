//! What stands between and after the matrices of an expert: SwiGLU, the shared expert's gate, the sum over experts.

use crate::Cpu;
use crate::lanes::{LANES, Lanes, Operation};
use crate::math::{sigmoid_lanes, silu_lanes};

/// Elementary operations of one element with an exp.
const EXP_COST: usize = 16;

/// The outputs of the experts that the tokens chose, to be added to the residual stream.
#[derive(Clone, Copy, Debug)]
pub struct ExpertSum<'a> {
    /// A row of `outputs` and its routing weight, token after token; within a token by ascending expert id.
    pub chosen: &'a [(u32, f32)],
    /// `[tokens + 1]`: the choices of token `t` are `first[t]..first[t + 1]` of `chosen`.
    pub first: &'a [u32],
    /// `[assignments, width]`: output rows of the routed experts, in any order.
    pub outputs: &'a [f32],
    /// The expert that every token uses, if the model has one.
    pub shared: Option<SharedExpert<'a>>,
}

/// What the shared expert gave.
#[derive(Clone, Copy, Debug)]
pub struct SharedExpert<'a> {
    /// `[tokens, width]`.
    pub outputs: &'a [f32],
    /// `[tokens]`: what each token's output is multiplied with; `None`: 1.
    pub gates: Option<&'a [f32]>,
}

impl Cpu {
    /// `x = 1 / (1 + exp(-x))`, element by element.
    pub fn sigmoid(&self, x: &mut [f32]) {
        self.on_lanes(Sigmoid { x });
    }

    /// `out = silu(gate) · up`, element by element.
    ///
    /// # Panics
    /// The lengths differ.
    pub fn swiglu(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert!(gate.len() == out.len() && up.len() == out.len(), "{}, {} and {}", gate.len(), up.len(), out.len());
        self.rows_in_parts(out, 1, EXP_COST, |first, out| {
            let (gate, up) = (&gate[first..][..out.len()], &up[first..][..out.len()]);
            self.on_lanes(SwiGlu { gate, up, out });
        });
    }

    /// `x += Σ weight · output` over a token's chosen experts, then its shared expert: `x` is `[tokens, width]`.
    ///
    /// # Panics
    /// The shapes do not fit, or a chosen row is not among `outputs`.
    pub fn combine_experts(&self, x: &mut [f32], width: usize, sum: &ExpertSum<'_>) {
        assert!(width > 0 && x.len().is_multiple_of(width), "{} values in rows of {width}", x.len());
        let tokens = x.len() / width;
        assert_eq!(sum.first.len(), tokens + 1, "first choices of {tokens} tokens");
        if let Some(shared) = &sum.shared {
            assert_eq!(shared.outputs.len(), x.len(), "outputs of the shared expert");
            assert!(shared.gates.is_none_or(|gates| gates.len() == tokens), "gates of the shared expert");
        }
        let mean_choices = sum.chosen.len().checked_div(tokens).unwrap_or(0);
        self.rows_in_parts(x, width, width * (mean_choices + 1), |first, x| {
            for (i, x) in x.chunks_exact_mut(width).enumerate() {
                let token = first + i;
                let chosen = &sum.chosen[sum.first[token] as usize..sum.first[token + 1] as usize];
                let shared = sum.shared.map(|shared| {
                    (&shared.outputs[token * width..][..width], shared.gates.map_or(1.0, |gates| gates[token]))
                });
                self.on_lanes(Combine { x, chosen, outputs: sum.outputs, shared });
            }
        });
    }
}

struct Sigmoid<'a> {
    x: &'a mut [f32],
}

impl Operation for Sigmoid<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (x, tail) = self.x.as_chunks_mut::<LANES>();
        for x in x {
            l.store(sigmoid_lanes(l, l.load(x)), x);
        }
        l.store_first(sigmoid_lanes(l, l.load_first(tail, 0.0)), tail);
    }
}

struct SwiGlu<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Operation for SwiGlu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (gate, gate_tail) = self.gate.as_chunks::<LANES>();
        let (up, up_tail) = self.up.as_chunks::<LANES>();
        let (out, out_tail) = self.out.as_chunks_mut::<LANES>();
        for ((gate, up), out) in gate.iter().zip(up).zip(out) {
            l.store(l.mul(silu_lanes(l, l.load(gate)), l.load(up)), out);
        }
        if !out_tail.is_empty() {
            let y = l.mul(silu_lanes(l, l.load_first(gate_tail, 0.0)), l.load_first(up_tail, 0.0));
            l.store_first(y, out_tail);
        }
    }
}

/// One token's sum over experts.
struct Combine<'a> {
    x: &'a mut [f32],
    chosen: &'a [(u32, f32)],
    outputs: &'a [f32],
    shared: Option<(&'a [f32], f32)>,
}

impl Operation for Combine<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let width = self.x.len();
        let (x, x_tail) = self.x.as_chunks_mut::<LANES>();
        for (i, x) in x.iter_mut().enumerate() {
            let mut y = l.splat(0.0);
            for &(row, weight) in self.chosen {
                let output = &self.outputs[row as usize * width..][..width].as_chunks::<LANES>().0[i];
                y = l.fma(l.splat(weight), l.load(output), y);
            }
            if let Some((output, gate)) = self.shared {
                y = l.fma(l.splat(gate), l.load(&output.as_chunks::<LANES>().0[i]), y);
            }
            l.store(l.add(l.load(x), y), x);
        }
        if !x_tail.is_empty() {
            let mut y = l.splat(0.0);
            for &(row, weight) in self.chosen {
                let output = self.outputs[row as usize * width..][..width].as_chunks::<LANES>().1;
                y = l.fma(l.splat(weight), l.load_first(output, 0.0), y);
            }
            if let Some((output, gate)) = self.shared {
                y = l.fma(l.splat(gate), l.load_first(output.as_chunks::<LANES>().1, 0.0), y);
            }
            l.store_first(l.add(l.load_first(x_tail, 0.0), y), x_tail);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math;
    use crate::twin::{Random, assert_bits, on_every_cpu};

    #[test]
    fn swiglu_and_sigmoid_have_equal_bits_everywhere() {
        let mut random = Random::new(5);
        for len in [0, 1, 16, 47, 1408, 20_001] {
            let mut gate = random.normal(len);
            gate.iter_mut().for_each(|x| *x *= 20.0);
            let up = random.normal(len);
            let out = on_every_cpu(|cpu| {
                let mut out = vec![f32::NAN; len];
                cpu.swiglu(&gate, &up, &mut out);
                out
            });
            let silu = |x: f32| x / (1.0 + math::exp(-x));
            assert_bits(&out, &gate.iter().zip(&up).map(|(g, u)| silu(*g) * u).collect::<Vec<_>>());
            let out = on_every_cpu(|cpu| {
                let mut x = gate.clone();
                cpu.sigmoid(&mut x);
                x
            });
            assert_bits(&out, &gate.iter().map(|x| 1.0 / (1.0 + math::exp(-x))).collect::<Vec<_>>());
        }
    }

    #[test]
    fn experts_add_in_the_given_order_then_the_shared_one_then_the_stream() {
        let mut random = Random::new(6);
        for (tokens, k, width, has_shared, has_gates) in
            [(1, 4, 33, true, true), (5, 2, 64, false, false), (3, 3, 7, true, false), (64, 4, 512, true, true)]
        {
            // The second token chose one expert fewer than the others, the last one none.
            let counts: Vec<usize> =
                (0..tokens).map(|t| if t + 1 == tokens && t > 0 { 0 } else { k - usize::from(t == 1) }).collect();
            let first: Vec<u32> = (0..=tokens).map(|t| counts[..t].iter().sum::<usize>() as u32).collect();
            let assignments = first[tokens] as usize;
            let outputs = random.normal(assignments * width);
            let weights = random.normal(assignments);
            // Rows in another order than the tokens'.
            let chosen: Vec<(u32, f32)> =
                weights.iter().enumerate().map(|(i, &w)| ((assignments - 1 - i) as u32, w)).collect();
            let (shared, gates) = (random.normal(tokens * width), random.normal(tokens));
            let x = random.normal(tokens * width);
            let sum = ExpertSum {
                chosen: &chosen,
                first: &first,
                outputs: &outputs,
                shared: has_shared
                    .then_some(SharedExpert { outputs: &shared, gates: has_gates.then_some(gates.as_slice()) }),
            };
            let out = on_every_cpu(|cpu| {
                let mut x = x.clone();
                cpu.combine_experts(&mut x, width, &sum);
                x
            });
            let expected: Vec<f32> = (0..tokens * width)
                .map(|at| {
                    let (token, i) = (at / width, at % width);
                    let mut y = 0.0f32;
                    for &(row, w) in &chosen[first[token] as usize..first[token + 1] as usize] {
                        y = w.mul_add(outputs[row as usize * width + i], y);
                    }
                    if has_shared {
                        y = (if has_gates { gates[token] } else { 1.0 }).mul_add(shared[at], y);
                    }
                    x[at] + y
                })
                .collect();
            assert_bits(&out, &expected);
        }
    }

    #[test]
    #[should_panic]
    fn a_row_that_is_not_there_is_refused() {
        let cpu = Cpu::new(&crate::CpuOptions::default()).unwrap();
        let sum = ExpertSum { chosen: &[(2, 1.0)], first: &[0, 1], outputs: &[0.0; 32], shared: None };
        cpu.combine_experts(&mut [0.0; 16], 16, &sum);
    }
}
