//! One worker's rows of one product, cut into what a micro-kernel takes: row groups times a tile of tokens.
//!
//! Rows in kernel order are walked in pieces that stay in the L2 cache while all tokens pass. Plain rows, and those that fill no
//! group, are put in kernel order a few quant blocks at a time, in a buffer that stays in the L1 cache: the sums so far wait in the
//! output meanwhile, which rounds nothing. For a single token AVX2 has a micro-kernel that reads them as they stand.

use super::{Operands, Output};
use crate::activations::{BLOCK_LEN, CodeBlock};
use crate::order::{self, BLOCK_BYTES_MAX};
use crate::{Isa, Layout, arch, split};
use moce_quant::Format;
use std::ops::Range;

/// Most tokens that a micro-kernel takes at once: accumulators and pointers in registers.
pub(crate) const TILE_TOKENS: usize = 8;

/// Most rows in a group.
const GROUP_ROWS_MAX: usize = 16;

/// Weights that stay in L2 (1 MiB and more on the processors in mind) beside the activations of a tile.
const PIECE_BYTES: usize = 384 << 10;

/// Quant blocks that are put in order at a time: 16 · 16 rows · 34 bytes = 8.5 KiB, a quarter of a small L1.
const PLAIN_BLOCKS: usize = 16;

/// What a micro-kernel computes: consecutive row groups in kernel order times one tile of tokens.
pub(crate) struct Groups {
    /// The first group.
    pub(crate) weights: *const u8,
    /// Bytes from one group to the next.
    pub(crate) group_bytes: usize,
    /// Row groups.
    pub(crate) groups: usize,
    /// Rows of each group that have an output; less than the group's only for a single group.
    pub(crate) group_rows: usize,
    /// Quant blocks of each row.
    pub(crate) blocks: usize,
    /// The first code block of each token.
    pub(crate) tokens: [*const CodeBlock; TILE_TOKENS],
    /// Where the first token's output of the first row stands.
    pub(crate) output: *mut f32,
    /// Elements from one token's outputs to the next's.
    pub(crate) output_stride: usize,
    /// The outputs hold sums of earlier quant blocks, to go on from.
    pub(crate) resume: bool,
    /// The weights may come from memory, not from a cache where earlier tokens have brought them.
    pub(crate) from_memory: bool,
}

/// What a micro-kernel of plain quantised weights computes: consecutive rows times one token.
pub(crate) struct PlainRows {
    /// The first row.
    pub(crate) weights: *const u8,
    /// Bytes from one row to the next.
    pub(crate) row_bytes: usize,
    /// Rows.
    pub(crate) rows: usize,
    /// Quant blocks of each row.
    pub(crate) blocks: usize,
    /// The first code block of the token.
    pub(crate) token: *const CodeBlock,
    /// Where the output of the first row stands.
    pub(crate) output: *mut f32,
}

/// What a micro-kernel of float weights computes: consecutive plain rows times one tile of tokens.
pub(crate) struct FloatRows {
    /// The first row.
    pub(crate) weights: *const u8,
    /// Bytes from one row to the next.
    pub(crate) row_bytes: usize,
    /// Rows.
    pub(crate) rows: usize,
    /// Weights of each row.
    pub(crate) columns: usize,
    /// The first value of each token.
    pub(crate) tokens: [*const f32; TILE_TOKENS],
    /// Where the first token's output of the first row stands.
    pub(crate) output: *mut f32,
    /// Elements from one token's outputs to the next's.
    pub(crate) output_stride: usize,
}

/// Rows that work is cut at: groups stay whole.
pub(super) fn unit_rows(isa: Isa) -> usize {
    match isa {
        Isa::Avx2 => Layout::Rows8.group_rows(),
        Isa::Scalar | Isa::Avx512Vnni => Layout::Rows16.group_rows(),
    }
}

/// Whether plain quantised rows are read as they stand. With several tokens they are put in kernel order on the way.
pub(super) fn as_it_stands(isa: Isa, operands: &Operands<'_>) -> bool {
    isa.reads_plain_rows() && operands.weights.layout == Layout::Plain && !operands.is_float() && operands.tokens() == 1
}

