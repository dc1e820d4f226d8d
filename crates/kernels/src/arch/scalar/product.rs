//! Products in plain Rust: the order of operations in NUMBERS.md, readable, for every layout.

use crate::activations::{BLOCK_LEN, CodeBlock};
use crate::order::BLOCK_BYTES_MAX;
use crate::product::{Operands, Output};
use half::{bf16, f16};
use moce_quant::Format;
use std::ops::Range;

/// Integer codes of a quant block with what scales them.
struct Block {
    codes: [i16; BLOCK_LEN],
    scale: f32,
    minimum: f32,
}

/// Splits a quant block as the file has it; offsets are taken off the codes.
fn unpack(format: Format, bytes: &[u8]) -> Block {
    let half = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
    let nibble = |from: usize, i: usize| i16::from(bytes[from + i % 16] >> (i / 16 * 4) & 15);
    let (codes, minimum): ([i16; BLOCK_LEN], f32) = match format {
        Format::Q4_0 => (std::array::from_fn(|i| nibble(2, i) - 8), 0.0),
        Format::Q4_1 => (std::array::from_fn(|i| nibble(4, i)), half(2)),
        Format::Q5_0 => {
            let fifth = |i: usize| i16::from(bytes[2 + i / 8] >> (i % 8) & 1) << 4;
            (std::array::from_fn(|i| (nibble(6, i) | fifth(i)) - 16), 0.0)
        }
        Format::Q8_0 => (std::array::from_fn(|i| i16::from(bytes[2 + i] as i8)), 0.0),
        _ => unreachable!("{} has no quant blocks", format.name()),
    };
    Block { codes, scale: half(0), minimum }
}

/// Σ code · code, exact.
fn dot(weights: &[i16; BLOCK_LEN], activations: &CodeBlock) -> i32 {
    weights.iter().zip(&activations.codes).map(|(&w, &a)| i32::from(w) * i32::from(a)).sum()
}

/// Outputs `rows` of a product with quantised weights.
pub(crate) fn quantised(operands: &Operands<'_>, rows: Range<usize>, output: &mut Output<'_>) {
    let weights = &operands.weights;
    let mut bytes = [0; BLOCK_BYTES_MAX];
    let bytes = &mut bytes[..weights.format.block_bytes()];
    for row in rows {
        for token in 0..operands.tokens() {
            output.write(token, row, 0.0);
        }
        for index in 0..weights.columns / BLOCK_LEN {
            weights.plain_block(row, index, bytes);
            let block = unpack(weights.format, bytes);
            for token in 0..operands.tokens() {
                let activations = &operands.input.row_blocks(operands.input_row(token))[index];
                let dot = dot(&block.codes, activations) as f32;
                let mut sum = (block.scale * activations.scale).mul_add(dot, output.read(token, row));
                if weights.format == Format::Q4_1 {
                    sum = block.minimum.mul_add(activations.scaled_sum, sum);
                }
                output.write(token, row, sum);
            }
        }
    }
}

/// Outputs `rows` of a product with float weights: R16 over the values.
pub(crate) fn float(operands: &Operands<'_>, rows: Range<usize>, output: &mut Output<'_>) {
    let weights = &operands.weights;
    for row in rows {
        let bytes = weights.plain_row(row).expect("float formats are always plain");
        for token in 0..operands.tokens() {
            let values = operands.input.row_values(operands.input_row(token));
            let sum = match weights.format {
                Format::F32 => r16(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)), values),
                Format::F16 => r16(bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()), values),
                Format::BF16 => r16(bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()), values),
                _ => unreachable!("{} is no float format", weights.format.name()),
            };
            output.write(token, row, sum);
        }
    }
}

/// R16(a, b) of NUMBERS.md.
fn r16(a: impl Iterator<Item = f32>, b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    for (k, (a, &b)) in a.zip(b).enumerate() {
        sums[k % 16] = a.mul_add(b, sums[k % 16]);
    }
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
    }
    sums[0]
}
