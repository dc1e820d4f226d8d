//! Files that break GGUF's rules: each is refused, with file, place, expected and found in the message.

use moce_gguf::{Gguf, split};

/// A header written field by field, so that any of them can be wrong.
#[derive(Clone, Default)]
struct Raw(Vec<u8>);

impl Raw {
    fn header(tensors: u64, keys: u64) -> Raw {
        Raw(b"GGUF".to_vec()).u32(3).u64(tensors).u64(keys)
    }

    fn bytes(mut self, bytes: &[u8]) -> Raw {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u32(self, value: u32) -> Raw {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(self, value: u64) -> Raw {
        self.bytes(&value.to_le_bytes())
    }

    fn string(self, text: &str) -> Raw {
        self.u64(text.len() as u64).bytes(text.as_bytes())
    }

    fn key_u32(self, key: &str, value: u32) -> Raw {
        self.string(key).u32(4).u32(value)
    }

    fn tensor(self, name: &str, dims: &[u64], tensor_type: u32, offset: u64) -> Raw {
        let mut raw = self.string(name).u32(dims.len() as u32);
        for &dim in dims {
            raw = raw.u64(dim);
        }
        raw.u32(tensor_type).u64(offset)
    }

    /// Pads the header to 32 and adds `bytes` of data.
    fn data(mut self, bytes: usize) -> Raw {
        self.0.resize(self.0.len().next_multiple_of(32) + bytes, 7);
        self
    }

    fn parse(self) -> Result<Gguf, String> {
        Gguf::parse("m.gguf", self.0).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn refused(self, message: &str) {
        assert_eq!(self.parse().expect_err("a broken file was taken"), message);
    }
}

/// Two tensors of 64 bytes each, one key.
fn sound() -> Raw {
    Raw::header(2, 1).key_u32("k", 1).tensor("a", &[16], 0, 0).tensor("b", &[4, 4], 0, 64).data(128)
}

#[test]
fn a_sound_file_is_taken() {
    let model = sound().parse().unwrap();
    assert_eq!(model.metadata().u32("k").unwrap(), 1);
    let b = model.tensor("b").unwrap();
    assert_eq!((b.dims(), b.rows(), b.columns(), b.bytes(), b.row_bytes()), (&[4, 4][..], 4, 4, 64, 16));
    let mut bytes = vec![0; 64];
    model.read_tensor(b, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 64]);
    assert_eq!(model.tensor("c").unwrap_err().to_string(), "m.gguf: no tensor \"c\" among 2");
    assert_eq!(model.tensors().map(|t| t.name()).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn every_truncation_is_refused() {
    let whole = sound().0;
    for length in 0..whole.len() {
        let error = Raw(whole[..length].to_vec()).parse().expect_err("a truncated file was taken");
        let why = if length < 4 { "no GGUF file" } else { "cut off" };
        assert!(error.starts_with("m.gguf: ") && error.contains(why), "{error}");
    }
    let bytes = whole.len();
    // How much is missing depends on the tensor that ends last, and so not on where the file is cut.
    for length in [bytes - 1, bytes - 128] {
        Raw(whole[..length].to_vec()).refused(&format!(
            "m.gguf: the file is cut off: it has {length} bytes and needs at least {bytes}; download it again"
        ));
    }
}

#[test]
fn of_a_split_model_the_part_that_is_cut_off_or_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = |number: u32| split::part_path(&folder.path().join("m"), number, 3);
    let refused = || Gguf::open(&path(1)).unwrap_err().to_string();
    let plain = refused();
    assert!(plain.contains("m-00001-of-00003.gguf: cannot open: ") && !plain.contains("part 1"), "{plain}");
    for number in 1..=3 {
        let keys = Raw::header(1, 3).key_u32(split::NUMBER_KEY, number - 1).key_u32(split::COUNT_KEY, 3);
        let whole = keys.key_u32(split::TENSORS_KEY, 3).tensor(&format!("t{number}"), &[16], 0, 0).data(64);
        std::fs::write(path(number), whole.0).unwrap();
    }
    assert_eq!(Gguf::open(&path(1)).unwrap().tensors().len(), 3);
    let second = std::fs::File::options().write(true).open(path(2)).unwrap();
    let bytes = second.metadata().unwrap().len();
    second.set_len(bytes - 10).unwrap();
    let expected = format!("cut off: it has {} bytes and needs at least {bytes}; download it again", bytes - 10);
    assert_eq!(refused(), format!("{}: the file is {expected}", path(2).display()));
    std::fs::remove_file(path(2)).unwrap();
    let expected = "cannot open: part 2 of 3 is missing; all parts go into one folder";
    assert_eq!(refused(), format!("{}: {expected}", path(2).display()));
}

#[test]
fn no_single_byte_makes_it_panic() {
    let whole = sound().0;
    for place in 0..whole.len() {
        for value in [0, 1, 2, 0x7f, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[place] = value;
            let _ = Raw(bytes).parse();
        }
    }
}

#[test]
fn other_files_and_versions() {
    for (bytes, found) in [
        (&b"PK\x03\x04"[..], "its magic is \"PK\\x03\\x04\""),
        (b"GGU", "it is shorter than 4 bytes"),
        (b"", "it is empty"),
    ] {
        Raw(bytes.to_vec()).refused(&format!("m.gguf: this is no GGUF file ({found}); moce reads .gguf files"));
    }
    Raw(b"GGUF".to_vec()).u32(1).refused("m.gguf: byte 4: header: version: expected 2 or 3, found 1");
    Raw(b"GGUF".to_vec()).u32(3 << 24).refused("m.gguf: big-endian GGUF (version 3), expected little-endian");
    let two = Raw(b"GGUF".to_vec()).u32(2).u64(0).u64(0);
    assert_eq!(two.parse().unwrap().version(), 2);
}

#[test]
fn counts_are_compared_with_what_remains() {
    Raw::header(u64::MAX, 0).refused(
        "m.gguf: byte 8: header: number of tensors: expected at most 0 (least size 33, 0 bytes remain in the file), \
         found 18446744073709551615; the file is cut off or damaged: download it again",
    );
    Raw::header(0, 2).key_u32("k", 1).refused(
        "m.gguf: byte 16: header: number of keys: expected at most 1 (least size 14, 17 bytes remain in the file), \
         found 2; the file is cut off or damaged: download it again",
    );
    Raw::header(0, 65_537)
        .bytes(&vec![0; 14 * 65_537])
        .refused("m.gguf: byte 16: header: number of keys: expected at most 65536, found 65537");
    Raw::header(262_145, 0)
        .bytes(&vec![0; 33 * 262_145])
        .refused("m.gguf: byte 8: header: number of tensors: expected at most 262144, found 262145");
    Raw::header(0, 1).string("k").u32(9).u32(10).u64(1 << 61).bytes(&[0; 80]).refused(
        "m.gguf: byte 41: key \"k\": element count: expected at most 10 (least size 8, 80 bytes remain in the file), \
         found 2305843009213693952; the file is cut off or damaged: download it again",
    );
    Raw::header(0, 1).string("key").u32(8).u64(100).bytes(&[0; 99]).refused(
        "m.gguf: byte 39: key \"key\": value: expected at most 99 (least size 1, 99 bytes remain in the file), \
         found 100; the file is cut off or damaged: download it again",
    );
}

#[test]
fn bad_keys_and_values() {
    let one = || Raw::header(0, 1);
    one()
        .string("")
        .u32(4)
        .bytes(&[0; 8])
        .refused("m.gguf: byte 24: key 0: key: expected at least one byte, found none");
    one().u64(1).bytes(b"\xff").u32(4).u32(1).refused("m.gguf: byte 24: key 0: key: expected UTF-8, found \"\\xff\"");
    one().string("k").u32(13).u32(0).refused("m.gguf: byte 33: key \"k\": value type: expected 0 to 12, found 13");
    one().string("k").u32(7).bytes(&[2]).refused("m.gguf: byte 37: key \"k\": bool: expected 0 or 1, found 2");
    let twice = Raw::header(0, 3).key_u32("k", 1).key_u32("l", 1).key_u32("k", 1);
    twice.refused("m.gguf: byte 58: key \"k\": key: expected each key once, found it again");
    let mut nested = one().string("k").u32(9);
    for _ in 0..5 {
        nested = nested.u32(9).u64(1);
    }
    nested
        .bytes(&[0; 12])
        .refused("m.gguf: byte 85: key \"k\": array: expected at most 4 arrays within each other, found 5");
    // 12 bytes each, and four times that in memory; a few within others count, too.
    let empty = [0; 12 * 65_535];
    let many = || Raw::header(0, 2).string("a").u32(9).u32(9).u64(2).bytes(&[0; 24]).string("k").u32(9).u32(9);
    many().u64(65_534).bytes(&empty[..12 * 65_534]).parse().unwrap();
    many()
        .u64(65_535)
        .bytes(&empty)
        .refused("m.gguf: byte 90: key \"k\": element count: expected at most 65536 arrays within others, found 65535");
}

#[test]
fn long_names_do_not_make_long_messages() {
    let long = Raw::header(0, 1).string(&"é".repeat(30_000)).u32(99).bytes(&[0; 8]);
    let broken = Raw::header(0, 1).u64(60_000).bytes(&[0xff; 60_000]).u32(4).u32(0);
    let name = "\u{7}".repeat(30_000);
    let overlap = Raw::header(2, 0).tensor(&name, &[100], 24, 0).tensor("b", &[100], 24, 32).data(200);
    let twice = Raw::header(2, 0).tensor(&name, &[1], 24, 0).tensor(&name, &[1], 24, 32).data(64);
    for raw in [long, broken, overlap, twice] {
        let error = raw.parse().unwrap_err();
        assert!(error.len() < 1000, "{} bytes: {error}", error.len());
    }
}

#[test]
fn strings_need_not_be_utf_8() {
    let raw = Raw::header(0, 1).string("t").u32(9).u32(8).u64(2).u64(2).bytes(b"\xc3\x28").string("");
    let model = raw.parse().unwrap();
    let tokens = model.metadata().strings("t").unwrap();
    assert_eq!(tokens.iter().collect::<Vec<_>>(), [&b"\xc3\x28"[..], b""]);
}

#[test]
fn a_huge_sparse_file_cannot_ask_for_a_huge_string() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    std::fs::write(&path, Raw::header(0, 1).string("k").u32(8).u64(300 << 20).0).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(1 << 30).unwrap();
    let error = Gguf::open(&path).unwrap_err().to_string();
    let expected = "at most 268435411 (least size 1, 268435411 bytes remain in the header's limit), found 314572800";
    assert!(error.ends_with(expected), "{error}");
}

#[test]
fn the_least_sizes_are_no_larger_than_what_fits() {
    // Two empty strings, two empty arrays, two of each number, up to the last byte of the file.
    for (element_type, bytes) in
        [(0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (6, 4), (7, 1), (8, 8), (9, 12), (10, 8)]
    {
        let raw = Raw::header(0, 1).string("k").u32(9).u32(element_type).u64(2).bytes(&vec![0; 2 * bytes]);
        let model = raw.parse().unwrap();
        let Some(moce_gguf::Value::Array(array)) = model.metadata().get("k") else { panic!("an array") };
        assert_eq!(array.len(), 2, "elements of type {element_type}");
    }
    Raw::header(0, 1).string("k").u32(0).bytes(&[1]).parse().unwrap();
    Raw::header(1, 0).tensor("t", &[1], 24, 0).data(1).parse().unwrap();
}

#[test]
fn alignment_is_a_power_of_two() {
    for bad in [0, 3, 24, 1 << 25] {
        Raw::header(0, 1).key_u32("general.alignment", bad).refused(&format!(
            "m.gguf: byte 49: key \"general.alignment\": value: expected a power of two up to 16777216, found u32 {bad}"
        ));
    }
}

#[test]
fn bad_tensors() {
    let one = |dims: &[u64], tensor_type, offset| Raw::header(1, 0).tensor("t", dims, tensor_type, offset).data(256);
    one(&[], 0, 0).refused("m.gguf: byte 33: tensor \"t\": number of dimensions: expected 1 to 4, found 0");
    one(&[1, 1, 1, 1, 1], 0, 0)
        .refused("m.gguf: byte 33: tensor \"t\": number of dimensions: expected 1 to 4, found 5");
    one(&[4, 0], 0, 0).refused("m.gguf: byte 33: tensor \"t\": dimensions: expected no dimension of 0, found [4, 0]");
    one(&[48], 2, 0).refused(
        "m.gguf: byte 33: tensor \"t\": dimensions: expected rows of a multiple of 32 elements (Q4_0), found 48",
    );
    one(&[1 << 32, 1 << 32], 24, 0).refused(&format!(
        "m.gguf: byte 33: tensor \"t\": dimensions: expected a size of at most {} bytes and elements, \
         found [4294967296, 4294967296] of I8",
        isize::MAX
    ));
    one(&[32], 31, 0).refused("m.gguf: byte 45: tensor \"t\": type: expected a tensor type of ggml, found 31");
    one(&[32], 0, 16).refused("m.gguf: byte 49: tensor \"t\": offset: expected a multiple of 32, found 16");
    one(&[32], 0, 160)
        .refused("m.gguf: the file is cut off: it has 320 bytes and needs at least 352; download it again");
    one(&[32], 0, u64::MAX - 31).refused(
        "m.gguf: byte 49: tensor \"t\": offset: expected 128 bytes inside the data (256 bytes), \
         found 18446744073709551584",
    );
}

#[test]
fn overlapping_and_duplicate_tensors() {
    let two = |second, offset| Raw::header(2, 0).tensor("a", &[32], 0, 64).tensor(second, &[32], 0, offset).data(512);
    for offset in [64, 160] {
        two("b", offset).refused(&format!(
            "m.gguf: byte 82: tensor \"b\": offset: expected at least 192, where \"a\" ends, found {offset}"
        ));
    }
    two("b", 0).refused("m.gguf: byte 49: tensor \"a\": offset: expected at least 128, where \"b\" ends, found 64");
    two("b", 192).parse().unwrap();
    two("a", 192)
        .refused("m.gguf: byte 288: tensor \"a\": expected each name once, found it at byte 160 of m.gguf too");
}

#[test]
fn a_part_is_no_whole_model() {
    let raw = Raw::header(0, 2).key_u32("split.no", 1).key_u32("split.count", 3);
    raw.refused("m.gguf: split file: expected the name NAME-00002-of-00003.gguf, since it is a part, found \"m.gguf\"");
}
