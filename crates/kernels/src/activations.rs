//! Activation vectors: f32 values, and the 8-bit codes made from them once for all quantised matrices that read them.
//!
//! The buffer is made once for the largest batch and reused. Codes are made by [`Cpu::quantize`] as NUMBERS.md says: per block
//! of 32 values, d = max |x| / 127, codes in [-127, 127]. Block kinds of other lengths (superblocks) get arrays of their own.

use crate::{Cpu, Error, Isa, arch, split};
use std::sync::atomic::{AtomicBool, Ordering};

/// Values that share one scale.
pub(crate) const BLOCK_LEN: usize = 32;

/// The codes of 32 values with everything that a product needs of them, so that a kernel follows one pointer a token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C, align(16))]
pub(crate) struct CodeBlock {
    /// round_even(x / scale), never -128.
    pub(crate) codes: [i8; BLOCK_LEN],
    /// max |x| / 127; 0 for blocks under 2^-100.
    pub(crate) scale: f32,
    /// scale · f32(sum of the codes): meets the minimum of Q4_1.
    pub(crate) scaled_sum: f32,
    /// -8 · sum: takes back the offset of 4-bit codes (twice: of 5-bit codes).
    pub(crate) minus_8_sums: i32,
    /// -128 · sum: takes back the offset of 8-bit codes in [`crate::Layout::Rows16`].
    pub(crate) minus_128_sums: i32,
}

/// Blocks under this maximum become zero: 127 / max must stay finite.
pub(crate) const MAX_OF_ZERO_BLOCK: f32 = f32::from_bits((127 - 100) << 23);

/// Values that one thread quantises in about the time that waking another takes.
const VALUES_WORTH_A_THREAD: usize = 32 << 10;

/// A batch of activation vectors, `[rows, columns]`.
#[derive(Debug)]
pub struct Activations {
    values: Box<[f32]>,
    blocks: Box<[CodeBlock]>,
    max_rows: usize,
    max_columns: usize,
    rows: usize,
    columns: usize,
    has_codes: bool,
}

/// Blocks from one row to the next. Odd, so that rows of a power-of-two length don't all fall into one cache set.
const fn block_stride(columns: usize) -> usize {
    (columns / BLOCK_LEN) | 1
}

impl Activations {
    /// Room for batches of up to `max_rows` vectors of up to `max_columns` values.
    pub fn new(max_rows: usize, max_columns: usize) -> Activations {
        Activations {
            // Not zeros, which the system would back with memory only when they are written: the peak must not depend on use.
            values: vec![f32::NAN; max_rows * max_columns].into_boxed_slice(),
            blocks: vec![CodeBlock::default(); max_rows * block_stride(max_columns)].into_boxed_slice(),
            max_rows,
            max_columns,
            rows: 0,
            columns: 0,
            has_codes: false,
        }
    }

    /// Bytes that [`Activations::new`] allocates.
    pub const fn bytes(max_rows: usize, max_columns: usize) -> usize {
        max_rows * (max_columns * size_of::<f32>() + block_stride(max_columns) * size_of::<CodeBlock>())
    }

    /// Starts a batch and gives its values to write, `[rows, columns]`; what they were before is unspecified.
    ///
    /// # Panics
    /// If the batch is larger than the buffer was made for.
    pub fn begin(&mut self, rows: usize, columns: usize) -> &mut [f32] {
        assert!(
            rows <= self.max_rows && columns <= self.max_columns,
            "a batch of {rows} x {columns} activations in a buffer of {} x {}",
            self.max_rows,
            self.max_columns
        );
        (self.rows, self.columns, self.has_codes) = (rows, columns, false);
        &mut self.values[..rows * columns]
    }

    /// Vectors in the batch.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values of a vector.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The batch, `[rows, columns]`.
    pub fn values(&self) -> &[f32] {
        &self.values[..self.rows * self.columns]
    }

    pub(crate) fn has_codes(&self) -> bool {
        self.has_codes
    }

    /// Vector `row`.
    pub(crate) fn row_values(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns..][..self.columns]
    }

    /// Codes of vector `row`.
    pub(crate) fn row_blocks(&self, row: usize) -> &[CodeBlock] {
        &self.blocks[row * block_stride(self.columns)..][..self.columns / BLOCK_LEN]
    }
}

/// A pointer that all parts of a region use; each touches its own blocks only.
#[derive(Clone, Copy)]
struct Shared(*mut CodeBlock);

// SAFETY: the blocks that the parts touch are disjoint, and the region ends before the buffer is used otherwise.
unsafe impl Sync for Shared {}

impl Shared {
    fn add(&self, blocks: usize) -> *mut CodeBlock {
        self.0.wrapping_add(blocks)
    }
}

impl Cpu {
    /// Makes the 8-bit codes of the batch, which products with quantised weights need.
    ///
    /// # Errors
    /// [`Error::NonFinite`] if any value is infinite or not a number; the batch has no codes then.
    ///
    /// # Panics
    /// If the vectors are no whole number of 32 values.
    pub fn quantize(&self, activations: &mut Activations) -> Result<(), Error> {
        let (rows, columns) = (activations.rows, activations.columns);
        assert!(columns.is_multiple_of(BLOCK_LEN), "{columns} activations are no whole number of {BLOCK_LEN}");
        let row_blocks = columns / BLOCK_LEN;
        let stride = block_stride(columns);
        let finite = AtomicBool::new(true);
        let values = &activations.values[..rows * columns];
        let blocks = Shared(activations.blocks.as_mut_ptr());
        assert!(rows * stride <= activations.blocks.len());
        let part = |parts: usize, index: usize| {
            let range = split(rows * row_blocks, parts, index);
            let mut next = range.start;
            while next < range.end {
                let (row, first) = (next / row_blocks, next % row_blocks);
                let count = (row_blocks - first).min(range.end - next);
                let values = &values[next * BLOCK_LEN..][..count * BLOCK_LEN];
                // SAFETY: row < rows and first + count <= row_blocks <= stride, so the blocks lie inside the buffer (asserted
                // above); the ranges of `split` are disjoint, so no other part has them.
                let blocks = unsafe { std::slice::from_raw_parts_mut(blocks.add(row * stride + first), count) };
                if !quantize(self.isa, values, blocks) {
                    finite.store(false, Ordering::Relaxed);
                }
                next += count;
            }
        };
        if values.len() < 2 * VALUES_WORTH_A_THREAD {
            part(1, 0);
        } else {
            self.pool.run(&|index| part(self.pool.threads(), index));
        }
        activations.has_codes = finite.into_inner();
        if activations.has_codes { Ok(()) } else { Err(Error::NonFinite) }
    }
}

/// Makes the codes of whole blocks; `false` if any value is not finite.
fn quantize(isa: Isa, values: &[f32], blocks: &mut [CodeBlock]) -> bool {
    match isa {
        Isa::Scalar => arch::scalar::activations::quantize(values, blocks),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Cpu::new` has proved that this CPU has the instruction set.
        Isa::Avx2 => unsafe { arch::x86_64::avx2::activations::quantize(values, blocks) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512Vnni => unsafe { arch::x86_64::avx512::activations::quantize(values, blocks) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => unreachable!("this CPU has no {isa}"),
    }
}
