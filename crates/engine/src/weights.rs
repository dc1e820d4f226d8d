//! Dense weights: which tensors an architecture asks for, and the one memory region that they are read into.
//!
//! An architecture first *declares* its tensors against the file's directory ([`WeightPlan`]); shapes are checked and sizes
//! summed from the headers alone. [`WeightPlan::load`] then reserves the memory once, reads every tensor into its place and
//! puts it into kernel order there.

use crate::Error;
use moce_flash::Memory;
use moce_gguf::{Gguf, Tensor};
use moce_kernels::{Cpu, Layout, Matrix};
use moce_quant::Format;
use std::ops::Range;

/// Every tensor starts on a cache line, whatever the file's alignment.
const ALIGNMENT: usize = 64;

/// A dense matrix of the model; [`Weights::matrix`] gives its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MatrixId(usize);

/// A vector of f32 (a norm's weight, a bias); [`Weights::vector`] gives its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VectorId(usize);

/// Where one tensor lies in memory, and how.
#[derive(Clone, Debug)]
struct Place {
    format: Format,
    rows: usize,
    columns: usize,
    layout: Layout,
    /// Whether it was declared as a vector, which is widened to f32 when it is read.
    is_vector: bool,
    range: Range<usize>,
}

/// The dense tensors of a model, declared but not yet read.
pub(crate) struct WeightPlan<'g> {
    gguf: &'g Gguf,
    places: Vec<(Place, &'g Tensor)>,
    bytes: usize,
}

impl<'g> WeightPlan<'g> {
    pub(crate) fn new(gguf: &'g Gguf) -> WeightPlan<'g> {
        WeightPlan { gguf, places: Vec::new(), bytes: 0 }
    }

    /// Bytes of memory that the declared tensors need.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Declares a matrix that must exist with this shape.
    pub(crate) fn matrix(&mut self, name: &str, rows: usize, columns: usize) -> Result<MatrixId, Error> {
        let tensor = self.gguf.tensor(name)?;
        self.place(tensor, rows, columns).map(MatrixId)
    }

    /// Declares a matrix that may be absent.
    pub(crate) fn find_matrix(&mut self, name: &str, rows: usize, columns: usize) -> Result<Option<MatrixId>, Error> {
        self.gguf.find_tensor(name).map(|tensor| self.place(tensor, rows, columns).map(MatrixId)).transpose()
    }

    /// Declares a router: its scores are computed from the unquantised activations (NUMBERS.md), so it must not be quantised either.
    pub(crate) fn router(&mut self, name: &str, experts: usize, hidden: usize) -> Result<MatrixId, Error> {
        let tensor = self.gguf.tensor(name)?;
        let router = self.place(tensor, experts, hidden)?;
        if self.places[router].0.format.block_len() != 1 {
            return Err(Error::format(self.gguf, tensor, "a router must be F32, F16 or BF16"));
        }
        Ok(MatrixId(router))
    }

    /// Declares a vector that must exist with this length.
    pub(crate) fn vector(&mut self, name: &str, len: usize) -> Result<VectorId, Error> {
        let tensor = self.gguf.tensor(name)?;
        self.place_vector(tensor, len)
    }

    /// Declares a vector that may be absent.
    pub(crate) fn find_vector(&mut self, name: &str, len: usize) -> Result<Option<VectorId>, Error> {
        self.gguf.find_tensor(name).map(|tensor| self.place_vector(tensor, len)).transpose()
    }

    fn place(&mut self, tensor: &'g Tensor, rows: usize, columns: usize) -> Result<usize, Error> {
        let format = self.check(tensor, &[columns, rows])?;
        let place = Place { format, rows, columns, layout: Layout::Plain, is_vector: false, range: 0..0 };
        self.push(tensor, place, tensor.bytes())
    }

    fn place_vector(&mut self, tensor: &'g Tensor, len: usize) -> Result<VectorId, Error> {
        let format = self.check(tensor, &[len])?;
        if format.block_len() != 1 {
            return Err(Error::format(self.gguf, tensor, "a vector must be F32, F16 or BF16"));
        }
        // Kept as f32 whatever the file has.
        let place = Place { format, rows: 1, columns: len, layout: Layout::Plain, is_vector: true, range: 0..0 };
        self.push(tensor, place, len * size_of::<f32>()).map(VectorId)
    }

    /// Gives a tensor the next `bytes` bytes.
    fn push(&mut self, tensor: &'g Tensor, place: Place, bytes: usize) -> Result<usize, Error> {
        let start = self.bytes;
        self.bytes = bytes
            .checked_next_multiple_of(ALIGNMENT)
            .and_then(|bytes| start.checked_add(bytes))
            .ok_or_else(|| Error::shape(self.gguf, format!("tensor {} does not fit an address", tensor.name())))?;
        self.places.push((Place { range: start..start + bytes, ..place }, tensor));
        Ok(self.places.len() - 1)
    }

    fn check(&self, tensor: &Tensor, shape: &[usize]) -> Result<Format, Error> {
        check_tensor(self.gguf, tensor, shape)
    }

    /// Reserves the memory and reads every declared tensor into it.
    pub(crate) fn load(self, cpu: &Cpu) -> Result<Weights, Error> {
        let mut memory =
            Memory::reserve(self.bytes).map_err(|cause| Error::Memory { bytes: self.bytes as u64, cause })?;
        let mut places = Vec::with_capacity(self.places.len());
        for (mut place, tensor) in self.places {
            let destination = &mut memory[place.range.clone()];
            // Not what its dimensions say: see `check_tensor`.
            if place.is_vector {
                read_vector(self.gguf, tensor, place.format, destination)?;
                place.format = Format::F32;
            } else {
                self.gguf.read_tensor(tensor, destination)?;
                place.layout = cpu.order(place.format, place.rows, place.columns, destination);
            }
            places.push(place);
        }
        Ok(Weights { memory, places })
    }
}

/// Checks a tensor's dimensions (innermost first) and that its format is one that moce computes with.
pub(crate) fn check_tensor(gguf: &Gguf, tensor: &Tensor, shape: &[usize]) -> Result<Format, Error> {
    // Trailing dimensions of 1 carry no meaning: a [hidden, 1] matrix may be stored as a vector and the other way round.
    let dims = tensor.dims();
    let extent = |dims: &[usize], axis: usize| dims.get(axis).copied().unwrap_or(1);
    if (0..dims.len().max(shape.len())).any(|axis| extent(dims, axis) != extent(shape, axis)) {
        return Err(Error::tensor_shape(gguf, tensor, shape));
    }
    tensor
        .tensor_type()
        .format()
        .ok_or_else(|| Error::format(gguf, tensor, "moce computes with F32, F16, BF16, Q4_0, Q4_1, Q5_0 and Q8_0"))
}

/// Reads a vector of any float format and widens it to f32 bytes.
fn read_vector(gguf: &Gguf, tensor: &Tensor, format: Format, destination: &mut [u8]) -> Result<(), Error> {
    let mut raw = vec![0; tensor.bytes()];
    gguf.read_tensor(tensor, &mut raw)?;
    moce_quant::decode(format, &raw, bytemuck::cast_slice_mut(destination));
    Ok(())
}

/// The dense weights of a loaded model.
#[derive(Debug)]
pub(crate) struct Weights {
    memory: Memory,
    places: Vec<Place>,
}

impl Weights {
    /// The contents of a matrix.
    pub(crate) fn matrix(&self, id: MatrixId) -> Matrix<'_> {
        let place = &self.places[id.0];
        Matrix {
            format: place.format,
            rows: place.rows,
            columns: place.columns,
            layout: place.layout,
            bytes: &self.memory[place.range.clone()],
        }
    }

