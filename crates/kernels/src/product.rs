//! Matrix products: many matrices and their activation vectors in one parallel region.
//!
//! This file checks operands, cuts the work into contiguous ranges of rows, one a part, and walks a range in an order that
//! suits the caches. The arithmetic is in `arch/*/product` (quantised weights), `arch/*/product_float`, and for plain rows times one vector
//! in `arch/x86_64/avx2/product_plain`.
//!
//! Each output element is one sequence of operations over its row (NUMBERS.md), so that no cut changes its bits.

pub(crate) mod tile;

use crate::activations::Activations;
use crate::{Cpu, Isa, Layout, Matrix, split};
use std::marker::PhantomData;
use std::ops::Range;

/// Which vectors of a batch a product reads, and in which order.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// All of them.
    All,
    /// `count` vectors from `first` on.
    Range {
        /// The first vector.
        first: usize,
        /// How many.
        count: usize,
    },
    /// These; the same one may come twice.
    Gather(&'a [u32]),
}

/// `output = input · weightsᵀ`: `[n, columns] · [rows, columns]ᵀ -> [n, rows]`, where `n` vectors are chosen by `input_rows`.
#[derive(Debug)]
pub struct Product<'a> {
    /// `[rows, columns]`.
    pub weights: Matrix<'a>,
    /// Vectors of `columns` values; with quantised weights they must have codes ([`Cpu::quantize`]).
    pub input: &'a Activations,
    /// The vectors to multiply.
    pub input_rows: Rows<'a>,
    /// `[n, rows]`: row `i` belongs to the `i`-th vector that `input_rows` names.
    pub output: &'a mut [f32],
}

/// A product without the output, which all parts may look at.
pub(crate) struct Operands<'a> {
    pub(crate) weights: Matrix<'a>,
    pub(crate) input: &'a Activations,
    input_rows: Rows<'a>,
}

impl Operands<'_> {
    /// Vectors to multiply.
    pub(crate) fn tokens(&self) -> usize {
        match self.input_rows {
            Rows::All => self.input.rows(),
            Rows::Range { count, .. } => count,
            Rows::Gather(rows) => rows.len(),
        }
    }

    /// The row of the batch that holds vector `token`.
    pub(crate) fn input_row(&self, token: usize) -> usize {
        match self.input_rows {
            Rows::All => token,
            Rows::Range { first, .. } => first + token,
            Rows::Gather(rows) => rows[token] as usize,
        }
    }

    fn is_float(&self) -> bool {
        self.weights.format.block_len() == 1
    }

    /// Everything that the unsafe kernels rely on.
    fn check(&self, outputs: usize) {
        let Operands { weights, input, .. } = self;
        weights.check();
        assert!(weights.layout == Layout::Plain || !self.is_float(), "{} is always plain", weights.format.name());
        assert_eq!(weights.columns, input.columns(), "columns of weights and activations");
        // Checked: a wrapped product or sum would let the kernels write outside the output.
        assert_eq!(Some(outputs), self.tokens().checked_mul(weights.rows), "outputs of a product");
        let last = match self.input_rows {
            Rows::All => None,
            Rows::Range { first, count } => count.checked_sub(1).map(|last| first.saturating_add(last)),
            Rows::Gather(rows) => rows.iter().max().map(|&row| row as usize),
        };
        assert!(last.is_none_or(|last| last < input.rows()), "vector {last:?} of a batch of {}", input.rows());
        assert!(self.is_float() || input.has_codes(), "quantised weights meet activations without codes");
    }

    /// Estimated time of one row, in 1/48 cycles: reading it from memory at 4 bytes a cycle, or computing at 48 products a cycle,
    /// whichever is more. Float rows compute at a quarter of that; plain quantised ones are put in order on the way, or take about a
    /// third more as they stand.
    fn row_cost(&self, isa: Isa) -> usize {
        let read = self.weights.row_bytes() * 12;
        let compute = self.weights.columns * self.tokens();
        match (self.is_float(), self.weights.layout) {
            (true, _) => read.max(4 * compute),
            (false, Layout::Plain) if tile::as_it_stands(isa, self) => read.max(compute) * 4 / 3,
            (false, Layout::Plain) => read + read.max(compute),
            (false, _) => read.max(compute),
        }
    }
}

/// The output of a product as one part sees it; it may touch the elements of its own rows.
pub(crate) struct Output<'a> {
    elements: *mut f32,
    count: usize,
    /// Rows of the weights: elements from one token to the next.
    stride: usize,
    owner: PhantomData<&'a mut [f32]>,
}

