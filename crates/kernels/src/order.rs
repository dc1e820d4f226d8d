//! Kernel order: where each byte of a quantised matrix stands so that one load feeds one dot instruction.
//!
//! R rows form a group; a group keeps the place of its rows and is cut into blocks of R times one quant block:
//!
//! | field | bytes | content |
//! | --- | --- | --- |
//! | scales | 2·R | the f16 scales of the R rows |
//! | minimums | 2·R | where the format has them (Q4_1) |
//! | bit planes | 4·R | where codes have a fifth bit (Q5_0): bit `w` of byte `4·row + k` belongs to weight `4·w + k` |
//! | code words | 4·R each | word `w` of all R rows side by side: each 32-bit lane is one row |
//!
//! A word is the same 4 bytes as in the file: 4 codes (8 bits), or the low nibbles of 4 codes and the high nibbles of the 4 codes
//! 16 further on. [`Layout::Rows16`] stores 8-bit codes as code + 128. Rows that fill no group stay plain, at the end. Float
//! formats have no kernel order.

use crate::parts::Parts;
use crate::{Cpu, Isa, Layout, Matrix, arch, split};
use moce_quant::Format;
use std::cell::RefCell;

/// Matrices of fewer bytes are ordered by one thread: at 10 GB/s they take no longer than 13 microseconds.
const WORTH_A_REGION_BYTES: usize = 128 << 10;

/// Bytes of the largest quant block.
pub(crate) const BLOCK_BYTES_MAX: usize = 34;

/// What a 32-weight quant block consists of, in the order of its bytes.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// f16 values: the scale, then the minimum.
    pub(crate) scales: usize,
    /// 4-byte words of fifth bits.
    pub(crate) planes: usize,
    /// 4-byte words of codes.
    pub(crate) words: usize,
}

impl Shape {
    /// `None` for the float formats, which have no kernel order.
    pub(crate) const fn of(format: Format) -> Option<Shape> {
        match format {
            Format::Q4_0 => Some(Shape { scales: 1, planes: 0, words: 4 }),
            Format::Q4_1 => Some(Shape { scales: 2, planes: 0, words: 4 }),
            Format::Q5_0 => Some(Shape { scales: 1, planes: 1, words: 4 }),
            Format::Q8_0 => Some(Shape { scales: 1, planes: 0, words: 8 }),
            _ => None,
        }
    }

    /// Bytes of one row's block.
    pub(crate) const fn bytes(self) -> usize {
        2 * self.scales + 4 * self.planes + 4 * self.words
    }
}

/// What is xored into code words: adds 128 to four signed bytes.
const fn code_flip(format: Format, layout: Layout) -> u32 {
    match (format, layout) {
        (Format::Q8_0, Layout::Rows16) => 0x8080_8080,
        _ => 0,
    }
}

/// The exchanges of bits that turn fifth bits as a file has them into bit planes: (distance, mask) as [`swap_bits`] takes them.
///
/// Bit `4·w + k` moves to bit `8·k + w`. With the five bits of a position written w2 w1 w0 k1 k0, each step exchanges two of the five.
pub(crate) const PLANE_STEPS: [(u32, u32); 4] =
    [(1, 0x2222_2222), (3, 0x0a0a_0a0a), (6, 0x00cc_00cc), (12, 0x0000_f0f0)];

/// Exchanges the bits in `mask` with those `distance` above them.
fn swap_bits(x: u32, (distance, mask): (u32, u32)) -> u32 {
    let changed = ((x >> distance) ^ x) & mask;
    x ^ changed ^ (changed << distance)
}

pub(crate) fn planes_from_bits(bits: u32) -> u32 {
    PLANE_STEPS.into_iter().fold(bits, swap_bits)
}

/// The inverse: the same steps backwards.
fn bits_from_planes(planes: u32) -> u32 {
    PLANE_STEPS.into_iter().rev().fold(planes, swap_bits)
}