/// Computes `rows` of a product; they start at a multiple of [`unit_rows`] and end at one or with the matrix.
pub(super) fn rows(isa: Isa, operands: &Operands<'_>, rows: Range<usize>, output: &mut Output<'_>) {
    let weights = &operands.weights;
    let order = isa.layout(weights.format);
    if isa == Isa::Scalar {
        match operands.is_float() {
            true => arch::scalar::product::float(operands, rows, output),
            false => arch::scalar::product::quantised(operands, rows, output),
        }
    } else if operands.is_float() {
        float(isa, operands, rows, output);
    } else if as_it_stands(isa, operands) {
        plain_rows(isa, operands, rows, output);
    } else if weights.layout == Layout::Plain {
        plain(isa, operands, rows, output);
    } else if weights.layout == order {
        let whole = weights.rows / order.group_rows() * order.group_rows();
        ordered(isa, operands, rows.start..rows.end.min(whole), output);
        if rows.end > whole {
            plain(isa, operands, whole..rows.end, output);
        }
    } else {
        // Another instruction set's order: right, not fast.
        arch::scalar::product::quantised(operands, rows, output);
    }
}

/// Cuts `count` tokens into tiles whose sizes differ by at most one.
fn tiles(count: usize) -> impl Iterator<Item = Range<usize>> {
    let tiles = count.div_ceil(TILE_TOKENS);
    (0..tiles).map(move |tile| split(count, tiles, tile))
}

/// Whole groups in the kernel order of `isa`.
fn ordered(isa: Isa, operands: &Operands<'_>, rows: Range<usize>, output: &mut Output<'_>) {
    let weights = &operands.weights;
    let group_rows = weights.layout.group_rows();
    let group_bytes = group_rows * weights.row_bytes();
    let piece_rows = (PIECE_BYTES / group_bytes.max(1)).max(1) * group_rows;
    let mut first = rows.start;
    while first < rows.end {
        let piece = first..rows.end.min(first + piece_rows);
        let bytes = &weights.bytes[piece.start * weights.row_bytes()..piece.end * weights.row_bytes()];
        for tile in tiles(operands.tokens()) {
            let job = Groups {
                weights: bytes.as_ptr(),
                group_bytes,
                groups: piece.len() / group_rows,
                group_rows,
                blocks: weights.columns / BLOCK_LEN,
                tokens: code_pointers(operands, &tile, 0),
                output: output.pointer(tile.start, piece.start),
                output_stride: output.stride(),
                resume: false,
                from_memory: tile.start == 0,
            };
            groups(isa, weights.format, tile.len(), &job);
        }
        first = piece.end;
    }
}

/// Plain rows, in groups of which the last need not be full.
fn plain(isa: Isa, operands: &Operands<'_>, rows: Range<usize>, output: &mut Output<'_>) {
    let weights = &operands.weights;
    let (row_bytes, block_bytes) = (weights.row_bytes(), weights.format.block_bytes());
    let layout = isa.layout(weights.format);
    let group_rows = layout.group_rows();
    let blocks = weights.columns / BLOCK_LEN;
    let mut buffer = [0; PLAIN_BLOCKS * GROUP_ROWS_MAX * BLOCK_BYTES_MAX];
    for first in rows.clone().step_by(group_rows) {
        let count = group_rows.min(rows.end - first);
        for first_block in (0..blocks).step_by(PLAIN_BLOCKS) {
            let block_count = PLAIN_BLOCKS.min(blocks - first_block);
            let starts: [usize; GROUP_ROWS_MAX] =
                std::array::from_fn(|row| (first + row.min(count - 1)) * row_bytes + first_block * block_bytes);
            let buffer = &mut buffer[..block_count * group_rows * block_bytes];
            order::interleave(weights.format, layout, weights.bytes, &starts[..group_rows], buffer);
            // Row after row these reads are too scattered for the hardware to run ahead; but the next group lies in one piece behind
            // this one, so as much of it is asked for as was done of this one (6 against 14 GB/s).
            let ahead = (first + group_rows) * row_bytes + first_block * block_bytes * group_rows;
            let ahead = weights.bytes.get(ahead..).unwrap_or_default();
            order::prefetch(&ahead[..ahead.len().min(buffer.len())]);
            for tile in tiles(operands.tokens()) {
                let job = Groups {
                    weights: buffer.as_ptr(),
                    group_bytes: buffer.len(),
                    groups: 1,
                    group_rows: count,
                    blocks: block_count,
                    tokens: code_pointers(operands, &tile, first_block),
                    output: output.pointer(tile.start, first),
                    output_stride: output.stride(),
                    resume: first_block > 0,
                    from_memory: false,
                };
                groups(isa, weights.format, tile.len(), &job);
            }
        }
        if blocks == 0 {
            (0..operands.tokens())
                .for_each(|token| (first..first + count).for_each(|row| output.write(token, row, 0.0)));
        }
    }
}

