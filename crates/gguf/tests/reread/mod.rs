//! The property that the fuzz target `gguf` and its replayed corpus check: arbitrary bytes are refused, or are a model that
//! the writer can write and the reader reads back equal.

use moce_gguf::{Gguf, Strings, Value, Writer};

/// Whether the bytes are a model.
///
/// # Panics
///
/// If they are, but writing and reading it changes it.
pub(crate) fn check(bytes: &[u8]) -> bool {
    let Ok(model) = Gguf::parse("fuzz", bytes.to_vec()) else { return false };
    look_up_everything(&model);
    let written = write(&model);
    let again = Gguf::parse("written", written.clone()).expect("what was written can be read");
    assert_eq!(again.metadata().len(), model.metadata().len());
    for ((key, value), (key_again, value_again)) in model.metadata().iter().zip(again.metadata().iter()) {
        assert_eq!(key, key_again);
        assert!(same(value, value_again), "{key:?}: {value:?} became {value_again:?}");
    }
    assert_eq!(again.tensors().len(), model.tensors().len());
    for (tensor, tensor_again) in model.tensors().zip(again.tensors()) {
        assert_eq!((tensor.name(), tensor.tensor_type()), (tensor_again.name(), tensor_again.tensor_type()));
        assert_eq!((tensor.dims(), tensor.bytes()), (tensor_again.dims(), tensor_again.bytes()));
        let (mut data, mut data_again) = (vec![0; tensor.bytes()], vec![1; tensor.bytes()]);
        model.read_tensor(tensor, &mut data).expect("the directory was checked");
        again.read_tensor(tensor_again, &mut data_again).expect("the directory was checked");
        assert!(data == data_again, "data of {:?}", tensor.name());
    }
    assert!(write(&again) == written, "writing is not stable");
    true
}

fn write(model: &Gguf) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.copy_from(model).expect("what was read can be written");
    let bytes = writer.to_bytes(|tensor, out| {
        let source = model.find_tensor(tensor.name()).expect("every tensor was copied");
        let mut data = vec![0; source.bytes()];
        model.read_tensor(source, &mut data).expect("the directory was checked");
        out.write_all(&data)
    });
    bytes.expect("data has the length that the directory says")
}

/// Equal, with NaNs equal to NaNs.
fn same(a: &Value, b: &Value) -> bool {
    a == b || format!("{a:?}") == format!("{b:?}")
}

/// Lookups of any type fail or not, but do not panic; `rows` and `columns` agree with the size.
fn look_up_everything(model: &Gguf) {
    let metadata = model.metadata();
    for (key, value) in metadata.iter() {
        assert!(metadata.get(key).is_some_and(|found| std::ptr::eq(found, value)), "{key:?} is found at its place");
        let _ = (metadata.u32(key), metadata.usize(key), metadata.f32(key), metadata.string(key), metadata.bool(key));
        let _ = (
            metadata.i32s(key),
            metadata.u32s(key),
            metadata.f32s(key),
            metadata.strings(key).map(Strings::total_bytes),
        );
    }
    for tensor in model.tensors() {
        assert!(model.find_tensor(tensor.name()).is_some_and(|found| std::ptr::eq(found, tensor)));
        assert_eq!(tensor.rows() * tensor.columns(), tensor.elements());
        assert_eq!(tensor.rows() * tensor.row_bytes(), tensor.bytes());
    }
}
