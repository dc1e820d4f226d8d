//! Equal bits with the reference: every instruction set, format, layout, shape, batch, gather and thread count.

use crate::random::Random;
use crate::reference;
use moce_kernels::{Activations, Cpu, CpuOptions, Error, Isa, Layout, Matrix, Product, Rows, restore};
use moce_quant::Format;

/// Every instruction set here, with one and with two threads.
fn cpus() -> Vec<Cpu> {
    let options = Isa::available().flat_map(|isa| {
        [1, 2].map(|threads| CpuOptions { isa: Some(isa), threads: Some(threads), ..Default::default() })
    });
    options.map(|options| Cpu::new(&options).unwrap()).collect()
}

/// One matrix with activations, and what their product has to be.
struct Case {
    format: Format,
    rows: usize,
    columns: usize,
    bytes: Vec<u8>,
    values: Vec<f32>,
    expected: Vec<f32>,
    name: String,
}

impl Case {
    fn new(seed: u64, format: Format, rows: usize, columns: usize, tokens: usize, extreme: bool) -> Case {
        let mut random = Random(seed);
        let bytes = random.weights(format, rows, columns, extreme);
        let mut values = vec![0.0; tokens * columns];
        random.activations(&mut values, extreme);
        let row_bytes = format.row_bytes(columns).unwrap();
        let mut expected = Vec::new();
        for token in 0..tokens {
            let values = &values[token * columns..][..columns];
            let blocks = reference::quantize(values);
            let row = |row: usize| reference::dot(format, &bytes[row * row_bytes..][..row_bytes], values, &blocks);
            expected.extend((0..rows).map(row));
        }
        let name = format!("{} {rows}x{columns}, {tokens} tokens, seed {seed}, extreme {extreme}", format.name());
        Case { format, rows, columns, bytes, values, expected, name }
    }

    fn tokens(&self) -> usize {
        self.values.len() / self.columns.max(1)
    }

    fn activations(&self, cpu: &Cpu) -> Activations {
        let mut activations = Activations::new(self.tokens(), self.columns);
        activations.begin(self.tokens(), self.columns).copy_from_slice(&self.values);
        if self.format.block_len() == 32 {
            cpu.quantize(&mut activations).unwrap();
        }
        activations
    }

    /// The matrix in the plain layout and in every kernel order that an instruction set of this CPU makes.
    fn layouts(&self) -> Vec<(Layout, Vec<u8>)> {
        let mut layouts = vec![(Layout::Plain, self.bytes.clone())];
        for isa in Isa::available() {
            let cpu = Cpu::new(&CpuOptions { isa: Some(isa), threads: Some(1), ..Default::default() }).unwrap();
            let mut bytes = self.bytes.clone();
            let layout = cpu.order(self.format, self.rows, self.columns, &mut bytes);
            if layout != Layout::Plain {
                layouts.push((layout, bytes));
            }
        }
        layouts
    }

    fn check(&self, cpus: &[Cpu]) {
        for (layout, bytes) in self.layouts() {
            let weights = Matrix::new(self.format, self.rows, self.columns, layout, &bytes).unwrap();
            for cpu in cpus {
                let activations = self.activations(cpu);
                let mut output = vec![f32::NAN; self.expected.len()];
                let product = Product { weights, input: &activations, input_rows: Rows::All, output: &mut output };
                cpu.multiply(&mut [product]);
                let name = format!("{} {:?}, {layout:?}, {} threads", self.name, cpu.isa(), cpu.threads());
                assert_bits(&output, &self.expected, &name);
            }
        }
    }
}

fn assert_bits(found: &[f32], expected: &[f32], name: &str) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(expected.is_finite(), "{name}: the case itself is not finite at {i}");
        assert_eq!(found.to_bits(), expected.to_bits(), "{name}: output {i} is {found:e}, expected {expected:e}");
    }
}