/// Interleaves the quant blocks that start at `rows[i]` into kernel order, block after block until `out` is full.
///
/// Row `i` of the group is read from `plain[rows[i]..]`; rows may repeat (a group that is not full repeats its last row).
pub(crate) fn interleave(format: Format, layout: Layout, plain: &[u8], rows: &[usize], out: &mut [u8]) {
    let flip = code_flip(format, layout);
    match (layout, format) {
        (Layout::Rows8, Format::Q4_0) => interleave_shape::<8, 1, 0, 4>(plain, rows, flip, out),
        (Layout::Rows8, Format::Q4_1) => interleave_shape::<8, 2, 0, 4>(plain, rows, flip, out),
        (Layout::Rows8, Format::Q5_0) => interleave_shape::<8, 1, 1, 4>(plain, rows, flip, out),
        (Layout::Rows8, Format::Q8_0) => interleave_shape::<8, 1, 0, 8>(plain, rows, flip, out),
        (Layout::Rows16, Format::Q4_0) => interleave_shape::<16, 1, 0, 4>(plain, rows, flip, out),
        (Layout::Rows16, Format::Q4_1) => interleave_shape::<16, 2, 0, 4>(plain, rows, flip, out),
        (Layout::Rows16, Format::Q5_0) => interleave_shape::<16, 1, 1, 4>(plain, rows, flip, out),
        (Layout::Rows16, Format::Q8_0) => interleave_shape::<16, 1, 0, 8>(plain, rows, flip, out),
        _ => unreachable!("{} has no {layout:?} order", format.name()),
    }
}

/// [`interleave`] for one number of rows and one shape.
fn interleave_shape<const R: usize, const SCALES: usize, const PLANES: usize, const WORDS: usize>(
    plain: &[u8],
    rows: &[usize],
    flip: u32,
    out: &mut [u8],
) {
    let rows: &[usize; R] = rows.try_into().expect("one start a row");
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has SSE2.
    unsafe {
        arch::x86_64::order::interleave::<R, SCALES, PLANES, WORDS>(plain, rows, flip, out);
    }
    #[cfg(not(target_arch = "x86_64"))]
    arch::scalar::order::interleave::<R, SCALES, PLANES, WORDS>(plain, rows, flip, out);
}

/// Asks for bytes that will be interleaved soon.
pub(crate) fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    arch::x86_64::order::prefetch(bytes);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// Copies the quant block of one row out of a group's block: the inverse of [`interleave`].
pub(crate) fn extract(format: Format, layout: Layout, group: &[u8], row: usize, out: &mut [u8]) {
    let shape = Shape::of(format).expect("only quantised formats are put in kernel order");
    let flip = code_flip(format, layout);
    let group_rows = layout.group_rows();
    let (scales, words) = group.split_at(2 * group_rows * shape.scales);
    for i in 0..shape.scales {
        out[2 * i..][..2].copy_from_slice(&scales[2 * (group_rows * i + row)..][..2]);
    }
    for (i, out) in out[2 * shape.scales..].as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let word = words[4 * (group_rows * i + row)..].first_chunk().expect("a word of every row");
        let word = u32::from_le_bytes(*word);
        *out = (if i < shape.planes { bits_from_planes(word) } else { word ^ flip }).to_le_bytes();
    }
}

