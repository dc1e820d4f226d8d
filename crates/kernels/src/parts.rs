//! Handing one mutable slice to the parts of a region.

use crate::{Cpu, split};
use std::marker::PhantomData;
use std::ops::Range;

/// Under this many elementary operations (a multiply-add, or a tenth of an exp) a region is not worth its start: a microsecond or
/// two when the workers are awake, 16 to 32 operations a cycle.
const WORTH_A_REGION: usize = 64 * 1024;

/// A mutable slice of which a region's parts take disjoint ones.
pub(crate) struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: the only access is `part`, whose callers keep the parts disjoint: then it is like sending each part to a thread of its own.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Parts<'a, T> {
        Parts { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// A part of the slice.
    ///
    /// # Panics
    /// The range is not inside the slice.
    ///
    /// # Safety
    /// No two parts that live at the same time may overlap.
    #[allow(clippy::mut_from_ref)] // exclusive by the caller's promise
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part {range:?} of {}", self.len);
        // SAFETY: inside the slice that `new` borrowed for 'a, and disjoint from every other part.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

impl Cpu {
    /// Calls `job(first_row, rows)` for parts of `out`, cut between rows of `row_len` values, on all workers when `row_cost` elementary
    /// operations a row make that worth while.
    ///
    /// # Panics
    /// `out` is no whole number of rows.
    pub(crate) fn rows_in_parts(
        &self,
        out: &mut [f32],
        row_len: usize,
        row_cost: usize,
        job: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        assert!(row_len > 0 && out.len().is_multiple_of(row_len), "{} values in rows of {row_len}", out.len());
        let rows = out.len() / row_len;
        if self.threads() == 1 || rows == 1 || !self.is_worth_a_region(rows.saturating_mul(row_cost)) {
            return job(0, out);
        }
        let parts = Parts::new(out);
        self.pool.run(&|index| {
            let rows = split(rows, self.threads(), index);
            // SAFETY: the ranges that `split` gives for different parts are disjoint.
            let part = unsafe { parts.part(rows.start * row_len..rows.end * row_len) };
            job(rows.start, part);
        });
    }

    /// Whether so many elementary operations are worth waking the workers.
    pub(crate) fn is_worth_a_region(&self, operations: usize) -> bool {
        operations >= WORTH_A_REGION
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CpuOptions;

    #[test]
    fn every_row_is_visited_once_whatever_the_threads() {
        for threads in [1, 2, 3] {
            let cpu = Cpu::new(&CpuOptions { threads: Some(threads), ..CpuOptions::default() }).unwrap();
            for (rows, row_cost) in [(1, 1 << 20), (7, 1 << 20), (7, 1), (0, 1)] {
                let mut out = vec![0.0; rows * 3];
                cpu.rows_in_parts(&mut out, 3, row_cost, |first, part| {
                    for (i, row) in part.chunks_mut(3).enumerate() {
                        row.iter_mut().for_each(|x| *x += (first + i + 1) as f32);
                    }
                });
                let expected: Vec<f32> = (0..rows * 3).map(|i| (i / 3 + 1) as f32).collect();
                assert_eq!(out, expected);
            }
        }
    }

    #[test]
    #[should_panic(expected = "part 3..5 of 4")]
    fn a_part_outside_is_refused() {
        let mut values = [0; 4];
        // SAFETY: the only part.
        let _ = unsafe { Parts::new(&mut values).part(3..5) };
    }
}
