//! Weights in memory, handed out matrix after matrix: before a matrix comes again, far more than the caches hold has been read.

use moce_flash::Memory;
use moce_kernels::{Cpu, Layout, Matrix};
use moce_quant::Format;

/// Bytes a format. All formats take turns, so hundreds of megabytes lie between two uses of a matrix; and no page rests so long that
/// the host of a virtual machine would take it away.
const BYTES: usize = 64 << 20;

/// Rows that are put in kernel order together; a multiple of every group.
const CHUNK_ROWS: usize = 64;

/// Ordered weights of one format on huge pages.
pub(crate) struct Weights {
    format: Format,
    columns: usize,
    layout: Layout,
    rows: usize,
    next: usize,
    memory: Memory,
}

impl Weights {
    pub(crate) fn new(cpu: &Cpu, format: Format, columns: usize) -> Weights {
        let row_bytes = format.row_bytes(columns).expect("whole quant blocks");
        let rows = BYTES / row_bytes / CHUNK_ROWS * CHUNK_ROWS;
        let values: Vec<f32> =
            (0..CHUNK_ROWS * columns).map(|i| ((i * 2_654_435_761) as u32 as f32 / 2e9 - 1.0) * 0.1).collect();
        let mut chunk = vec![0; CHUNK_ROWS * row_bytes];
        moce_quant::encode(format, &values, &mut chunk);
        let layout = cpu.order(format, CHUNK_ROWS, columns, &mut chunk);
        let mut memory = Memory::reserve(rows * row_bytes).expect("memory");
        memory.chunks_exact_mut(chunk.len()).for_each(|part| part.copy_from_slice(&chunk));
        Weights { format, columns, layout, rows, next: 0, memory }
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// The next `rows` rows (a multiple of [`CHUNK_ROWS`]), from the start again when they don't fit any more.
    pub(crate) fn next(&mut self, rows: usize) -> Matrix<'_> {
        if self.next + rows > self.rows {
            self.next = 0;
        }
        let row_bytes = self.format.row_bytes(self.columns).expect("whole quant blocks");
        let bytes = &self.memory[self.next * row_bytes..][..rows * row_bytes];
        self.next += rows;
        Matrix::new(self.format, rows, self.columns, self.layout, bytes).expect("whole rows")
    }
}
