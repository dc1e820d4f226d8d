//! Rotary embedding against its formula in f64, and equal bits everywhere.

use super::*;
use crate::twin::{Random, assert_bits, on_every_cpu};

const YARN: RopeScaling = RopeScaling::Yarn {
    factor: 4.0,
    original_context: 256,
    beta_fast: 32.0,
    beta_slow: 1.0,
    extrapolation: 1.0,
    attention_factor: 1.0,
};

fn parameters(dimensions: usize, scaling: RopeScaling, pairing: RopePairing) -> RopeParameters<'static> {
    RopeParameters { dimensions, base: 10_000.0, scaling, frequency_factors: None, pairing }
}

#[test]
fn equal_bits_everywhere_and_near_the_rotation_in_f64() {
    let mut random = Random::new(11);
    for pairing in [RopePairing::Halves, RopePairing::Interleaved] {
        for (dimensions, head_dim, heads) in
            [(2, 2, 1), (32, 32, 3), (64, 64, 2), (40, 48, 3), (6, 7, 5), (128, 128, 8)]
        {
            for positions in [0..1, 5..12, 70_000..70_003, 100..170] {
                let rope = Rope::new(&parameters(dimensions, RopeScaling::None, pairing)).unwrap();
                let mut table = rope.table(positions.len());
                assert_eq!(rope.table_bytes(positions.len()), table.factors.len() * 4);
                rope.fill(positions.clone(), &mut table);
                let x = random.normal(positions.len() * heads * head_dim);
                let out = on_every_cpu(|cpu| {
                    let mut x = x.clone();
                    cpu.rotate(&table, &mut x, head_dim);
                    x
                });
                for (head, (x, out)) in x.chunks(head_dim).zip(out.chunks(head_dim)).enumerate() {
                    let position = positions.start + head / heads;
                    assert_bits(&out[dimensions..], &x[dimensions..]);
                    for pair in 0..dimensions / 2 {
                        let (i, j) = match pairing {
                            RopePairing::Halves => (pair, pair + dimensions / 2),
                            RopePairing::Interleaved => (2 * pair, 2 * pair + 1),
                        };
                        let frequency = 10_000f64.powf(-2.0 * pair as f64 / dimensions as f64);
                        let (sin, cos) = (position as f64 * frequency).sin_cos();
                        let (x0, x1) = (f64::from(x[i]), f64::from(x[j]));
                        // The angle carries the roundings of frequency and product; then four roundings of the sum.
                        let angle_error = position as f64 * frequency * 2.0 * 2f64.powi(-24);
                        let bound = (x0.abs() + x1.abs()) * (angle_error + 4.0 * 2f64.powi(-24));
                        assert!((f64::from(out[i]) - (x0 * cos - x1 * sin)).abs() <= bound);
                        assert!((f64::from(out[j]) - (x0 * sin + x1 * cos)).abs() <= bound);
                    }
                }
            }
        }
    }
}

#[test]
fn the_order_is_the_written_one_and_the_same_for_both_pairings() {
    let mut random = Random::new(12);
    let x = random.normal(64);
    let interleave = |x: &[f32]| (0..64).map(|i| x[i / 2 + 32 * (i % 2)]).collect::<Vec<f32>>();
    let rotated = |pairing, x: &[f32]| {
        let rope = Rope::new(&parameters(64, YARN, pairing)).unwrap();
        let mut table = rope.table(1);
        rope.fill(777..778, &mut table);
        let out = on_every_cpu(|cpu| {
            let mut x = x.to_vec();
            cpu.rotate(&table, &mut x, 64);
            x
        });
        (out, rope)
    };
    let (halves, rope) = rotated(RopePairing::Halves, &x);
    let (neighbours, _) = rotated(RopePairing::Interleaved, &interleave(&x));
    assert_bits(&neighbours, &interleave(&halves));
    for i in 0..32 {
        let angle = f64::from(777f32 * rope.frequencies[i]);
        let (c, s) = ((libm::cos(angle) * rope.magnitude) as f32, (libm::sin(angle) * rope.magnitude) as f32);
        assert_bits(&halves[i..i + 1], &[x[i].mul_add(c, -(x[i + 32] * s))]);
        assert_bits(&halves[i + 32..i + 33], &[x[i].mul_add(s, x[i + 32] * c)]);
    }
}

#[test]
fn tokens_of_a_batch_are_those_of_single_steps() {
    let mut random = Random::new(13);
    let rope = Rope::new(&parameters(64, RopeScaling::Linear { factor: 2.0 }, RopePairing::Halves)).unwrap();
    let x = random.normal(9 * 3 * 64);
    on_every_cpu(|cpu| {
        let (mut batch, mut single) = (x.clone(), x.clone());
        let mut table = rope.table(9);
        rope.fill(30..39, &mut table);
        cpu.rotate(&table, &mut batch, 64);
        for (i, x) in single.chunks_mut(3 * 64).enumerate() {
            rope.fill(30 + i..31 + i, &mut table);
            assert_eq!(table.tokens(), 1);
            cpu.rotate(&table, x, 64);
        }
        assert_bits(&single, &batch);
        batch
    });
}

