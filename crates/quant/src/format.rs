//! The formats and their geometry: weights and bytes of one quant block.

/// How the weights of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(non_camel_case_types)] // the names everybody knows from GGUF
pub enum Format {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of an IEEE single.
    BF16,
    /// 32 weights: f16 scale, 4-bit codes offset by 8.
    Q4_0,
    /// 32 weights: f16 scale, f16 minimum, 4-bit codes.
    Q4_1,
    /// 32 weights: f16 scale, 5-bit codes offset by 16 (high bits apart).
    Q5_0,
    /// 32 weights: f16 scale, signed 8-bit codes.
    Q8_0,
}

impl Format {
    /// Every format of this crate.
    pub const ALL: [Format; 7] =
        [Format::F32, Format::F16, Format::BF16, Format::Q4_0, Format::Q4_1, Format::Q5_0, Format::Q8_0];

    /// Weights in one quant block (1 for the float formats).
    pub const fn block_len(self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::BF16 => 1,
            Format::Q4_0 | Format::Q4_1 | Format::Q5_0 | Format::Q8_0 => 32,
        }
    }

    /// Bytes of one quant block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::F16 | Format::BF16 => 2,
            Format::Q4_0 => 18,
            Format::Q4_1 => 20,
            Format::Q5_0 => 22,
            Format::Q8_0 => 34,
        }
    }

    /// Bytes of a row of `columns` weights; `None` if that is no whole number of quant blocks, or over `usize`.
    pub const fn row_bytes(self, columns: usize) -> Option<usize> {
        if !columns.is_multiple_of(self.block_len()) {
            return None;
        }
        (columns / self.block_len()).checked_mul(self.block_bytes())
    }

    /// GGUF's name of the format.
    pub const fn name(self) -> &'static str {
        match self {
            Format::F32 => "F32",
            Format::F16 => "F16",
            Format::BF16 => "BF16",
            Format::Q4_0 => "Q4_0",
            Format::Q4_1 => "Q4_1",
            Format::Q5_0 => "Q5_0",
            Format::Q8_0 => "Q8_0",
        }
    }
}
