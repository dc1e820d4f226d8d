//! Opening: what is read directly, what is not and why, and when a file counts as changed.

#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use std::io::Write;

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file.as_file().sync_all().unwrap();
    file
}

#[test]
fn the_mode_is_direct_or_says_why_not() {
    let large = file(&[1; 10_000]);
    let opened = ModelFile::open(large.path(), Direct::Auto).unwrap();
    assert!(matches!(opened.mode(), Mode::Direct | Mode::Buffered(_)));
    assert!([512, 1024, 2048, 4096].contains(&opened.block_bytes()));
    assert_eq!(ModelFile::open(large.path(), Direct::Off).unwrap().mode().to_string(), "buffered (asked for)");
    let small = file(&[1; 100]);
    assert_eq!(
        ModelFile::open(small.path(), Direct::Auto).unwrap().mode().to_string(),
        "buffered (smaller than a block)"
    );
    let refused = ModelFile::open(small.path(), Direct::Required).unwrap_err().to_string();
    assert!(refused.ends_with("directly: smaller than a block"), "{refused}");
    assert!(matches!(ModelFile::open(Path::new("/nowhere/at/all"), Direct::Auto), Err(Error::Open { .. })));
}

/// Some file systems open directly and give other bytes: here, another file plays the descriptor that lies.
#[test]
fn a_direct_descriptor_that_gives_other_bytes_is_found_out() {
    let mut bytes = vec![1; 20_000];
    let truth = file(&bytes);
    bytes[9_000] = 2;
    let lie = file(&bytes);
    let open = |file: &tempfile::NamedTempFile| File::open(file.path()).unwrap();
    check_direct(&open(&truth), &open(&truth), 4096, 20_000).unwrap();
    let reason = check_direct(&open(&truth), &open(&lie), 4096, 20_000).unwrap_err();
    assert_eq!(reason, "direct and buffered reads differ at offset 8192");
    let short = file(&bytes[..9000]);
    let reason = check_direct(&open(&truth), &open(&short), 4096, 20_000).unwrap_err();
    assert!(reason.starts_with("a direct read at offset 8192 failed"), "{reason}");
}

#[test]
fn the_direct_descriptor_is_of_the_open_file_even_if_another_took_its_path() {
    let original = file(&[1; 10_000]);
    let handle = File::open(original.path()).unwrap();
    let other = file(&[2; 10_000]);
    std::fs::rename(other.path(), original.path()).unwrap();
    let identity = Identity::of(&handle).unwrap();
    let opened = ModelFile::from_file(handle, original.path(), identity, Direct::Auto).unwrap();
    let mut memory = Memory::reserve(4096).unwrap();
    assert_eq!(opened.read_at(Via::Blocks, 4096, &mut memory).unwrap(), 4096);
    assert!(memory.iter().all(|&byte| byte == 1));
}

#[test]
fn a_file_in_memory_reads_like_one_on_disk() {
    let opened = ModelFile::in_memory("name", vec![5; 100], 512);
    let mut target = [0; 80];
    assert_eq!(opened.read_at(Via::Any, 60, &mut target).unwrap(), 40);
    assert_eq!(opened.read_at(Via::Any, 100, &mut target).unwrap(), 0);
    assert_eq!(opened.read_at(Via::Any, u64::MAX, &mut target).unwrap(), 0);
    assert_eq!(opened.identity().to_string(), "100 bytes of time 0.000000000");
    assert!(opened.descriptor(Via::Any).is_none());
}
