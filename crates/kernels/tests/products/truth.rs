//! How far a product with 8-bit activations may be from the exact one.

use crate::random::Random;
use moce_kernels::{Activations, Cpu, CpuOptions, Layout, Matrix, Product, Rows};
use moce_quant::Format;
use proptest::prelude::*;

/// Σ |w| · d/2 over the blocks (a code is off by at most half a step), and the roundings: each of the at most two f32 additions a
/// block, and of the three roundings in front of it, is off by 2^-24 of a value that Σ |w|·|x| bounds (plus the steps themselves).
fn bound(weights: &[f32], values: &[f32], format: Format) -> f64 {
    let magnitude: f64 = weights.iter().zip(values).map(|(w, x)| f64::from(w.abs()) * f64::from(x.abs())).sum();
    if format.block_len() == 1 {
        // Each lane adds columns / 16 terms, the tree four more.
        return magnitude * (weights.len() as f64 / 16.0 + 5.0) * 2f64.powi(-24);
    }
    let mut steps = 0.0;
    let mut blocks = 0.0;
    for (weights, values) in weights.chunks(32).zip(values.chunks(32)) {
        let max = values.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        steps += weights.iter().map(|w| f64::from(w.abs())).sum::<f64>() * f64::from(max) / 127.0 / 2.0;
        blocks += 1.0;
    }
    // With a minimum, code and minimum part may cancel: 16 · scale is bounded by what the largest weights show only, hence the 32.
    let cancellation = if format == Format::Q4_1 { 32.0 } else { 1.0 };
    steps * 1.001 + (magnitude + steps) * (2.0 * blocks + 6.0) * 2f64.powi(-24) * cancellation
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn products_are_within_the_bound_of_the_exact_ones(
        seed: u64,
        format in proptest::sample::select(&Format::ALL[..]),
        rows in 1usize..40,
        blocks in 1usize..20,
        tokens in 1usize..5,
        ordered: bool,
    ) {
        let cpu = Cpu::new(&CpuOptions { threads: Some(1), ..Default::default() }).unwrap();
        let columns = 32 * blocks;
        let mut random = Random(seed);
        let values: Vec<f32> = (0..rows * columns).map(|_| random.unit()).collect();
        let mut bytes = vec![0; rows * format.row_bytes(columns).unwrap()];
        moce_quant::encode(format, &values, &mut bytes);
        let mut weights = vec![0.0; rows * columns];
        moce_quant::decode(format, &bytes, &mut weights);
        let layout = if ordered { cpu.order(format, rows, columns, &mut bytes) } else { Layout::Plain };
        let matrix = Matrix::new(format, rows, columns, layout, &bytes).unwrap();

        let mut activations = Activations::new(tokens, columns);
        activations.begin(tokens, columns).fill_with(|| random.unit() * 3.0);
        if format.block_len() == 32 {
            cpu.quantize(&mut activations).unwrap();
        }
        let mut output = vec![f32::NAN; tokens * rows];
        cpu.multiply(&mut [Product { weights: matrix, input: &activations, input_rows: Rows::All, output: &mut output }]);

        for token in 0..tokens {
            let values = &activations.values()[token * columns..][..columns];
            for row in 0..rows {
                let weights = &weights[row * columns..][..columns];
                let exact: f64 = weights.iter().zip(values).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
                let found = f64::from(output[token * rows + row]);
                let bound = bound(weights, values, format);
                prop_assert!((found - exact).abs() <= bound, "{found} is not within {bound} of {exact}");
            }
        }
    }
}