impl Output<'_> {
    fn index(&self, token: usize, row: usize) -> usize {
        let index = token * self.stride + row;
        assert!(row < self.stride && index < self.count);
        index
    }

    pub(crate) fn write(&mut self, token: usize, row: usize, value: f32) {
        // SAFETY: the index is inside (asserted), and the element's row belongs to this part alone.
        unsafe { self.elements.add(self.index(token, row)).write(value) }
    }

    pub(crate) fn read(&self, token: usize, row: usize) -> f32 {
        // SAFETY: as in `write`.
        unsafe { self.elements.add(self.index(token, row)).read() }
    }

    /// Where the outputs of `token` from `row` on stand.
    pub(crate) fn pointer(&mut self, token: usize, row: usize) -> *mut f32 {
        self.elements.wrapping_add(self.index(token, row))
    }

    pub(crate) fn stride(&self) -> usize {
        self.stride
    }
}

/// The products of one call, shared by the parts of its region.
struct Products<'a> {
    first: *const Product<'a>,
    count: usize,
}

// SAFETY: the parts of a region read the operands (`Sync` all) and write disjoint rows of the outputs, through raw pointers.
unsafe impl Sync for Products<'_> {}

impl<'a> Products<'a> {
    /// The operands of product `index` and its output.
    fn at(&self, index: usize) -> (Operands<'a>, Output<'a>) {
        assert!(index < self.count);
        // SAFETY: `first` points to `count` products, borrowed mutably for the region and touched through here only. The fields are
        // copied without making a reference to the output, whose elements several parts write: the fat pointer is read as raw.
        unsafe {
            let product = self.first.add(index);
            let output = (&raw const (*product).output).cast::<*mut [f32]>().read();
            let operands =
                Operands { weights: (*product).weights, input: (*product).input, input_rows: (*product).input_rows };
            let stride = operands.weights.rows;
            (operands, Output { elements: output.cast(), count: output.len(), stride, owner: PhantomData })
        }
    }
}

/// The units, of `units` that cost `cost` each and stand from `start` on, that a part with the range `costs` does: those whose first
/// bit of work lies inside.
fn units_inside(costs: &Range<usize>, start: usize, cost: usize, units: usize) -> Range<usize> {
    let unit_from = |at: usize| at.saturating_sub(start).div_ceil(cost).min(units);
    unit_from(costs.start)..unit_from(costs.end)
}

/// Work (in [`Operands::row_cost`]) under which waking other threads takes longer than it saves: about 5 µs.
const COST_WORTH_THREADS: usize = 48 * 15_000;

impl Cpu {
    /// Computes all products in one parallel region.
    ///
    /// The rows of all products together are cut into one contiguous range a thread, by estimated time; the same call has the
    /// same ranges again, which a thread then mostly finds in its caches. Nothing is allocated.
    ///
    /// # Panics
    /// If shapes do not fit, or quantised weights meet activations without codes.
    pub fn multiply(&self, products: &mut [Product<'_>]) {
        let shared = Products { first: products.as_mut_ptr().cast_const(), count: products.len() };
        let unit_rows = tile::unit_rows(self.isa);
        let unit_cost = |operands: &Operands<'_>| (operands.row_cost(self.isa) * unit_rows).max(1);
        let mut total = 0;
        for index in 0..shared.count {
            let (operands, output) = shared.at(index);
            operands.check(output.count);
            total += unit_cost(&operands) * operands.weights.rows.div_ceil(unit_rows);
        }
        let part = |parts: usize, part_index: usize| {
            let costs = split(total, parts, part_index);
            let mut start = 0;
            for index in 0..shared.count {
                let (operands, mut output) = shared.at(index);
                let cost = unit_cost(&operands);
                let units = operands.weights.rows.div_ceil(unit_rows);
                let own = units_inside(&costs, start, cost, units);
                if !own.is_empty() && operands.tokens() > 0 {
                    let rows = own.start * unit_rows..(own.end * unit_rows).min(operands.weights.rows);
                    tile::rows(self.isa, &operands, rows, &mut output);
                }
                start += cost * units;
            }
        };
        if total < COST_WORTH_THREADS {
            part(1, 0);
        } else {
            self.pool.run(&|index| part(self.pool.threads(), index));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn every_unit_is_done_once_and_shares_are_even(
            products in proptest::collection::vec((1usize..50, 0usize..20), 0..12),
            workers in 1usize..9,
        ) {
            let total: usize = products.iter().map(|(cost, units)| cost * units).sum();
            let dearest = products.iter().map(|(cost, _)| *cost).max().unwrap_or(0);
            let mut next = vec![0; products.len()];
            for worker in 0..workers {
                let costs = split(total, workers, worker);
                let (mut start, mut done) = (0, 0);
                for (&(cost, units), next) in products.iter().zip(&mut next) {
                    let own = units_inside(&costs, start, cost, units);
                    if !own.is_empty() {
                        prop_assert_eq!(own.start, *next, "units follow each other");
                        *next = own.end;
                        done += own.len() * cost;
                    }
                    start += cost * units;
                }
                prop_assert!(done <= costs.len() + dearest, "{done} done of {}", costs.len());
            }
            prop_assert!(next.iter().zip(&products).all(|(next, (_, units))| next == units));
        }
    }
}