#[test]
fn every_format_shape_and_batch_has_the_reference_bits() {
    let cpus = cpus();
    for format in Format::ALL {
        for (seed, (rows, columns)) in
            [(1, 32), (7, 64), (16, 32), (17, 96), (40, 544), (33, 1056), (64, 1024)].into_iter().enumerate()
        {
            Case::new(seed as u64, format, rows, columns, 1, false).check(&cpus);
            Case::new(seed as u64, format, rows, columns, 1, true).check(&cpus);
            Case::new(seed as u64, format, rows, columns, 3, true).check(&cpus);
        }
        for tokens in (1..=17).chain([33, 130]) {
            let columns = if tokens > 17 { 64 } else { 160 };
            Case::new(tokens as u64, format, 37, columns, tokens, tokens % 2 == 0).check(&cpus);
        }
    }
}

/// Of rows of one block, so that no larger one hides what a small one adds.
#[test]
fn small_activations_are_zero_only_under_the_bound() {
    let cpus = cpus();
    for seed in 0..40 {
        Case::new(seed, Format::ALL[3 + seed as usize % 4], 16, 32, 2, true).check(&cpus);
    }
}

#[test]
fn large_batches_have_the_codes_of_small_ones() {
    // 3 threads share 37 rows of 65 blocks at places within rows.
    let (rows, columns) = (37, 2080);
    let mut values = vec![0.0; rows * columns];
    Random(7).activations(&mut values, true);
    let mut cpus = cpus();
    cpus.extend(
        Isa::available()
            .map(|isa| Cpu::new(&CpuOptions { isa: Some(isa), threads: Some(3), ..Default::default() }).unwrap()),
    );
    let bytes = Random(8).weights(Format::Q4_1, 1, columns, false);
    let weights = Matrix::new(Format::Q4_1, 1, columns, Layout::Plain, &bytes).unwrap();
    let row = |token: usize| {
        let values = &values[token * columns..][..columns];
        reference::dot(Format::Q4_1, &bytes, values, &reference::quantize(values))
    };
    let expected: Vec<f32> = (0..rows).map(row).collect();
    for cpu in cpus {
        let mut activations = Activations::new(rows, columns);
        activations.begin(rows, columns).copy_from_slice(&values);
        cpu.quantize(&mut activations).unwrap();
        let mut output = vec![f32::NAN; rows];
        cpu.multiply(&mut [Product { weights, input: &activations, input_rows: Rows::All, output: &mut output }]);
        assert_bits(&output, &expected, &format!("{:?}, {} threads", cpu.isa(), cpu.threads()));
    }
}

#[test]
fn float_rows_of_any_length_have_the_reference_bits() {
    let cpus = cpus();
    for format in [Format::F32, Format::F16, Format::BF16] {
        for columns in (1..=35).chain([100, 131]) {
            Case::new(columns as u64, format, 6, columns, 1 + columns % 6, false).check(&cpus);
        }
    }
}

#[test]
fn a_negative_zero_survives_a_row_that_ends_inside_sixteen() {
    // Each product rounds to -0, and so does their sum, unless a lane without a 17th term adds a product of zeros.
    for cpu in cpus() {
        let bytes: Vec<u8> = [-1e-30f32; 17].iter().flat_map(|x| x.to_le_bytes()).collect();
        let weights = Matrix::new(Format::F32, 1, 17, Layout::Plain, &bytes).unwrap();
        let mut activations = Activations::new(1, 17);
        activations.begin(1, 17).fill(1e-30);
        let mut output = [f32::NAN];
        cpu.multiply(&mut [Product { weights, input: &activations, input_rows: Rows::All, output: &mut output }]);
        assert_eq!(output[0].to_bits(), (-0.0f32).to_bits(), "{:?}", cpu.isa());
    }
}

const TOKENS: usize = 21;

#[test]
fn many_products_of_one_call_read_ranges_and_gathered_rows() {
    let mut random = Random(6);
    let gathered: Vec<u32> = (0..11).map(|_| random.below(TOKENS) as u32).collect();
    let chosen = [Rows::All, Rows::Gather(&gathered), Rows::Range { first: 4, count: 9 }, Rows::Gather(&[]), Rows::All];
    check_products(chosen, true);
}

