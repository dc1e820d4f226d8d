//! Random weights: independent, of a wanted mean and deviation, as good as incompressible, made faster than disks write.
//!
//! Sums over them must be zero on average where the mean is: 4-bit codes are 1 to 15 (8 stands for 0), because 0 to 15 leans to one side,
//! and then every token would be routed to the same experts. For the same reason 8-bit codes are -127 to 127.

use half::f16;
use moce_quant::Format;
use rand_core::RngCore;

/// Scales that blocks choose from.
const SCALES: usize = 256;
/// Root mean square of the codes less 8 that [`without_zero`] leaves: -7 to 7 once each and 0 twice.
const CODE4_DEVIATION: f32 = 4.183_3; // sqrt(2 · 140 / 16)
/// Of -127 to 127 once each and 0 twice.
const CODE8_DEVIATION: f32 = 73.467; // sqrt(2 · 690,880 / 256)

const Q4_0_BYTES: usize = Format::Q4_0.block_bytes();
const Q8_0_BYTES: usize = Format::Q8_0.block_bytes();

/// How the weights of a tensor are made.
pub(super) struct Weights {
    format: Format,
    mean: f32,
    deviation: f32,
    /// Of quant blocks, between 3/4 and 5/4 of what gives the deviation.
    scales: [[u8; 2]; SCALES],
}

impl Weights {
    pub(super) fn new(format: Format, mean: f32, deviation: f32) -> Weights {
        let code_deviation = if format == Format::Q8_0 { CODE8_DEVIATION } else { CODE4_DEVIATION };
        let scale = |index| deviation / code_deviation * (0.75 + 0.5 * index as f32 / (SCALES - 1) as f32);
        let scales = std::array::from_fn(|index| f16::from_f32(scale(index)).to_le_bytes());
        Weights { format, mean, deviation, scales }
    }

    /// Fills whole quant blocks.
    pub(super) fn fill(&self, random: &mut impl RngCore, bytes: &mut [u8]) {
        match self.format {
            Format::Q4_0 if self.mean == 0.0 => {
                for block in bytes.as_chunks_mut::<Q4_0_BYTES>().0 {
                    block[..2].copy_from_slice(self.scale(random));
                    for codes in block[2..].as_chunks_mut().0 {
                        *codes = without_zero(random.next_u64()).to_le_bytes();
                    }
                }
            }
            Format::Q8_0 if self.mean == 0.0 => {
                for block in bytes.as_chunks_mut::<Q8_0_BYTES>().0 {
                    block[..2].copy_from_slice(self.scale(random));
                    for codes in block[2..].as_chunks_mut().0 {
                        let random = random.next_u64().to_le_bytes();
                        *codes = random.map(|code| if code == i8::MIN as u8 { 0 } else { code });
                    }
                }
            }
            format => {
                // Uniform, as wide as the deviation asks for.
                let step = self.deviation * (2.0 * 3f32.sqrt()) / (1u32 << 24) as f32;
                let mut weight = || self.mean + ((random.next_u32() >> 8) as f32 - 8_388_607.5) * step;
                // A row of its own for each 32 weights: all formats have blocks of 1 or 32.
                let (mut values, block_len) = ([0.0; 256], format.block_len());
                for bytes in bytes.chunks_mut(values.len() / block_len * format.block_bytes()) {
                    let values = &mut values[..bytes.len() / format.block_bytes() * block_len];
                    values.fill_with(&mut weight);
                    moce_quant::encode(format, values, bytes);
                }
            }
        }
    }

    fn scale(&self, random: &mut impl RngCore) -> &[u8; 2] {
        &self.scales[random.next_u32() as usize % SCALES]
    }
}

/// Sixteen 4-bit codes, of which those that are 0 become 8.
fn without_zero(codes: u64) -> u64 {
    const LOW: u64 = 0x1111_1111_1111_1111;
    let some_bit = (codes | codes >> 1 | codes >> 2 | codes >> 3) & LOW;
    codes | (some_bit ^ LOW) << 3
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::SeedableRng;
    use rand_xoshiro::Xoshiro256PlusPlus;

    #[test]
    fn codes_are_never_zero_and_else_unchanged() {
        assert_eq!(without_zero(0), 0x8888_8888_8888_8888);
        assert_eq!(without_zero(0x0123_4567_89ab_cdef), 0x8123_4567_89ab_cdef);
        assert_eq!(without_zero(0xf0e0_d0c0_b0a0_9080), 0xf8e8_d8c8_b8a8_9888);
    }

    #[test]
    fn every_format_has_the_mean_and_deviation_asked_for() {
        for format in Format::ALL {
            for (mean, deviation) in [(0.0f32, 8.0f32), (0.0, 0.02), (1.0, 0.05)] {
                let mut bytes = vec![0; format.row_bytes(1 << 18).unwrap()];
                let mut random = Xoshiro256PlusPlus::seed_from_u64(7);
                Weights::new(format, mean, deviation).fill(&mut random, &mut bytes);
                let mut values = vec![0.0; 1 << 18];
                moce_quant::decode(format, &bytes, &mut values);
                let n = values.len() as f64;
                let found_mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
                let squares = values.iter().map(|&x| (f64::from(x) - found_mean).powi(2)).sum::<f64>();
                let found_deviation = (squares / n).sqrt();
                // The mean of n weights has a deviation of deviation / sqrt(n); formats with a mean of 1 round to coarse steps.
                let close = if mean == 0.0 { f64::from(deviation) * 4.0 / n.sqrt() } else { 0.01 };
                let off = (found_mean - f64::from(mean)).abs();
                assert!(off < close, "{}: mean {found_mean} for {mean}", format.name());
                let ratio = found_deviation / f64::from(deviation);
                let fine = mean == 0.0 || format.block_len() == 1;
                assert!(!fine || (0.9..1.1).contains(&ratio), "{}: deviation {found_deviation}", format.name());
            }
        }
    }
}
