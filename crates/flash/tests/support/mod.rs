//! What the tests share: files of known bytes, and fetchers of every kind over them.

#![allow(dead_code, reason = "each test program uses its part")]

use moce_flash::{Arena, Backend, Direct, Error, Faults, Fetcher, Files, ModelFile, Options, Slice, SlotId, Tuning};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// The byte at `offset` of file number `file`: neighbours, files and offsets that differ by any power of two differ.
pub(crate) fn byte_at(file: usize, offset: u64) -> u8 {
    let mixed = (offset ^ ((file as u64 + 1) << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8 ^ (mixed >> 29) as u8
}

pub(crate) fn content(file: usize, bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|offset| byte_at(file, offset)).collect()
}

/// Files on disk, gone when dropped.
pub(crate) struct Disk {
    folder: tempfile::TempDir,
    pub(crate) sizes: Vec<usize>,
}

impl Disk {
    pub(crate) fn new(sizes: &[usize]) -> Disk {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk { folder, sizes: sizes.to_vec() };
        for (file, &bytes) in sizes.iter().enumerate() {
            std::fs::write(disk.path(file), content(file, bytes)).unwrap();
        }
        disk
    }

    pub(crate) fn path(&self, file: usize) -> PathBuf {
        self.folder.path().join(format!("part-{file}.gguf"))
    }

    pub(crate) fn open(&self, direct: Direct) -> Arc<Files> {
        Arc::new(Files::open((0..self.sizes.len()).map(|file| self.path(file)), direct).unwrap())
    }
}

/// The same files without a disk.
pub(crate) fn in_memory(sizes: &[usize], block_bytes: usize) -> Arc<Files> {
    let file = |(file, &bytes): (usize, &usize)| {
        ModelFile::in_memory(&format!("part-{file}"), content(file, bytes), block_bytes)
    };
    Arc::new(Files::new(sizes.iter().enumerate().map(file).collect()))
}

/// The backends that this system allows; says so if one is left out.
pub(crate) fn backends(files: &Arc<Files>, arena: &Arc<Arena>) -> Vec<Backend> {
    let mut all = vec![Backend::Pread];
    all.extend(open(files, arena, &options(Backend::Uring, 4096, 4)).map(|_| Backend::Uring));
    all
}

/// A fetcher, or `None` where the user's limit of locked memory is used up by rings that the kernel has not yet cleared away.
pub(crate) fn open(files: &Arc<Files>, arena: &Arc<Arena>, options: &Options) -> Option<Fetcher> {
    match Fetcher::open(files.clone(), arena.clone(), options) {
        Ok(fetcher) => Some(fetcher),
        Err(error @ Error::Unavailable { .. }) if options.backend == Backend::Uring => {
            println!("io_uring: skipped, {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

pub(crate) fn options(backend: Backend, piece_bytes: usize, depth: usize) -> Options {
    Options { backend, tuning: Tuning { piece_bytes, depth }, threads: depth.min(8) }
}

pub(crate) fn no_faults() -> Arc<Mutex<Faults>> {
    Arc::default()
}

/// The slot holds these slices, byte for byte.
#[track_caller]
pub(crate) fn assert_holds(arena: &Arena, slot: SlotId, slices: &[Slice]) {
    let pin = arena.pin(slot).unwrap();
    for (index, slice) in slices.iter().enumerate() {
        let found = pin.slice(index).unwrap();
        assert_eq!(found.len(), slice.bytes);
        let wrong = found.iter().zip(slice.offset..).position(|(&byte, offset)| byte != byte_at(slice.file, offset));
        assert_eq!(wrong, None, "first wrong byte of {slice:?} in {slot}");
    }
    assert_eq!(pin.slice(slices.len()), None);
}

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    /// A slice anywhere in the files; one in four ends with its file.
    pub(crate) fn slice(&mut self, sizes: &[usize], most: usize) -> Slice {
        let file = self.below(sizes.len() as u64) as usize;
        let bytes = 1 + self.below(most.min(sizes[file]) as u64) as usize;
        let last = (sizes[file] - bytes) as u64;
        let offset = if self.below(4) == 0 { last } else { self.below(last + 1) };
        Slice { file, offset, bytes }
    }
}