#[test]
fn single_vectors_of_a_batch_meet_plain_rows() {
    let single = Rows::Range { first: 20, count: 1 };
    check_products([Rows::Gather(&[7]), single, Rows::Gather(&[0]), Rows::Gather(&[20]), Rows::Gather(&[3])], false);
}

/// Several products in one call, the matrices in kernel order or plain.
fn check_products(chosen: [Rows<'_>; 5], order: bool) {
    const COLUMNS: usize = 192;
    // Row counts that put cuts between workers inside, between and at the ends of matrices.
    let shapes = [(Format::Q4_0, 48), (Format::Q8_0, 300), (Format::F32, 60), (Format::Q4_1, 5), (Format::Q5_0, 129)];
    let mut random = Random(5);
    let mut values = vec![0.0; TOKENS * COLUMNS];
    random.activations(&mut values, true);
    let matrices: Vec<Vec<u8>> =
        shapes.iter().map(|&(format, rows)| random.weights(format, rows, COLUMNS, false)).collect();
    for cpu in cpus() {
        let mut activations = Activations::new(TOKENS, COLUMNS);
        activations.begin(TOKENS, COLUMNS).copy_from_slice(&values);
        cpu.quantize(&mut activations).unwrap();
        let mut ordered = matrices.clone();
        let layouts: Vec<Layout> = shapes
            .iter()
            .zip(&mut ordered)
            .map(|(&(format, rows), bytes)| match order {
                true => cpu.order(format, rows, COLUMNS, bytes),
                false => Layout::Plain,
            })
            .collect();
        let tokens: Vec<Vec<usize>> = chosen
            .iter()
            .map(|rows| match *rows {
                Rows::All => (0..TOKENS).collect(),
                Rows::Range { first, count } => (first..first + count).collect(),
                Rows::Gather(rows) => rows.iter().map(|&row| row as usize).collect(),
            })
            .collect();
        let mut outputs: Vec<Vec<f32>> =
            tokens.iter().zip(shapes).map(|(tokens, (_, rows))| vec![f32::NAN; tokens.len() * rows]).collect();
        let mut products: Vec<Product<'_>> = outputs
            .iter_mut()
            .enumerate()
            .map(|(i, output)| {
                let (format, rows) = shapes[i];
                let weights = Matrix::new(format, rows, COLUMNS, layouts[i], &ordered[i]).unwrap();
                Product { weights, input: &activations, input_rows: chosen[i], output }
            })
            .collect();
        cpu.multiply(&mut products);
        for (i, &(format, rows)) in shapes.iter().enumerate() {
            let row_bytes = format.row_bytes(COLUMNS).unwrap();
            let mut expected = Vec::new();
            for &token in &tokens[i] {
                let values = &values[token * COLUMNS..][..COLUMNS];
                let blocks = reference::quantize(values);
                expected.extend(matrices[i].chunks(row_bytes).map(|row| reference::dot(format, row, values, &blocks)));
            }
            let name = format!("product {i} ({} {rows}), {:?}, {} threads", format.name(), cpu.isa(), cpu.threads());
            assert_bits(&outputs[i], &expected, &name);
        }
    }
}

#[test]
fn order_keeps_every_byte_and_rows_decode_from_it() {
    for format in Format::ALL {
        for rows in [1, 8, 15, 16, 17, 40] {
            let case = Case::new(rows as u64, format, rows, 96, 0, true);
            for (layout, mut bytes) in case.layouts() {
                let matrix = Matrix::new(format, rows, 96, layout, &bytes).unwrap();
                let plain = Matrix::new(format, rows, 96, Layout::Plain, &case.bytes).unwrap();
                for row in 0..rows {
                    let (mut found, mut expected) = ([f32::NAN; 96], [f32::NAN; 96]);
                    matrix.decode_row(row, &mut found);
                    plain.decode_row(row, &mut expected);
                    assert_bits(&found, &expected, &format!("{} row {row} of {rows}, {layout:?}", format.name()));
                }
                restore(format, rows, 96, layout, &mut bytes);
                assert_eq!(bytes, case.bytes, "{} {rows} rows, {layout:?}", format.name());
            }
        }
    }
}

#[test]
fn non_finite_activations_are_refused_wherever_they_are() {
    for cpu in cpus() {
        // Large enough that two threads share it.
        let (rows, columns) = (48, 2048);
        let mut activations = Activations::new(rows, columns);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 31, 32 * 777 + 5, rows * columns - 1] {
                activations.begin(rows, columns).fill(1.0);
                cpu.quantize(&mut activations).unwrap();
                activations.begin(rows, columns)[at] = bad;
                assert!(matches!(cpu.quantize(&mut activations), Err(Error::NonFinite)), "{bad} at {at}");
            }
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let message = Matrix::new(Format::Q4_0, 3, 64, Layout::Plain, &[0; 100]).unwrap_err().to_string();
    assert_eq!(message, "a Q4_0 matrix of 3 x 64 in 100 bytes (expected 108)");
    let message = Matrix::new(Format::Q4_0, 3, 65, Layout::Plain, &[0; 100]).unwrap_err().to_string();
    assert_eq!(message, "a Q4_0 matrix of 3 x 65 in 100 bytes (expected a whole number of quant blocks a row)");
    assert!(Matrix::new(Format::F32, usize::MAX / 2, 16, Layout::Plain, &[]).is_err());
}

#[test]
#[should_panic(expected = "activations without codes")]
fn quantised_weights_need_codes() {
    let cpu = &cpus()[0];
    let mut activations = Activations::new(1, 32);
    activations.begin(1, 32).fill(1.0);
    cpu.quantize(&mut activations).unwrap();
    activations.begin(1, 32).fill(2.0);
    let weights = Matrix::new(Format::Q4_0, 1, 32, Layout::Plain, &[0; 18]).unwrap();
    cpu.multiply(&mut [Product { weights, input: &activations, input_rows: Rows::All, output: &mut [0.0] }]);
}

#[test]
#[should_panic(expected = "vector Some(2) of a batch of 2")]
fn gathered_rows_must_exist() {
    let mut activations = Activations::new(4, 32);
    activations.begin(2, 32).fill(1.0);
    let weights = Matrix::new(Format::F32, 1, 32, Layout::Plain, &[0; 128]).unwrap();
    let input_rows = Rows::Gather(&[0, 2]);
    cpus()[0].multiply(&mut [Product { weights, input: &activations, input_rows, output: &mut [0.0; 2] }]);
}

/// Also where a wrapped product would be the right number of outputs.
#[test]
#[should_panic(expected = "outputs of a product")]
fn sizes_whose_product_wraps_are_refused() {
    let cpu = &cpus()[0];
    let weights = Matrix::new(Format::F32, (1 << 63) + 1, 0, Layout::Plain, &[]).unwrap();
    let mut activations = Activations::new(2, 0);
    activations.begin(2, 0);
    cpu.multiply(&mut [Product { weights, input: &activations, input_rows: Rows::All, output: &mut [0.0; 2] }]);
}

#[test]
#[should_panic(expected = "outputs of a product")]
fn ranges_whose_end_wraps_are_refused() {
    let cpu = &cpus()[0];
    let weights = Matrix::new(Format::F32, 2, 2, Layout::Plain, &[0; 16]).unwrap();
    let mut activations = Activations::new(8, 2);
    activations.begin(8, 2).fill(1.0);
    let input_rows = Rows::Range { first: 1 << 63, count: (1 << 63) + 1 };
    cpu.multiply(&mut [Product { weights, input: &activations, input_rows, output: &mut [0.0; 2] }]);
}
