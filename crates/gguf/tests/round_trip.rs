//! What the writer writes, the reader reads back: drawn metadata and tensors, split models, and the writer's refusals.

#![allow(clippy::unwrap_used)] // in helpers of tests

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use moce_gguf::{Array, Error, Gguf, Strings, Tensor, TensorType, Value, Writer, limits, split};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// Data of a tensor that depends on its name and on the place.
fn data_of(tensor: &Tensor) -> Vec<u8> {
    let seed = tensor.name().bytes().fold(0u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    (0..tensor.bytes() as u32).map(|i| (seed.wrapping_add(i).wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn write_data(tensor: &Tensor, out: &mut dyn Write) -> io::Result<()> {
    // In pieces, as a converter would.
    data_of(tensor).chunks(1000).try_for_each(|piece| out.write_all(piece))
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<f32>().prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        vec(any::<u8>(), 0..40).prop_map(Value::String),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any::<f64>().prop_map(Value::F64),
    ]
}

fn array() -> impl Strategy<Value = Array> {
    let flat = prop_oneof![
        vec(any::<u8>(), 0..9).prop_map(Array::U8),
        vec(any::<i8>(), 0..9).prop_map(Array::I8),
        vec(any::<u16>(), 0..9).prop_map(Array::U16),
        vec(any::<i16>(), 0..9).prop_map(Array::I16),
        vec(any::<u32>(), 0..9).prop_map(Array::U32),
        vec(any::<i32>(), 0..9).prop_map(Array::I32),
        vec(any::<f32>(), 0..9).prop_map(Array::F32),
        vec(any::<bool>(), 0..9).prop_map(Array::Bool),
        vec(vec(any::<u8>(), 0..9), 0..9).prop_map(|x| Array::String(Strings::from_iter(x))),
        vec(any::<u64>(), 0..9).prop_map(Array::U64),
        vec(any::<i64>(), 0..9).prop_map(Array::I64),
        vec(any::<f64>(), 0..9).prop_map(Array::F64),
    ];
    flat.prop_recursive(limits::ARRAY_DEPTH as u32 - 1, 20, 4, |inner| vec(inner, 0..4).prop_map(Array::Array))
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![scalar(), array().prop_map(Value::Array)]
}

fn shape() -> impl Strategy<Value = (TensorType, Vec<usize>)> {
    let dims = (1usize..3, vec(1usize..4, 0..4));
    (select(TensorType::ALL), dims).prop_map(|(tensor_type, (blocks, outer))| {
        let mut dims = vec![blocks * tensor_type.block_len()];
        dims.extend(outer);
        (tensor_type, dims)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn drawn_files_come_back_whole(
        entries in vec(("[a-z.é]{1,12}", value()), 0..8),
        shapes in vec(shape(), 0..6),
        alignment in select(vec![None, Some(1u32), Some(8), Some(32), Some(4096)]),
    ) {
        let mut writer = Writer::new();
        if let Some(alignment) = alignment {
            writer.set("general.alignment", alignment).unwrap();
        }
        for (key, value) in &entries {
            writer.set(key, value.clone()).unwrap();
        }
        for (index, (tensor_type, dims)) in shapes.iter().enumerate() {
            writer.add_tensor(&format!("t{index}"), *tensor_type, dims).unwrap();
        }
        let bytes = writer.to_bytes(write_data).unwrap();
        prop_assert_eq!(bytes.len() as u64, writer.file_bytes());

        let model = Gguf::parse("drawn", bytes.clone()).unwrap();
        prop_assert_eq!(model.tensors().cloned().collect::<Vec<_>>(), writer.tensors().collect::<Vec<_>>());
        for (index, (tensor, (tensor_type, dims))) in model.tensors().zip(&shapes).enumerate() {
            prop_assert_eq!(tensor.name(), format!("t{index}"));
            prop_assert_eq!((tensor.tensor_type(), tensor.dims()), (*tensor_type, &dims[..]));
            prop_assert_eq!(tensor.row_bytes() * tensor.rows(), tensor.bytes());
            let mut data = vec![0; tensor.bytes()];
            model.read_tensor(tensor, &mut data).unwrap();
            prop_assert_eq!(data, data_of(tensor));
        }
        for (key, _) in &entries {
            let last = &entries.iter().rfind(|(other, _)| other == key).unwrap().1;
            prop_assert_eq!(model.metadata().get(key), Some(last));
        }
        // Again from what was read: the same bytes.
        let mut copy = Writer::new();
        copy.copy_from(&model).unwrap();
        prop_assert_eq!(copy.to_bytes(write_data).unwrap(), bytes);
    }
}

/// Headers are fetched in pieces: strings and numbers that lie across their borders are the same.
#[test]
fn large_vocabularies_come_back_whole() {
    let tokens: Strings = (0..30_000u32).map(|i| format!("{}{i}", "▁".repeat(i as usize % 7))).collect();
    let scores: Vec<f32> = (0..30_001).map(|i| -(i as f32)).collect();
    let long = Value::String((0..200_000u32).map(|i| (i % 251) as u8).collect());
    let mut writer = small();
    writer.set("tokens", Array::String(tokens.clone())).unwrap();
    writer.set("scores", Array::F32(scores.clone())).unwrap();
    writer.set("long", long.clone()).unwrap();
    let model = Gguf::parse("large", writer.to_bytes(write_data).unwrap()).unwrap();
    assert!(*model.metadata().strings("tokens").unwrap() == tokens);
    assert!(model.metadata().f32s("scores").unwrap() == scores);
    assert!(model.metadata().get("long") == Some(&long));
}

fn small() -> Writer {
    let mut writer = Writer::new();
    writer.set("general.architecture", "llama").unwrap();
    writer.add_tensor("a", TensorType::Q8_0, &[64, 50]).unwrap();
    writer.add_tensor("b", TensorType::F32, &[5]).unwrap();
    writer
}

fn names_in(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn files_appear_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let failing = |tensor: &Tensor, out: &mut dyn Write| match tensor.name() {
        "b" => Err(io::Error::other("source is gone")),
        _ => write_data(tensor, out),
    };
    let error = small().create(&path, failing).unwrap_err();
    assert!(error.to_string().ends_with("m.gguf: data of tensor \"b\": source is gone"), "{error}");
    assert_eq!(names_in(folder.path()), [""; 0]);

    small().create(&path, write_data).unwrap();
    assert_eq!(names_in(folder.path()), ["m.gguf"]);
    let model = Gguf::open(&path).unwrap();
    assert_eq!(model.parts()[0].bytes(), small().file_bytes());

    let error = small().create(&path, write_data).unwrap_err();
    assert!(matches!(&error, Error::File { action: "create", .. }), "{error}");
    small().replace(&path, failing).unwrap_err();
    assert_eq!(fs::metadata(&path).unwrap().len(), small().file_bytes());
    let mut other = small();
    other.set("general.name", "other").unwrap();
    other.replace(&path, write_data).unwrap();
    assert_eq!(Gguf::open(&path).unwrap().metadata().string("general.name").unwrap(), "other");
    assert!(model.metadata().get("general.name").is_none());
    model.read_tensor(model.tensor("a").unwrap(), &mut vec![0; 3400]).unwrap(); // the file that was opened
}

#[test]
fn a_path_that_only_a_folder_can_have_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("there")).unwrap();
    let unwanted = |_: &Tensor, _: &mut dyn Write| -> io::Result<()> { panic!("written although it cannot be kept") };
    for name in ["nowhere/", "nowhere/.", "there", "there/.."] {
        let error = small().replace(&folder.path().join(name), unwanted).unwrap_err();
        assert!(matches!(&error, Error::File { action: "create", .. }), "{name}: {error}");
    }
    assert!(small().create(&folder.path().join("nowhere/"), unwanted).is_err());
    assert_eq!(names_in(folder.path()), ["there"]);
}

#[test]
#[cfg(unix)]
fn what_no_model_file_may_be_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let unwanted = |_: &Tensor, _: &mut dyn Write| -> io::Result<()> { panic!("written although it cannot be kept") };
    let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("special")).unwrap();
    for (name, reason) in [("special", "no regular file"), ("m-00002-of-00003.gguf", "part of a split model")] {
        let error = small().replace(&folder.path().join(name), unwanted).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(reason), "{error}");
    }
    assert_eq!(names_in(folder.path()), ["special"]);
}