/// Plain rows times a single token, as they stand.
fn plain_rows(isa: Isa, operands: &Operands<'_>, rows: Range<usize>, output: &mut Output<'_>) {
    let weights = &operands.weights;
    let row_bytes = weights.row_bytes();
    let job = PlainRows {
        weights: weights.bytes[rows.start * row_bytes..rows.end * row_bytes].as_ptr(),
        row_bytes,
        rows: rows.len(),
        blocks: weights.columns / BLOCK_LEN,
        token: operands.input.row_blocks(operands.input_row(0)).as_ptr(),
        output: output.pointer(0, rows.start),
    };
    match isa {
        // SAFETY: as in `groups`: `Operands::check` has looked at all shapes, and the job's pointers come from slices that hold what
        // `PlainRows` says.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { arch::x86_64::avx2::product_plain::rows(weights.format, &job) },
        _ => unreachable!("{isa} has no micro-kernel of {} plain rows", job.rows),
    }
}

/// Rows of float weights.
fn float(isa: Isa, operands: &Operands<'_>, rows: Range<usize>, output: &mut Output<'_>) {
    let weights = &operands.weights;
    let row_bytes = weights.row_bytes();
    let piece_rows = (PIECE_BYTES / row_bytes.max(1)).max(1);
    let mut first = rows.start;
    while first < rows.end {
        let piece = first..rows.end.min(first + piece_rows);
        let bytes = &weights.bytes[piece.start * row_bytes..piece.end * row_bytes];
        for tile in tiles(operands.tokens()) {
            let mut tokens = [std::ptr::null(); TILE_TOKENS];
            for (pointer, token) in tokens.iter_mut().zip(tile.clone()) {
                *pointer = operands.input.row_values(operands.input_row(token)).as_ptr();
            }
            let job = FloatRows {
                weights: bytes.as_ptr(),
                row_bytes,
                rows: piece.len(),
                columns: weights.columns,
                tokens,
                output: output.pointer(tile.start, piece.start),
                output_stride: output.stride(),
            };
            float_rows(isa, weights.format, tile.len(), &job);
        }
        first = piece.end;
    }
}

/// The code block `first_block` of each token of a tile.
fn code_pointers(operands: &Operands<'_>, tile: &Range<usize>, first_block: usize) -> [*const CodeBlock; TILE_TOKENS] {
    let mut pointers = [std::ptr::null(); TILE_TOKENS];
    for (pointer, token) in pointers.iter_mut().zip(tile.clone()) {
        *pointer = operands.input.row_blocks(operands.input_row(token))[first_block..].as_ptr();
    }
    pointers
}

fn groups(isa: Isa, format: Format, tokens: usize, job: &Groups) {
    match isa {
        // SAFETY: `Cpu::new` has proved that this CPU has the instruction set; `Operands::check` has looked at all shapes, and
        // `ordered` and `plain` derive every pointer from slices that hold what `Groups` says.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { arch::x86_64::avx2::product::groups(format, tokens, job) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => unsafe { arch::x86_64::avx512::product::groups(format, tokens, job) },
        _ => unreachable!("{isa} has no row groups"),
    }
}

fn float_rows(isa: Isa, format: Format, tokens: usize, job: &FloatRows) {
    match isa {
        // SAFETY: as in `groups`, with `float` deriving the pointers.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { arch::x86_64::avx2::product_float::rows(format, tokens, job) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => unsafe { arch::x86_64::avx512::product_float::rows(format, tokens, job) },
        _ => unreachable!("{isa} has no micro-kernel of float weights"),
    }
}
