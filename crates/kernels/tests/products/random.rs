//! Seeded weights and activations, with the extremes that a file or a model may hold.

use half::f16;
use moce_quant::Format;

/// SplitMix64: small, seeded, the same everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// In [-1, 1).
    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    fn scale(&mut self, extreme: bool) -> f16 {
        match if extreme { self.below(8) } else { 7 } {
            0 => f16::ZERO,
            1 => f16::MAX,
            2 => f16::MIN,
            3 => f16::from_bits(1), // the smallest subnormal
            4 => f16::NEG_ZERO,
            _ => f16::from_f32(self.unit() * 0.1),
        }
    }

    /// `rows · columns` encoded weights: any code, finite scales; with `extreme`, also blocks of the outermost codes and scales.
    pub(crate) fn weights(&mut self, format: Format, rows: usize, columns: usize, extreme: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..rows * columns / format.block_len() {
            match format {
                Format::F32 => bytes.extend((self.unit() * 0.3).to_le_bytes()),
                Format::F16 => bytes.extend(f16::from_f32(self.unit() * 0.3).to_le_bytes()),
                Format::BF16 => bytes.extend(half::bf16::from_f32(self.unit() * 0.3).to_le_bytes()),
                _ => {
                    let start = bytes.len();
                    bytes.extend(self.scale(extreme).to_le_bytes());
                    let mut codes_from = 2;
                    if format == Format::Q4_1 {
                        bytes.extend(self.scale(extreme).to_le_bytes());
                        codes_from = 4;
                    }
                    let fill = if extreme { self.below(4) } else { 3 };
                    for _ in codes_from..format.block_bytes() {
                        // 0x80 is a code of -128 in Q8_0, 0xff the largest code of the others, 0 the smallest.
                        bytes.push([0x80, 0xff, 0, self.next() as u8][fill]);
                    }
                    assert_eq!(bytes.len() - start, format.block_bytes());
                }
            }
        }
        bytes
    }

    /// Activations; with `extreme`, also blocks that are zero, tiny, huge, or all of one magnitude: among them 2^-100, under which a
    /// block is zero.
    pub(crate) fn activations(&mut self, values: &mut [f32], extreme: bool) {
        for block in values.chunks_mut(32) {
            let kind = if extreme { self.below(12) } else { 11 };
            let least = 2f32.powi(-100);
            for x in block {
                *x = match kind {
                    0 => 0.0,
                    1 => self.unit() * 1e-31,
                    2 => self.unit() * 1e18,
                    3 => 3.5,                                            // every code 127
                    4 => -3.5,                                           // every code -127
                    5 => f32::from_bits(self.next() as u32 & 0x7f_ffff), // subnormal
                    6 => least,
                    7 => least.next_down(),
                    8 => -least.next_up(),
                    9 => self.unit() * 1e-20,
                    _ => self.unit() * 4.0,
                };
            }
        }
    }
}
