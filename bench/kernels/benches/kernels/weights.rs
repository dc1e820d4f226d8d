//! Weights in memory, handed out matrix after matrix: before a matrix comes again, far more than the caches hold has been read.

use moce_flash::Memory;
use moce_kernels::{Layout, Matrix};
use moce_quant::Format;

/// Ten times a large L3 cache.
const BYTES: usize = 384 << 20;

/// Memory that every format and every read loop takes its turn in, so that all meet the same pages: on a virtual machine some are
/// much slower than others.
pub(crate) struct Weights {
    columns: usize,
    next: usize,
    memory: Memory,
}

impl Weights {
    pub(crate) fn new(columns: usize) -> Weights {
        let mut memory = Memory::reserve(BYTES).expect("memory");
        let mut x = 1u64;
        for word in memory.as_chunks_mut::<8>().0 {
            x = x.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            // Bytes up to 0x3f, so that read as a scale or a float they are finite, whatever the format.
            *word = (x >> 2 & 0x3f3f_3f3f_3f3f_3f3f).to_le_bytes();
        }
        Weights { columns, next: 0, memory }
    }

    /// The next `rows` rows, in this layout.
    pub(crate) fn matrix(&mut self, format: Format, layout: Layout, rows: usize) -> Matrix<'_> {
        let columns = self.columns;
        let bytes = self.bytes(rows * format.row_bytes(columns).expect("whole quant blocks"));
        Matrix::new(format, rows, columns, layout, bytes).expect("whole rows")
    }

    /// The next `count` bytes.
    pub(crate) fn bytes(&mut self, count: usize) -> &[u8] {
        if self.next + count > self.memory.len() {
            self.next = 0;
        }
        let start = self.next;
        self.next = (start + count).next_multiple_of(4096);
        &self.memory[start..start + count]
    }
}
