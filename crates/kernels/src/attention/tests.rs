//! Attention against its definition: bit for bit in NUMBERS.md's order, and in f64.

use super::*;
use crate::math;
use crate::twin::{Random, assert_bits, on_every_cpu};

struct Case {
    shape: KvShape,
    heads: usize,
    first_position: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Case {
    fn new(random: &mut Random, shape: KvShape, heads: usize, first_position: usize, tokens: usize) -> Case {
        let positions = first_position + tokens;
        Case {
            q: random.normal(tokens * heads * shape.key_dim),
            k: random.normal(positions * shape.kv_heads * shape.key_dim),
            v: random.normal(positions * shape.kv_heads * shape.value_dim),
            shape,
            heads,
            first_position,
        }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.shape.key_dim as f32).sqrt()
    }

    /// A cache with this case's keys and values in layer 1 of 2, and NaN at every position behind them.
    fn cache(&self, cpu: &Cpu) -> KvCache {
        let mut cache = KvCache::new(self.shape, 2).unwrap();
        let KvShape { context, kv_heads, key_dim, value_dim, kv_type } = self.shape;
        if kv_type != KvType::Q8_0 {
            let nans = vec![f32::NAN; context * kv_heads * key_dim.max(value_dim)];
            let (k, v) = (&nans[..context * kv_heads * key_dim], &nans[..context * kv_heads * value_dim]);
            cpu.store_kv(&mut cache, 1, 0, k, v);
        }
        cpu.store_kv(&mut cache, 1, 0, &self.k, &self.v);
        cache
    }

    fn attend(&self, cpu: &Cpu, cache: &KvCache, tokens: std::ops::Range<usize>) -> Vec<f32> {
        let Case { shape, heads, .. } = self;
        let mut out = vec![f32::NAN; tokens.len() * heads * shape.value_dim];
        let mut scratch = vec![f32::NAN; cpu.attention_scratch_len(shape)];
        let attention = Attention {
            cache,
            layer: 1,
            heads: *heads,
            scale: self.scale(),
            first_position: self.first_position + tokens.start,
        };
        let width = heads * shape.key_dim;
        cpu.attention(&attention, &self.q[tokens.start * width..tokens.end * width], &mut scratch, &mut out);
        out
    }

    /// Query, and the rounded keys and values that it sees, for each query in the order of the output.
    fn queries(&self) -> impl Iterator<Item = (&[f32], Vec<&[f32]>, Vec<&[f32]>)> {
        let KvShape { kv_heads, key_dim, value_dim, .. } = self.shape;
        self.q.chunks(key_dim).enumerate().map(move |(row, q)| {
            let (token, kv_head) = (row / self.heads, row % self.heads / (self.heads / kv_heads));
            let rows = (0..=self.first_position + token).map(|t| t * kv_heads + kv_head);
            let keys = rows.clone().map(|row| &self.k[row * key_dim..][..key_dim]).collect();
            (q, keys, rows.map(|row| &self.v[row * value_dim..][..value_dim]).collect())
        })
    }

    /// Keys and values replaced by what the cache's type makes of them.
    fn round(&mut self) {
        let format = match self.shape.kv_type {
            KvType::F32 => return,
            KvType::F16 => moce_quant::Format::F16,
            KvType::Q8_0 => moce_quant::Format::Q8_0,
        };
        for values in [&mut self.k, &mut self.v] {
            let mut bytes = vec![0; format.row_bytes(values.len()).unwrap()];
            moce_quant::encode(format, values, &mut bytes);
            moce_quant::decode(format, &bytes, values);
        }
    }
}

fn r16(terms: impl Iterator<Item = (f32, f32)>) -> f32 {
    let mut s = [0f32; 16];
    for (k, (a, b)) in terms.enumerate() {
        s[k % 16] = a.mul_add(b, s[k % 16]);
    }
    for w in [8, 4, 2, 1] {
        for i in 0..w {
            s[i] += s[i + w];
        }
    }
    s[0]
}

/// NUMBERS.md, word for word.
fn in_order(case: &Case) -> Vec<f32> {
    let mut out = Vec::new();
    for (q, keys, values) in case.queries() {
        let scores: Vec<f32> =
            keys.iter().map(|k| r16(q.iter().copied().zip(k.iter().copied())) * case.scale()).collect();
        let m = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let e: Vec<f32> = scores.iter().map(|score| math::exp(score - m)).collect();
        let z = r16(e.iter().map(|&e| (e, 1.0)));
        for i in 0..case.shape.value_dim {
            let o = e.iter().zip(&values).fold(0f32, |o, (e, v)| e.mul_add(v[i], o));
            out.push(o * (1.0 / z));
        }
    }
    out
}