thread_local! {
    /// One row group: grows to the largest that this thread has seen.
    static GROUP: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Calls `convert(plain or ordered bytes of a group, the same place to write)` for each whole group.
fn each_group(bytes: &mut [u8], group_bytes: usize, convert: impl Fn(&[u8], &mut [u8])) {
    if group_bytes == 0 {
        return;
    }
    GROUP.with_borrow_mut(|scratch| {
        if scratch.len() < group_bytes {
            scratch.resize(group_bytes, 0);
        }
        for group in bytes.chunks_exact_mut(group_bytes) {
            let scratch = &mut scratch[..group_bytes];
            scratch.copy_from_slice(group);
            convert(scratch, group);
        }
    });
}

impl Isa {
    /// The kernel order that products of this instruction set read fastest; [`Layout::Plain`] for float formats.
    pub fn layout(self, format: Format) -> Layout {
        match (self, Shape::of(format)) {
            (_, None) | (Isa::Scalar, _) => Layout::Plain,
            (Isa::Avx2, Some(_)) => Layout::Rows8,
            (Isa::Avx512Vnni, Some(_)) => Layout::Rows16,
        }
    }

    /// Whether one vector times quantised rows in [`Layout::Plain`] takes little longer than in kernel order: with AVX2
    /// 5 % (8-bit codes) to 50 % (Q5_0). Elsewhere they are put in order on the way, each time.
    pub fn reads_plain_rows(self) -> bool {
        self == Isa::Avx2
    }
}

impl Cpu {
    /// Puts a plain matrix into the kernel order of this instruction set, in place, on all workers if it is large.
    ///
    /// Beside the bytes it needs one row group of scratch for each worker, which the thread keeps.
    ///
    /// # Panics
    /// If `bytes` is not a whole matrix of this shape.
    pub fn order(&self, format: Format, rows: usize, columns: usize, bytes: &mut [u8]) -> Layout {
        let layout = self.isa.layout(format);
        Matrix { format, rows, columns, layout, bytes }.check();
        if layout != Layout::Plain {
            let row_bytes = format.row_bytes(columns).expect("checked");
            let starts: [usize; 16] = std::array::from_fn(|row| row * row_bytes);
            let group_rows = layout.group_rows();
            let group_bytes = group_rows * row_bytes;
            let convert =
                |plain: &[u8], group: &mut [u8]| interleave(format, layout, plain, &starts[..group_rows], group);
            if bytes.len() < WORTH_A_REGION_BYTES {
                each_group(bytes, group_bytes, convert);
            } else {
                let groups = rows / group_rows;
                let parts = Parts::new(bytes);
                self.pool.run(&|index| {
                    let groups = split(groups, self.threads(), index);
                    // SAFETY: the ranges that `split` gives for different parts are disjoint.
                    let part = unsafe { parts.part(groups.start * group_bytes..groups.end * group_bytes) };
                    each_group(part, group_bytes, convert);
                });
            }
        }
        layout
    }

    /// As [`Cpu::order`], for a matrix that stands in any layout: what is in another instruction set's order is restored first, by one
    /// thread.
    ///
    /// # Panics
    /// If `bytes` is not a whole matrix of this shape.
    pub fn reorder(&self, format: Format, rows: usize, columns: usize, from: Layout, bytes: &mut [u8]) -> Layout {
        if from == self.isa.layout(format) {
            return from;
        }
        restore(format, rows, columns, from, bytes);
        self.order(format, rows, columns, bytes)
    }
}

/// Puts a plain matrix into a kernel order, in place: for files, whatever this CPU's own order is.
///
/// # Panics
/// If `bytes` is not a whole matrix of this shape, or a float format is given a kernel order.
pub fn order(format: Format, rows: usize, columns: usize, layout: Layout, bytes: &mut [u8]) {
    Matrix { format, rows, columns, layout, bytes }.check();
    if layout == Layout::Plain {
        return;
    }
    let row_bytes = format.row_bytes(columns).expect("checked");
    let starts: [usize; 16] = std::array::from_fn(|row| row * row_bytes);
    let group_rows = layout.group_rows();
    each_group(bytes, group_rows * row_bytes, |plain, group| {
        interleave(format, layout, plain, &starts[..group_rows], group);
    });
}

/// Puts a matrix in kernel order back into the order of the file: the inverse of [`order`] and [`Cpu::order`].
///
/// # Panics
/// If `bytes` is not a whole matrix of this shape.
pub fn restore(format: Format, rows: usize, columns: usize, layout: Layout, bytes: &mut [u8]) {
    Matrix { format, rows, columns, layout, bytes }.check();
    if layout == Layout::Plain {
        return;
    }
    let (row_bytes, block_bytes) = (format.row_bytes(columns).expect("checked"), format.block_bytes());
    let group_rows = layout.group_rows();
    each_group(bytes, group_rows * row_bytes, |ordered, group| {
        for (row, plain) in group.chunks_exact_mut(row_bytes).enumerate() {
            for (block, plain) in plain.chunks_exact_mut(block_bytes).enumerate() {
                let ordered = &ordered[block * group_rows * block_bytes..][..group_rows * block_bytes];
                extract(format, layout, ordered, row, plain);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bit_planes_are_where_they_belong() {
        for w in 0..8 {
            for k in 0..4 {
                assert_eq!(planes_from_bits(1 << (4 * w + k)), 1 << (8 * k + w));
                assert_eq!(bits_from_planes(1 << (8 * k + w)), 1 << (4 * w + k));
            }
        }
    }

    /// What this processor's code makes of three quant blocks a row is what plain Rust makes of them.
    fn check<const R: usize, const SCALES: usize, const PLANES: usize, const WORDS: usize>(flip: u32) {
        let bytes = 3 * Shape { scales: SCALES, planes: PLANES, words: WORDS }.bytes();
        let plain: Vec<u8> = (0..(R + 1) * bytes).map(|i| (i * 89 + i / 7) as u8).collect();
        // Unaligned, out of order, the last row twice.
        let rows: [usize; R] = std::array::from_fn(|row| ((row * 5 % R).min(R - 2)) * bytes + 1);
        let (mut found, mut expected) = (vec![0; R * bytes], vec![1; R * bytes]);
        interleave_shape::<R, SCALES, PLANES, WORDS>(&plain, &rows, flip, &mut found);
        arch::scalar::order::interleave::<R, SCALES, PLANES, WORDS>(&plain, &rows, flip, &mut expected);
        assert_eq!(found, expected, "{R} rows: {SCALES} scales, {PLANES} planes, {WORDS} words");
    }

    #[test]
    fn interleaving_equals_its_twin() {
        check::<8, 1, 0, 4>(0);
        check::<8, 2, 0, 4>(0);
        check::<8, 1, 1, 4>(0);
        check::<8, 1, 0, 8>(0);
        check::<16, 1, 0, 4>(0);
        check::<16, 2, 0, 4>(0);
        check::<16, 1, 1, 4>(0);
        check::<16, 1, 0, 8>(0x8080_8080);
    }

    #[test]
    fn a_large_matrix_is_ordered_alike_by_one_worker_and_by_several() {
        let (rows, columns) = (16 * 33 + 5, 512);
        for format in [Format::Q4_0, Format::Q4_1, Format::Q5_0, Format::Q8_0] {
            let bytes = rows * format.row_bytes(columns).unwrap();
            let plain: Vec<u8> = (0..bytes).map(|i| (i * 89 + i / 7) as u8).collect();
            assert!(bytes >= WORTH_A_REGION_BYTES);
            let order = |threads| {
                let cpu = Cpu::new(&crate::CpuOptions { threads: Some(threads), ..Default::default() }).unwrap();
                let mut ordered = plain.clone();
                let layout = cpu.order(format, rows, columns, &mut ordered);
                (layout, ordered)
            };
            let (layout, mut ordered) = order(1);
            assert_eq!(order(2), (layout, ordered.clone()));
            assert_eq!(order(3), (layout, ordered.clone()));
            let mut alone = plain.clone();
            super::order(format, rows, columns, layout, &mut alone);
            assert_eq!(alone, ordered);
            restore(format, rows, columns, layout, &mut ordered);
            assert_eq!(ordered, plain);
        }
    }

    #[test]
    fn any_order_becomes_any_other() {
        let (rows, columns) = (16 * 3 + 9, 96);
        for format in [Format::Q4_0, Format::Q4_1, Format::Q5_0, Format::Q8_0] {
            let bytes = rows * format.row_bytes(columns).unwrap();
            let plain: Vec<u8> = (0..bytes).map(|i| (i * 89 + i / 7) as u8).collect();
            for isa in Isa::available() {
                let cpu = Cpu::new(&crate::CpuOptions { isa: Some(isa), ..Default::default() }).unwrap();
                let mut expected = plain.clone();
                super::order(format, rows, columns, isa.layout(format), &mut expected);
                for from in Layout::ALL {
                    let mut found = plain.clone();
                    super::order(format, rows, columns, from, &mut found);
                    assert_eq!(cpu.reorder(format, rows, columns, from, &mut found), isa.layout(format));
                    assert!(found == expected, "{} from {from:?} for {isa}", format.name());
                }
            }
        }
    }
}