#[test]
fn linear_scaling_and_frequency_factors_divide() {
    let plain = Rope::new(&parameters(8, RopeScaling::None, RopePairing::Halves)).unwrap();
    let linear = Rope::new(&parameters(8, RopeScaling::Linear { factor: 4.0 }, RopePairing::Halves)).unwrap();
    let factors = [1.0, 2.0, 8.0, 0.5];
    let mut with_factors = parameters(8, RopeScaling::None, RopePairing::Halves);
    with_factors.frequency_factors = Some(&factors);
    let with_factors = Rope::new(&with_factors).unwrap();
    for (i, (plain, factor)) in plain.frequencies.iter().zip(factors).enumerate() {
        assert_eq!(linear.frequencies[i], plain / 4.0);
        assert_eq!(with_factors.frequencies[i], plain / factor);
    }
    assert_eq!((plain.magnitude, linear.magnitude), (1.0, 1.0));
}

/// The formulas of the YaRN paper (section 3.2 and 3.4), written the way of its authors' code.
#[test]
fn yarn_ramps_between_kept_and_divided_frequencies() {
    let (dimensions, base, context, factor) = (64usize, 10_000f64, 256f64, 4f64);
    let rope = Rope::new(&parameters(dimensions, YARN, RopePairing::Halves)).unwrap();
    let correction =
        |turns: f64| dimensions as f64 * (context / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * base.ln());
    let (low, high) = (correction(32.0).floor().max(0.0), correction(1.0).ceil().min(63.0));
    let mut kinds = [0; 3];
    for (i, &got) in rope.frequencies.iter().enumerate() {
        let extrapolated = base.powf(-((2 * i) as f64) / dimensions as f64);
        let interpolated = extrapolated / factor;
        let mask = 1.0 - ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        let truth = interpolated * (1.0 - mask) + extrapolated * mask;
        assert!((f64::from(got) / truth - 1.0).abs() < 2f64.powi(-23), "{i}");
        kinds[if mask == 1.0 {
            0
        } else if mask == 0.0 {
            2
        } else {
            1
        }] += 1;
    }
    assert!(kinds.iter().all(|&count| count > 0), "{kinds:?}");
    assert!((rope.magnitude - (1.0 + 0.1 * factor.ln())).abs() < 1e-12);

    let RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, .. } = YARN else { unreachable!() };
    let without_ramp =
        RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, extrapolation: 0.0, attention_factor: 0.5 };
    let rope = Rope::new(&parameters(dimensions, without_ramp, RopePairing::Halves)).unwrap();
    let linear = Rope::new(&parameters(dimensions, RopeScaling::Linear { factor }, RopePairing::Halves)).unwrap();
    assert_eq!(rope.frequencies, linear.frequencies);
    assert_eq!(rope.magnitude, 0.5);
}

#[test]
fn nonsense_is_refused_by_name() {
    let good = parameters(64, YARN, RopePairing::Halves);
    let linear = |factor| RopeScaling::Linear { factor };
    let yarn = |change: fn(&mut (f32, usize, f32))| {
        let mut values = (4.0, 256, 32.0);
        change(&mut values);
        let (factor, original_context, beta_fast) = values;
        RopeScaling::Yarn {
            factor,
            original_context,
            beta_fast,
            beta_slow: 1.0,
            extrapolation: 1.0,
            attention_factor: 1.0,
        }
    };
    for (name, bad) in [
        ("dimensions", RopeParameters { dimensions: 0, ..good }),
        ("dimensions", RopeParameters { dimensions: 63, ..good }),
        ("base", RopeParameters { base: f32::NAN, ..good }),
        ("base", RopeParameters { base: 1.0, ..good }),
        ("frequency factors", RopeParameters { frequency_factors: Some(&[1.0; 31]), ..good }),
        ("frequency factor", RopeParameters { frequency_factors: Some(&[0.0; 32]), ..good }),
        ("scaling factor", RopeParameters { scaling: linear(0.0), ..good }),
        ("scaling factor", RopeParameters { scaling: linear(f32::INFINITY), ..good }),
        ("scaling factor", RopeParameters { scaling: yarn(|y| y.0 = -1.0), ..good }),
        ("original context", RopeParameters { scaling: yarn(|y| y.1 = 0), ..good }),
        ("beta_fast", RopeParameters { scaling: yarn(|y| y.2 = 0.0), ..good }),
    ] {
        let message = Rope::new(&bad).unwrap_err().to_string();
        assert!(message.contains(name), "{message}");
    }
}
