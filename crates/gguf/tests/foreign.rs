//! A file by another writer: every value type, every tensor type, as `fixtures/gguf` lists them.

#![allow(clippy::unwrap_used)] // in helpers of tests

use std::fmt::Write as _;
use std::path::PathBuf;

use moce_gguf::{Array, Gguf, Value, Writer};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/gguf").join(name)
}

#[test]
fn lists_what_the_gguf_package_lists() {
    let model = Gguf::open(&fixture("foreign.gguf")).unwrap();
    let mut listing = String::new();
    for (key, value) in model.metadata().iter() {
        let (name, text) = match value {
            Value::Array(array) => (format!("array of {}", array.element_type().name()), elements(array)),
            _ => (value.value_type().name().into(), scalar(value)),
        };
        writeln!(listing, "key\t{key}\t{name}\t{text}").unwrap();
    }
    for tensor in model.tensors() {
        let mut data = vec![0; tensor.bytes()];
        model.read_tensor(tensor, &mut data).unwrap();
        let sum: u64 = data.iter().copied().map(u64::from).sum();
        let (name, tensor_type, dims) = (tensor.name(), tensor.tensor_type(), join(tensor.dims()));
        let (id, offset, bytes) = (tensor_type.id(), tensor.offset(), tensor.bytes());
        writeln!(listing, "tensor\t{name}\t{tensor_type}\t{id}\t{dims}\t{offset}\t{bytes}\t{sum}").unwrap();
    }
    let expected = std::fs::read_to_string(fixture("foreign.txt")).unwrap();
    for (ours, theirs) in listing.lines().zip(expected.lines()) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(listing.lines().count(), expected.lines().count());
}

#[test]
fn writing_it_again_gives_the_same_bytes() {
    let bytes = std::fs::read(fixture("foreign.gguf")).unwrap();
    let model = Gguf::parse("foreign", bytes.clone()).unwrap();
    let mut writer = Writer::new();
    writer.copy_from(&model).unwrap();
    let again = writer.to_bytes(|tensor, out| {
        let mut data = vec![0; tensor.bytes()];
        model.read_tensor(model.tensor(tensor.name()).unwrap(), &mut data).unwrap();
        out.write_all(&data)
    });
    assert!(again.unwrap() == bytes);
}

fn scalar(value: &Value) -> String {
    match value {
        Value::F32(x) => hex(&x.to_le_bytes()),
        Value::F64(x) => hex(&x.to_le_bytes()),
        Value::Bool(x) => u8::from(*x).to_string(),
        Value::String(x) => hex(x),
        _ => value.as_integer().unwrap().to_string(),
    }
}

fn elements(array: &Array) -> String {
    match array {
        Array::U8(x) => join(x),
        Array::I8(x) => join(x),
        Array::U16(x) => join(x),
        Array::I16(x) => join(x),
        Array::U32(x) => join(x),
        Array::I32(x) => join(x),
        Array::U64(x) => join(x),
        Array::I64(x) => join(x),
        Array::F32(x) => join(&x.iter().map(|x| hex(&x.to_le_bytes())).collect::<Vec<_>>()),
        Array::F64(x) => join(&x.iter().map(|x| hex(&x.to_le_bytes())).collect::<Vec<_>>()),
        Array::Bool(x) => join(&x.iter().map(|&x| u8::from(x)).collect::<Vec<_>>()),
        Array::String(x) => join(&x.iter().map(hex).collect::<Vec<_>>()),
        Array::Array(_) => unreachable!("the package writes no arrays of arrays"),
    }
}

fn join<T: ToString>(values: &[T]) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(" ")
}

fn hex(bytes: &[u8]) -> String {
    match bytes {
        [] => "-".into(),
        _ => bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}")),
    }
}
