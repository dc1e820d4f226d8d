//! NUMBERS.md written out, on codes that come from `moce_quant::decode` and not from the kernels' own unpacking.

use half::f16;
use moce_quant::Format;

/// Activation codes of 32 values.
pub(crate) struct Block {
    pub(crate) codes: [i32; 32],
    pub(crate) scale: f32,
}

pub(crate) fn quantize(values: &[f32]) -> Vec<Block> {
    let blocks = values.as_chunks::<32>().0.iter().map(|values| {
        let max = values.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        if max < 2.0f32.powi(-100) {
            return Block { codes: [0; 32], scale: 0.0 };
        }
        let inverse = 127.0 / max;
        Block { codes: values.map(|x| (x * inverse).round_ties_even() as i32), scale: max / 127.0 }
    });
    blocks.collect()
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The codes of a quant block: what it decodes to with scale 1 and minimum 0.
fn codes(format: Format, bytes: &[u8]) -> [i32; 32] {
    let mut bytes = bytes.to_vec();
    bytes[..2].copy_from_slice(&f16::ONE.to_le_bytes());
    if format == Format::Q4_1 {
        bytes[2..4].copy_from_slice(&f16::ZERO.to_le_bytes());
    }
    let mut out = [0.0; 32];
    moce_quant::decode(format, &bytes, &mut out);
    out.map(|x| x as i32)
}

/// One output: a row of weights times one vector.
pub(crate) fn dot(format: Format, row: &[u8], values: &[f32], blocks: &[Block]) -> f32 {
    if format.block_len() == 1 {
        let mut weights = vec![0.0; values.len()];
        moce_quant::decode(format, row, &mut weights);
        return r16(&weights, values);
    }
    let mut sum = 0.0f32;
    for (bytes, block) in row.chunks(format.block_bytes()).zip(blocks) {
        let dot: i32 = codes(format, bytes).iter().zip(&block.codes).map(|(w, a)| w * a).sum();
        sum = (half_at(bytes, 0) * block.scale).mul_add(dot as f32, sum);
        if format == Format::Q4_1 {
            let code_sum: i32 = block.codes.iter().sum();
            sum = half_at(bytes, 2).mul_add(block.scale * code_sum as f32, sum);
        }
    }
    sum
}

fn r16(a: &[f32], b: &[f32]) -> f32 {
    let mut s = [0.0f32; 16];
    for k in 0..a.len() {
        s[k % 16] = a[k].mul_add(b[k], s[k % 16]);
    }
    for w in [8, 4, 2, 1] {
        for i in 0..w {
            s[i] += s[i + w];
        }
    }
    s[0]
}
