//! Metadata values and header fields as bytes: the inverse of `header`.

use crate::{Array, Tensor, Value, header, limits};

/// A whole header, up to the start of the data.
pub(crate) fn header(entries: &[(String, Value)], tensors: &[Tensor], alignment: u64) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&header::MAGIC);
    out.extend_from_slice(&3u32.to_le_bytes());
    out.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
    out.extend_from_slice(&(entries.len() as u64).to_le_bytes());
    for (key, value) in entries {
        entry(&mut out, key, value);
    }
    for tensor in tensors {
        tensor_entry(&mut out, tensor);
    }
    out.resize(out.len().next_multiple_of(alignment as usize), 0);
    out
}

/// A key and its value.
pub(crate) fn entry(out: &mut Vec<u8>, key: &str, value: &Value) {
    string(out, key.as_bytes());
    out.extend_from_slice(&value.value_type().id().to_le_bytes());
    match value {
        Value::U8(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::I8(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::U16(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::I16(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::U32(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::I32(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::F32(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::U64(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::I64(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::F64(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::Bool(x) => out.push(u8::from(*x)),
        Value::String(x) => string(out, x),
        Value::Array(x) => array(out, x),
    }
}

/// A tensor's entry; its offset is taken as counted from the start of the data.
pub(crate) fn tensor_entry(out: &mut Vec<u8>, tensor: &Tensor) {
    string(out, tensor.name.as_bytes());
    out.extend_from_slice(&(tensor.dim_count as u32).to_le_bytes());
    for &dim in tensor.dims() {
        out.extend_from_slice(&(dim as u64).to_le_bytes());
    }
    out.extend_from_slice(&tensor.tensor_type.id().to_le_bytes());
    out.extend_from_slice(&tensor.offset.to_le_bytes());
}

/// Whether an array is nested no deeper than a reader takes.
pub(crate) fn depth_fits(array: &Array, depth: usize) -> bool {
    depth <= limits::ARRAY_DEPTH
        && match array {
            Array::Array(inner) => inner.iter().all(|array| depth_fits(array, depth + 1)),
            _ => true,
        }
}

/// How many arrays are elements of this one or of those within it.
pub(crate) fn inner_arrays(value: &Value) -> usize {
    fn within(array: &Array) -> usize {
        match array {
            Array::Array(inner) => inner.iter().map(|array| 1 + within(array)).sum(),
            _ => 0,
        }
    }
    if let Value::Array(array) = value { within(array) } else { 0 }
}

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn array(out: &mut Vec<u8>, value: &Array) {
    out.extend_from_slice(&value.element_type().id().to_le_bytes());
    out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    match value {
        Array::U8(x) => out.extend_from_slice(x),
        Array::I8(x) => numbers(out, x, |x| x.to_le_bytes()),
        Array::U16(x) => numbers(out, x, |x| x.to_le_bytes()),
        Array::I16(x) => numbers(out, x, |x| x.to_le_bytes()),
        Array::U32(x) => numbers(out, x, |x| x.to_le_bytes()),
        Array::I32(x) => numbers(out, x, |x| x.to_le_bytes()),
        Array::F32(x) => numbers(out, x, |x| x.to_le_bytes()),
        Array::U64(x) => numbers(out, x, |x| x.to_le_bytes()),
        Array::I64(x) => numbers(out, x, |x| x.to_le_bytes()),
        Array::F64(x) => numbers(out, x, |x| x.to_le_bytes()),
        Array::Bool(x) => numbers(out, x, |x| [u8::from(x)]),
        Array::String(x) => x.iter().for_each(|x| string(out, x)),
        Array::Array(x) => x.iter().for_each(|x| array(out, x)),
    }
}

fn numbers<const N: usize, T: Copy>(out: &mut Vec<u8>, numbers: &[T], convert: impl Fn(T) -> [u8; N]) {
    for &number in numbers {
        out.extend_from_slice(&convert(number));
    }
}