/// The definition in f64, with the bound that f32's roundings allow.
fn check_truth(case: &Case, out: &[f32]) {
    let unit = 2f64.powi(-24);
    let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    for ((q, keys, values), out) in case.queries().zip(out.chunks(case.shape.value_dim)) {
        let (q, positions) = (wide(q), keys.len() as f64);
        let products: Vec<Vec<f64>> = keys
            .iter()
            .map(|k| wide(k).iter().zip(&q).map(|(k, q)| k * q * f64::from(case.scale())).collect())
            .collect();
        let scores: Vec<f64> = products.iter().map(|products| products.iter().sum()).collect();
        let sizes = products.iter().map(|products| products.iter().map(|x| x.abs()).sum::<f64>());
        // A score is off by dim/16 + 6 roundings of its size; so is the largest one, and both enter an exponent.
        let score_error = sizes.fold(0.0, f64::max) * (q.len() as f64 / 16.0 + 7.0) * unit;
        let m = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let e: Vec<f64> = scores.iter().map(|score| (score - m).exp()).collect();
        let z: f64 = e.iter().sum();
        for (i, out) in out.iter().enumerate() {
            let terms = || e.iter().zip(&values).map(|(e, v)| e / z * f64::from(v[i]));
            let (truth, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
            // Numerator and denominator: errors of e, twice; of their sums; of exp, 1/Z and the last product.
            let bound = size * (4.0 * score_error + (positions + positions / 16.0 + 12.0) * unit);
            assert!((f64::from(*out) - truth).abs() <= bound, "{out} {truth} {bound}");
        }
    }
}

fn shape(kv_type: KvType, kv_heads: usize, key_dim: usize, value_dim: usize) -> KvShape {
    KvShape { kv_type, context: 150, kv_heads, key_dim, value_dim }
}

#[test]
fn equal_bits_everywhere_in_the_written_order_and_near_the_truth() {
    let mut random = Random::new(31);
    for (shape, heads) in [
        (shape(KvType::F32, 1, 64, 64), 1),
        (shape(KvType::F32, 2, 5, 17), 6),
        (shape(KvType::F32, 1, 37, 3), 2),
        (shape(KvType::F16, 3, 64, 64), 9),
        (shape(KvType::F16, 2, 128, 80), 10),
        (shape(KvType::F16, 4, 16, 16), 4),
        (shape(KvType::Q8_0, 2, 32, 64), 4),
        (shape(KvType::Q8_0, 1, 96, 32), 7),
    ] {
        for (first_position, tokens) in [(0, 1), (0, 2), (0, 7), (15, 1), (16, 3), (130, 1), (90, 33)] {
            let mut case = Case::new(&mut random, shape, heads, first_position, tokens);
            let out = on_every_cpu(|cpu| case.attend(cpu, &case.cache(cpu), 0..tokens));
            case.round();
            assert_bits(&out, &in_order(&case));
            check_truth(&case, &out);
        }
    }
}

#[test]
fn a_batch_is_its_chunks_and_its_tokens() {
    let mut random = Random::new(32);
    for kv_type in [KvType::F32, KvType::F16, KvType::Q8_0] {
        let case = Case::new(&mut random, shape(kv_type, 2, 64, 64), 6, 20, 45);
        on_every_cpu(|cpu| {
            let cache = case.cache(cpu);
            let batch = case.attend(cpu, &cache, 0..45);
            for step in [1, 2, 19] {
                let starts = (0..45).step_by(step);
                let pieces = starts.flat_map(|t| case.attend(cpu, &cache, t..(t + step).min(45)));
                assert_bits(&pieces.collect::<Vec<_>>(), &batch);
            }
            batch
        });
    }
}

#[test]
fn a_non_finite_key_or_value_is_not_hidden() {
    let mut random = Random::new(33);
    for position in [0, 15, 16, 29] {
        for of_keys in [true, false] {
            let mut case = Case::new(&mut random, shape(KvType::F16, 1, 32, 32), 2, 29, 1);
            // Over the largest half: stored as infinite.
            (if of_keys { &mut case.k } else { &mut case.v })[position * 32 + 3] = 1e6;
            on_every_cpu(|cpu| {
                let out = case.attend(cpu, &case.cache(cpu), 0..1);
                assert!(!cpu.all_finite(&out));
                out
            });
        }
    }
}

#[test]
fn shares_cover_all_queries_and_are_even() {
    for (kv_heads, tokens, heads_each, first_position) in
        [(1, 1, 1, 0), (3, 1, 3, 10), (3, 512, 3, 0), (16, 7, 1, 100), (1, 300, 8, 5), (2, 2, 1, 0)]
    {
        let order = Order { kv_heads, tokens, heads_each, first_position };
        let cost = |query: usize| order.visible(query % order.queries_each() / heads_each);
        assert_eq!((0..order.queries()).map(cost).sum::<usize>(), order.total_cost());
        for parts in 1..9 {
            let mut next = 0;
            for index in 0..parts {
                let share = order.share(parts, index);
                assert_eq!(share.start, next);
                next = share.end;
                let sum: usize = share.map(cost).sum();
                // Each boundary is off by less than one query.
                assert!(sum <= order.total_cost() / parts + order.visible(tokens - 1) + 1);
            }
            assert_eq!(next, order.queries());
        }
    }
}

#[test]
#[should_panic(expected = "scratch of 10")]
fn too_little_scratch_is_refused() {
    let cpu = Cpu::new(&crate::CpuOptions::default()).unwrap();
    let case = Case::new(&mut Random::new(34), shape(KvType::F32, 1, 16, 16), 1, 0, 1);
    let cache = case.cache(&cpu);
    let attention = Attention { cache: &cache, layer: 0, heads: 1, scale: 1.0, first_position: 0 };
    cpu.attention(&attention, &case.q, &mut [0.0; 10], &mut [0.0; 16]);
}
