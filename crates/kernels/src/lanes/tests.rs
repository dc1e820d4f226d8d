//! Every lane operation against the scalar twin, on values chosen to be awkward.

use super::*;
use crate::twin::{Random, assert_bits, on_every_cpu};

const AWKWARD: [f32; 24] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    1.5,
    2.5,
    -2.5,
    1e-45,
    -1e-45,
    1e-38,
    -1.17e-38,
    f32::MAX,
    f32::MIN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    65504.0,
    65520.0,
    5.96e-8,
    2.98e-8,
    6.1e-5,
    8_388_609.0,
    -0.499_999_97,
];

struct All<'a> {
    a: Chunk,
    b: Chunk,
    c: Chunk,
    out: &'a mut Vec<f32>,
}

impl Operation for All<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (a, b, c) = (l.load(&self.a), l.load(&self.b), l.load(&self.c));
        let vectors = [
            l.add(a, b),
            l.sub(a, b),
            l.mul(a, b),
            l.div(a, b),
            l.fma(a, b, c),
            l.neg(a),
            l.max(a, b),
            l.min(a, b),
            l.round(a),
            l.even(a),
            l.odd(a),
            l.splat(self.a[3]),
            l.load_first(&self.a[..5], 7.0),
        ];
        for vector in vectors {
            let mut chunk = [0.0; LANES];
            l.store(vector, &mut chunk);
            self.out.extend(chunk);
        }
        for count in 0..=LANES {
            let mut chunk = [0.0; LANES];
            l.store(l.first(count, a, b), &mut chunk);
            self.out.extend(chunk);
            l.store_first(c, &mut chunk[..count]);
            self.out.extend(chunk);
        }
        let mut halfs = [0; LANES];
        l.store_f16(a, &mut halfs);
        let mut chunk = [0.0; LANES];
        l.store(l.load_f16(&halfs), &mut chunk);
        self.out.extend(chunk);
        l.store(l.splat_f16(halfs[2]), &mut chunk);
        self.out.extend(chunk);
        self.out.extend([l.sum(a), l.largest(a)]);
    }
}

#[test]
fn every_operation_gives_the_twins_bits() {
    let mut random = Random::new(7);
    for round in 0..300 {
        let mut chunk = || -> Chunk {
            let normal = random.normal(LANES);
            std::array::from_fn(|i| match round % 3 {
                0 => normal[i],
                1 => AWKWARD[random.bits() as usize % AWKWARD.len()],
                _ => f32::from_bits(random.bits() as u32),
            })
        };
        let (a, b, c) = (chunk(), chunk(), chunk());
        on_every_cpu(|cpu| {
            let mut out = Vec::new();
            cpu.on_lanes(All { a, b, c, out: &mut out });
            out
        });
    }
}

struct Scale {
    a: Chunk,
    n: Chunk,
}

impl Operation for Scale {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> Vec<f32> {
        let mut chunk = [0.0; LANES];
        l.store(l.scale(l.load(&self.a), l.load(&self.n)), &mut chunk);
        chunk.to_vec()
    }
}

#[test]
fn scale_rounds_once_over_its_whole_range() {
    let mut random = Random::new(8);
    for n in -160..=130 {
        let a: Chunk = std::array::from_fn(|_| 0.5 + (random.bits() >> 40) as f32 / (1 << 24) as f32 * 1.4);
        let got = on_every_cpu(|cpu| cpu.on_lanes(Scale { a, n: [n as f32; LANES] }));
        // f64 has room for the exact product; its conversion rounds once.
        assert_bits(&got, &a.map(|a| (f64::from(a) * 2f64.powi(n)) as f32));
    }
    let nan = on_every_cpu(|cpu| cpu.on_lanes(Scale { a: [f32::NAN; LANES], n: [f32::NAN; LANES] }));
    assert!(nan.iter().all(|x| x.is_nan()));
}

struct Bytes([i8; LANES]);

impl Operation for Bytes {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> Vec<f32> {
        let mut chunk = [0.0; LANES];
        l.store(l.load_i8(&self.0), &mut chunk);
        chunk.to_vec()
    }
}

#[test]
fn bytes_and_halfs_convert_exactly() {
    for first in (-128..128).step_by(16) {
        let bytes = std::array::from_fn(|i| (first + i as i32) as i8);
        let got = on_every_cpu(|cpu| cpu.on_lanes(Bytes(bytes)));
        assert_bits(&got, &bytes.map(f32::from));
    }
}

struct Dot<'a>(&'a [f32], &'a [f32]);

impl Operation for Dot<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> Vec<f32> {
        let (chunks, tail) = self.0.as_chunks();
        vec![dot(l, self.0, self.1), largest(l, chunks.iter(), tail)]
    }
}

#[test]
fn r16_is_the_written_order_at_every_length_and_alignment() {
    let mut random = Random::new(9);
    for len in 0..70 {
        let (a, b) = (random.normal(len + 3), random.normal(len + 3));
        for offset in 0..3 {
            let (a, b) = (&a[offset..][..len], &b[3 - offset..][..len]);
            let mut s = [0f32; 16];
            for k in 0..len {
                s[k % 16] = a[k].mul_add(b[k], s[k % 16]);
            }
            for w in [8, 4, 2, 1] {
                for i in 0..w {
                    s[i] += s[i + w];
                }
            }
            let m = a.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_bits(&on_every_cpu(|cpu| cpu.on_lanes(Dot(a, b))), &[s[0], m]);
        }
    }
    // A missing term is not added: products that round to -0 have the sum -0, also where the last 16 are not complete.
    let tiny = on_every_cpu(|cpu| cpu.on_lanes(Dot(&[-1e-30; 17], &[1e-30; 17])));
    assert_bits(&tiny[..1], &[-0.0]);
}