#[test]
fn data_of_another_length_is_refused() {
    let error = |change: isize| {
        let wrong =
            |tensor: &Tensor, out: &mut dyn Write| out.write_all(&vec![0; tensor.bytes().strict_add_signed(change)]);
        small().to_bytes(wrong).unwrap_err().to_string()
    };
    assert_eq!(error(1), "(memory): data of tensor \"a\": expected 3400 more bytes, found 3401");
    assert_eq!(error(-1), "(memory): data of tensor \"a\": expected 3400 bytes, found 3399");
}

#[test]
fn what_no_reader_takes_is_not_written() {
    let mut writer = small();
    let mut nested = Array::U8(vec![1]);
    for _ in 0..limits::ARRAY_DEPTH {
        nested = Array::Array(vec![nested]);
    }
    let long = "x".repeat(limits::NAME_BYTES as usize + 1);
    for (refusal, message) in [
        (writer.set("", 1u8), "key \"\": expected a name of 1 to 65535 bytes, found 0"),
        (writer.add_tensor(&long, TensorType::F32, &[1]), "expected a name of 1 to 65535 bytes, found 65536"),
        (writer.set("k", nested), "key \"k\": expected at most 4 arrays within each other, found more"),
        (writer.set("general.alignment", 24u32), "expected a power of two up to 16777216, found u32 24"),
        (writer.set("general.alignment", 64u32), "expected to be set before the first tensor, found 2 tensors"),
        (writer.add_tensor("a", TensorType::F32, &[1]), "tensor \"a\": expected each name once, found it again"),
        (writer.add_tensor("c", TensorType::F32, &[]), "expected 1 to 4 dimensions, found 0"),
        (
            writer.add_tensor("c", TensorType::Q4_0, &[33]),
            "expected rows of a multiple of 32 elements (Q4_0), found 33",
        ),
    ] {
        let error = refusal.unwrap_err().to_string();
        assert!(error.starts_with("cannot write GGUF: ") && error.ends_with(message), "{error}");
    }
    let many = Array::Array(vec![Array::U8(vec![]); limits::INNER_ARRAYS]);
    let mut crowded = small();
    crowded.set("many", many.clone()).unwrap();
    crowded.set("many", many).unwrap(); // in the place of the first
    let error = crowded.set("more", Array::Array(vec![Array::U8(vec![])])).unwrap_err().to_string();
    assert!(error.ends_with("expected at most 65536 arrays within others, found 65537"), "{error}");
    let mut full = Writer::new();
    (0..limits::TENSORS).for_each(|index| full.add_tensor(&index.to_string(), TensorType::F32, &[1]).unwrap());
    let error = full.add_tensor("t", TensorType::F32, &[1]).unwrap_err().to_string();
    assert!(error.ends_with("expected at most 262144 tensors, found one more"), "{error}");
    let mut unchanged = small();
    assert_eq!(writer.to_bytes(write_data).unwrap(), unchanged.to_bytes(write_data).unwrap());
    unchanged.set("general.alignment", 32u32).unwrap(); // what it is already
}