    /// A vector as a matrix of one row.
    pub(crate) fn row(&self, id: VectorId) -> Matrix<'_> {
        self.matrix(MatrixId(id.0))
    }

    /// The contents of a vector.
    pub(crate) fn vector(&self, id: VectorId) -> &[f32] {
        bytemuck::cast_slice(&self.memory[self.places[id.0].range.clone()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moce_gguf::{TensorType, Writer};
    use moce_kernels::CpuOptions;

    /// Trailing dimensions of 1 carry no meaning, also not for how a tensor is read.
    #[test]
    fn vectors_stored_as_matrices_and_matrices_stored_as_vectors_are_read_as_declared() {
        const LEN: usize = 32;
        let values: Vec<f32> = (0..LEN).map(|index| index as f32 - 7.5).collect();
        let mut half = vec![0; 2 * LEN];
        moce_quant::encode(Format::F16, &values, &mut half);
        let mut writer = Writer::new();
        writer.add_tensor("vector", TensorType::F16, &[LEN, 1]).unwrap();
        writer.add_tensor("matrix", TensorType::F16, &[LEN]).unwrap();
        writer.add_tensor("quantised", TensorType::Q8_0, &[LEN]).unwrap();
        let mut quantised = vec![0; Format::Q8_0.row_bytes(LEN).unwrap()];
        moce_quant::encode(Format::Q8_0, &values, &mut quantised);
        let bytes = |tensor: &Tensor| if tensor.name() == "quantised" { &quantised } else { &half };
        let gguf =
            Gguf::parse("small.gguf", writer.to_bytes(|tensor, out| out.write_all(bytes(tensor))).unwrap()).unwrap();

        let mut plan = WeightPlan::new(&gguf);
        let vector = plan.vector("vector", LEN).unwrap();
        let matrix = plan.matrix("matrix", 1, LEN).unwrap();
        let one_row = plan.matrix("quantised", 1, LEN).unwrap();
        let cpu = Cpu::new(&CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
        let weights = plan.load(&cpu).unwrap();
        assert_eq!(weights.vector(vector), values);
        assert_eq!((weights.matrix(matrix).format, weights.matrix(matrix).bytes), (Format::F16, &half[..]));
        assert_eq!((weights.matrix(one_row).format, weights.matrix(one_row).bytes), (Format::Q8_0, &quantised[..]));
    }
}
