//! A tensor's entry in the directory: name, type, shape, and where its bytes are.

use crate::{TensorType, limits};

/// Where a tensor is and how it is stored. All of it has been checked against the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    pub(crate) name: String,
    pub(crate) tensor_type: TensorType,
    pub(crate) dims: [usize; limits::DIMS],
    pub(crate) dim_count: usize,
    pub(crate) part: usize,
    pub(crate) offset: u64,
    pub(crate) bytes: usize,
}

impl Tensor {
    /// The name; unique in a model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it is stored.
    pub fn tensor_type(&self) -> TensorType {
        self.tensor_type
    }

    /// One to four dimensions in GGUF's order, innermost (contiguous) first; none is 0.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.dim_count]
    }

    /// Elements of the innermost dimension.
    pub fn columns(&self) -> usize {
        self.dims[0]
    }

    /// All elements over [`Tensor::columns`]: of a stack of matrices, the rows of all.
    pub fn rows(&self) -> usize {
        self.elements() / self.columns()
    }

    /// All elements.
    pub fn elements(&self) -> usize {
        self.dims().iter().product()
    }

    /// Which of [`crate::Gguf::parts`] holds it.
    pub fn part(&self) -> usize {
        self.part
    }

    /// Where its bytes begin in the file of its part.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.columns() / self.tensor_type.block_len() * self.tensor_type.block_bytes()
    }
}

/// A shape that cannot be: what would be right, and what is there.
pub(crate) struct BadShape {
    pub(crate) expected: String,
    pub(crate) found: String,
}

/// The bytes of a tensor, if its shape can be; neither they nor the elements exceed `isize::MAX`.
pub(crate) fn shape_bytes(tensor_type: TensorType, dims: &[u64]) -> Result<usize, BadShape> {
    let bad = |expected: String, found: String| Err(BadShape { expected, found });
    if dims.is_empty() || dims.len() > limits::DIMS {
        return bad(format!("1 to {} dimensions", limits::DIMS), dims.len().to_string());
    }
    if dims.contains(&0) {
        return bad("no dimension of 0".into(), format!("{dims:?}"));
    }
    let block_len = tensor_type.block_len() as u64;
    if !dims[0].is_multiple_of(block_len) {
        return bad(format!("rows of a multiple of {block_len} elements ({tensor_type})"), dims[0].to_string());
    }
    let elements = dims.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim));
    let bytes = elements.and_then(|count| (count / block_len).checked_mul(tensor_type.block_bytes() as u64));
    match (elements.map(isize::try_from), bytes.map(isize::try_from)) {
        (Some(Ok(_)), Some(Ok(bytes))) => Ok(bytes as usize),
        _ => bad(format!("a size of at most {} bytes and elements", isize::MAX), format!("{dims:?} of {tensor_type}")),
    }
}
