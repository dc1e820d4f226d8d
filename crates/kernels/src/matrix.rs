//! A matrix of encoded weights as the products see it: format, shape, layout and borrowed bytes.
//!
//! It owns nothing and computes nothing but single rows (for embedding lookups); products are in `product`.

use crate::{Error, order};
use moce_quant::Format;

/// How the rows of a matrix stand in memory. Every layout has the same number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Layout {
    /// As in the file: row after row.
    #[default]
    Plain,
    /// Kernel order in groups of 8 rows, 8-bit codes signed (AVX2): `maddubs` takes the magnitude and moves the sign over.
    Rows8,
    /// Kernel order in groups of 16 rows, 8-bit codes stored as code + 128 (AVX-512): `vpdpbusd` wants unsigned weights.
    Rows16,
}

impl Layout {
    /// Every layout.
    pub const ALL: [Layout; 3] = [Layout::Plain, Layout::Rows8, Layout::Rows16];

    /// The name in files. A name stands for one order of bytes for ever; another order needs another name.
    pub const fn name(self) -> &'static str {
        match self {
            Layout::Plain => "plain",
            Layout::Rows8 => "rows8",
            Layout::Rows16 => "rows16",
        }
    }

    /// The layout of a name.
    pub fn named(name: &str) -> Option<Layout> {
        Layout::ALL.into_iter().find(|layout| layout.name() == name)
    }

    /// Rows that are interleaved with each other (1 for [`Layout::Plain`]). What fills no group stays plain, at the end.
    pub const fn group_rows(self) -> usize {
        match self {
            Layout::Plain => 1,
            Layout::Rows8 => 8,
            Layout::Rows16 => 16,
        }
    }
}

/// Encoded weights, `[rows, columns]`; a product multiplies each row with an activation vector of `columns` values.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// How a weight is stored.
    pub format: Format,
    /// Outputs.
    pub rows: usize,
    /// Inputs: a whole number of quant blocks.
    pub columns: usize,
    /// How the rows stand in `bytes`.
    pub layout: Layout,
    /// Exactly `rows` rows of `format.row_bytes(columns)` bytes.
    pub bytes: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// A matrix over `bytes`.
    ///
    /// # Errors
    /// [`Error::MatrixBytes`] if the shape does not fit the bytes or the format.
    pub fn new(
        format: Format,
        rows: usize,
        columns: usize,
        layout: Layout,
        bytes: &'a [u8],
    ) -> Result<Matrix<'a>, Error> {
        let expected = format.row_bytes(columns).and_then(|row_bytes| row_bytes.checked_mul(rows));
        if expected != Some(bytes.len()) {
            return Err(Error::MatrixBytes { format: format.name(), rows, columns, expected, found: bytes.len() });
        }
        Ok(Matrix { format, rows, columns, layout, bytes })
    }

    /// Bytes of one row.
    ///
    /// # Panics
    /// If `columns` is no whole number of quant blocks.
    pub fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.columns).expect("columns are a whole number of quant blocks")
    }

    /// Decodes one row, whatever the layout.
    ///
    /// # Panics
    /// If there is no such row, or `out` has not `columns` elements.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.columns, "elements of a decoded row");
        self.check();
        let block_len = self.format.block_len();
        match self.plain_row(row) {
            Some(bytes) => moce_quant::decode(self.format, bytes, out),
            None => {
                let mut bytes = [0; order::BLOCK_BYTES_MAX];
                let bytes = &mut bytes[..self.format.block_bytes()];
                for (block, out) in out.chunks_exact_mut(block_len).enumerate() {
                    self.plain_block(row, block, bytes);
                    moce_quant::decode(self.format, bytes, out);
                }
            }
        }
    }

    /// The row's bytes where they stand together as in the file.
    pub(crate) fn plain_row(&self, row: usize) -> Option<&'a [u8]> {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let group_rows = self.layout.group_rows();
        let row_bytes = self.row_bytes();
        let plain_from = if group_rows == 1 { 0 } else { self.rows / group_rows * group_rows };
        (row >= plain_from).then(|| &self.bytes[row * row_bytes..][..row_bytes])
    }

    /// Copies one quant block of one row into `out`, as it stands in the file.
    pub(crate) fn plain_block(&self, row: usize, block: usize, out: &mut [u8]) {
        let block_bytes = self.format.block_bytes();
        if let Some(bytes) = self.plain_row(row) {
            out.copy_from_slice(&bytes[block * block_bytes..][..block_bytes]);
            return;
        }
        let group_rows = self.layout.group_rows();
        let start = row / group_rows * group_rows * self.row_bytes() + block * group_rows * block_bytes;
        let group = &self.bytes[start..][..group_rows * block_bytes];
        order::extract(self.format, self.layout, group, row % group_rows, out);
    }

    /// The unsafe kernels rely on this; the fields are public, so it is looked at again before each use.
    pub(crate) fn check(&self) {
        let expected = self.format.row_bytes(self.columns).and_then(|row_bytes| row_bytes.checked_mul(self.rows));
        assert_eq!(
            expected,
            Some(self.bytes.len()),
            "bytes of {} x {} {}",
            self.rows,
            self.columns,
            self.format.name()
        );
    }
}