/// Writes parts with one tensor each; gives the folder.
fn split_model(change: impl Fn(u16, &mut Writer)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for index in 0..3u16 {
        let mut writer = Writer::new();
        if index == 0 {
            writer.set("general.architecture", "llama").unwrap();
        }
        writer.set(split::NUMBER_KEY, index).unwrap();
        writer.set(split::COUNT_KEY, 3u16).unwrap();
        writer.set(split::TENSORS_KEY, 3i32).unwrap();
        change(index, &mut writer);
        writer.add_tensor(&format!("t{index}"), TensorType::F32, &[10]).unwrap();
        writer.create(&split::part_path(&folder.path().join("m"), index as u32 + 1, 3), write_data).unwrap();
    }
    folder
}

#[test]
fn any_part_opens_all() {
    let folder = split_model(|index, writer| {
        // Each part has its own alignment.
        writer.set("general.alignment", 32u32 << index).unwrap();
    });
    for part in 1..=3 {
        let model = Gguf::open(&split::part_path(&folder.path().join("m"), part, 3)).unwrap();
        assert_eq!(model.metadata().string("general.architecture").unwrap(), "llama");
        assert_eq!(
            model.tensors().map(|t| (t.name(), t.part())).collect::<Vec<_>>(),
            [("t0", 0), ("t1", 1), ("t2", 2)]
        );
        for tensor in model.tensors() {
            let mut data = vec![0; tensor.bytes()];
            model.read_tensor(tensor, &mut data).unwrap();
            assert_eq!(data, data_of(tensor));
        }
        // In one file they are one model.
        let mut whole = Writer::new();
        whole.copy_from(&model).unwrap();
        let whole = Gguf::parse("whole", whole.to_bytes(write_data).unwrap()).unwrap();
        assert_eq!((whole.parts().len(), whole.tensors().len()), (1, 3));
    }
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let error =
        |folder: &tempfile::TempDir| Gguf::open(&folder.path().join("m-00002-of-00003.gguf")).unwrap_err().to_string();
    let changed = |at: u16, key: &'static str, value: Value| {
        error(&split_model(|index, writer| {
            if index == at {
                writer.set(key, value.clone()).unwrap();
            }
        }))
    };
    let message = changed(1, split::NUMBER_KEY, Value::U16(2));
    assert!(
        message.ends_with("m-00002-of-00003.gguf: split file: expected split.no 1, by its name, found 2"),
        "{message}"
    );
    let message = changed(2, split::COUNT_KEY, Value::U16(4));
    assert!(
        message.ends_with("m-00003-of-00003.gguf: split file: expected split.count 3, by its name, found 4"),
        "{message}"
    );
    let message = changed(0, split::TENSORS_KEY, Value::I32(4));
    assert!(message.ends_with("expected split.tensors.count 4 in all parts, found 3 tensors"), "{message}");

    let folder = split_model(|_, _| ());
    fs::remove_file(folder.path().join("m-00003-of-00003.gguf")).unwrap();
    assert!(error(&folder).contains("m-00003-of-00003.gguf: cannot open: "), "{}", error(&folder));

    let folder = split_model(|index, writer| {
        if index == 2 {
            writer.add_tensor("t0", TensorType::F32, &[10]).unwrap();
        }
    });
    let message = error(&folder);
    assert!(message.contains("split.tensors.count 3 in all parts, found 4"), "{message}");
    let folder = split_model(|index, writer| {
        writer.set(split::TENSORS_KEY, 4i32).unwrap();
        if index == 2 {
            writer.add_tensor("t0", TensorType::F32, &[10]).unwrap();
        }
    });
    let message = error(&folder);
    assert!(
        message.contains("m-00003-of-00003.gguf: byte ") && message.contains("tensor \"t0\": expected each name once"),
        "{message}"
    );

    // A lone file by a part's name, and a part by another name.
    let folder = tempfile::tempdir().unwrap();
    for part in 1..=2 {
        small().create(&folder.path().join("m.gguf"), write_data).unwrap();
        fs::rename(folder.path().join("m.gguf"), folder.path().join(format!("m-0000{part}-of-00002.gguf"))).unwrap();
    }
    let message = Gguf::open(&folder.path().join("m-00001-of-00002.gguf")).unwrap_err().to_string();
    assert!(
        message.ends_with("key \"split.count\": expected an integer that fits u32, found no such key"),
        "{message}"
    );
    let folder = split_model(|_, _| ());
    fs::rename(folder.path().join("m-00001-of-00003.gguf"), folder.path().join("m.gguf")).unwrap();
    let message = Gguf::open(&folder.path().join("m.gguf")).unwrap_err().to_string();
    assert!(
        message.ends_with("expected the name NAME-00001-of-00003.gguf, since it is a part, found \"m.gguf\""),
        "{message}"
    );
}
