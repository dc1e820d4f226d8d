//! The files of a model, opened for reading into slots: directly where that is possible and gives the right bytes, else
//! buffered, dropping the pages behind the reads. What is read where is not decided here.

use crate::{Error, Memory};
use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The block where the system does not say: no device in use has a larger one.
const DEFAULT_BLOCK_BYTES: usize = 4096;

/// Whether files are read past the system's page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direct {
    /// Directly if a check at open agrees, else buffered.
    #[default]
    Auto,
    /// Directly, or not at all.
    Required,
    /// Buffered.
    Off,
}

/// How a file is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Past the page cache.
    Direct,
    /// Through the page cache, whose pages are dropped after each read; why.
    Buffered(String),
    /// From memory: tests and simulations.
    Memory,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mode::Direct => f.write_str("direct"),
            Mode::Buffered(reason) => write!(f, "buffered ({reason})"),
            Mode::Memory => f.write_str("in memory"),
        }
    }
}

/// What tells one content of a file from another without reading it. Not the inode's change time: renaming another file
/// over the path changes that, and the open file stays what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Size.
    pub bytes: u64,
    /// Last modification, in nanoseconds since 1970.
    pub modified_ns: i128,
}

impl Identity {
    /// Of an open file.
    ///
    /// # Errors
    /// The system's.
    pub fn of(file: &File) -> io::Result<Identity> {
        Ok(Identity::from(&file.metadata()?))
    }
}

impl From<&Metadata> for Identity {
    fn from(metadata: &Metadata) -> Identity {
        let modified_ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        Identity { bytes: metadata.len(), modified_ns }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, rest) = (self.modified_ns.div_euclid(1_000_000_000), self.modified_ns.rem_euclid(1_000_000_000));
        write!(f, "{} bytes of time {seconds}.{rest:09}", self.bytes)
    }
}

/// The files that slices name by their number.
#[derive(Debug)]
pub struct Files(Vec<ModelFile>);

impl Files {
    /// Files in the order of their numbers.
    #[must_use]
    pub fn new(files: Vec<ModelFile>) -> Files {
        Files(files)
    }

    /// Opens all of `paths` (the parts of a split GGUF).
    ///
    /// # Errors
    /// As [`ModelFile::open`].
    pub fn open<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>, direct: Direct) -> Result<Files, Error> {
        paths.into_iter().map(|path| ModelFile::open(path.as_ref(), direct)).collect::<Result<_, _>>().map(Files)
    }

    /// The largest block of the files: what [`crate::slot_bytes`] reckons with.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        self.0.iter().map(ModelFile::block_bytes).max().unwrap_or(DEFAULT_BLOCK_BYTES)
    }

    /// Looks whether a file is another than when it was opened. A system call a file, about a microsecond.
    ///
    /// # Errors
    /// [`Error::Changed`], or the system's.
    pub fn check_unchanged(&self) -> Result<(), Error> {
        self.0.iter().try_for_each(ModelFile::check_unchanged)
    }
}

impl std::ops::Deref for Files {
    type Target = [ModelFile];

    fn deref(&self) -> &[ModelFile] {
        &self.0
    }
}

/// A file of the model.
#[derive(Debug)]
pub struct ModelFile {
    path: PathBuf,
    source: Source,
    mode: Mode,
    block_bytes: usize,
    identity: Identity,
}

#[derive(Debug)]
enum Source {
    Disk { buffered: File, direct: Option<File> },
    Memory(Vec<u8>),
}

/// Through which of a file's two descriptors a read goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    /// Whole blocks into block-aligned memory.
    Blocks,
    /// Any range: the tail of a file that is shorter than a block.
    Any,
}

impl ModelFile {
    /// Opens a file for reading into slots.
    ///
    /// # Errors
    /// It cannot be opened, or not directly although that is required.
    pub fn open(path: &Path, direct: Direct) -> Result<ModelFile, Error> {
        let failed = |cause| Error::Open { path: path.to_owned(), cause };
        let file = File::open(path).map_err(failed)?;
        let identity = Identity::of(&file).map_err(failed)?;
        ModelFile::from_file(file, path, identity, direct)
    }

    /// Takes a file that is open already, so that a file renamed over `path` meanwhile is not mixed up with it. `identity` is what it was
    /// when it was opened: also a change before this call counts as one.
    ///
    /// # Errors
    /// As [`ModelFile::open`].
    pub fn from_file(file: File, path: &Path, identity: Identity, direct: Direct) -> Result<ModelFile, Error> {
        let path = path.to_owned();
        let block_bytes = system_block_bytes(&file);
        let opened = match direct {
            Direct::Off => Err("asked for".to_owned()),
            Direct::Auto | Direct::Required => open_direct(&file, &path).and_then(|direct| {
                check_direct(&file, &direct, block_bytes, identity.bytes)?;
                Ok(direct)
            }),
        };
        let (direct, mode) = match opened {
            Ok(file) => (Some(file), Mode::Direct),
            Err(reason) if direct == Direct::Required => return Err(Error::Direct { path, reason }),
            Err(reason) => (None, Mode::Buffered(reason)),
        };
        let buffered = if direct.is_none() {
            // Advice is for a descriptor: on a new one, so that whoever reads through the other keeps its read-ahead.
            let buffered = reopen(&file, &path, 0).unwrap_or(file);
            advise_random(&buffered);
            buffered
        } else {
            file
        };
        Ok(ModelFile { path, source: Source::Disk { buffered, direct }, mode, block_bytes, identity })
    }

    /// A file that is not on flash: for tests, and for the simulated device.
    #[must_use]
    pub fn in_memory(name: &str, bytes: Vec<u8>, block_bytes: usize) -> ModelFile {
        let identity = Identity { bytes: bytes.len() as u64, modified_ns: 0 };
        ModelFile { path: name.into(), source: Source::Memory(bytes), mode: Mode::Memory, block_bytes, identity }
    }

    /// Its path, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How it is read.
    #[must_use]
    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// Reads start and end on multiples of this.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// What it was when it was opened.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Looks whether the open file is another than when it was opened.
    ///
    /// # Errors
    /// [`Error::Changed`], or the system's.
    pub fn check_unchanged(&self) -> Result<(), Error> {
        let Source::Disk { buffered, .. } = &self.source else { return Ok(()) };
        let found = Identity::of(buffered).map_err(|cause| Error::Open { path: self.path.clone(), cause })?;
        if found == self.identity {
            Ok(())
        } else {
            Err(Error::Changed { path: self.path.clone(), expected: self.identity, found })
        }
    }

    /// One read at `offset`, as the system does it: it may be short.
    pub(crate) fn read_at(&self, via: Via, offset: u64, target: &mut [u8]) -> io::Result<usize> {
        match &self.source {
            Source::Disk { .. } => self.descriptor(via).expect("on disk").read_at(target, offset),
            Source::Memory(bytes) => {
                let rest = usize::try_from(offset).ok().and_then(|start| bytes.get(start..)).unwrap_or(&[]);
                let count = rest.len().min(target.len());
                target[..count].copy_from_slice(&rest[..count]);
                Ok(count)
            }
        }
    }

    /// The descriptor for a read; `None` if the file is in memory.
    pub(crate) fn descriptor(&self, via: Via) -> Option<&File> {
        match (&self.source, via) {
            (Source::Disk { direct: Some(direct), .. }, Via::Blocks) => Some(direct),
            (Source::Disk { buffered, .. }, _) => Some(buffered),
            (Source::Memory(_), _) => None,
        }
    }

    /// Drops the pages that a buffered read left behind; nothing to do for a direct one.
    pub(crate) fn drop_pages(&self, offset: u64, bytes: usize) {
        if let (Source::Disk { buffered, .. }, Mode::Buffered(_)) = (&self.source, &self.mode) {
            advise_dropped(buffered, offset, bytes);
        }
    }
}

/// Opens the same file again, for direct reads.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn open_direct(file: &File, path: &Path) -> Result<File, String> {
    let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    reopen(file, path, flags).map_err(|cause| format!("the file system refuses direct I/O: {cause}"))
}

/// Opens the same file again, uncached.
#[cfg(target_vendor = "apple")]
fn open_direct(file: &File, path: &Path) -> Result<File, String> {
    let opened = reopen(file, path, 0).map_err(|cause| cause.to_string())?;
    rustix::fs::fcntl_nocache(&opened, true).map_err(|cause| format!("the system refuses F_NOCACHE: {cause}"))?;
    Ok(opened)
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn open_direct(_file: &File, _path: &Path) -> Result<File, String> {
    Err("not supported on this system".to_owned())
}

/// Opens the same file again. By way of the descriptor where there is one to be had, since the path may name another by now.
fn reopen(file: &File, path: &Path, flags: i32) -> io::Result<File> {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;
    let open = |path: &Path| File::options().read(true).custom_flags(flags).open(path);
    let opened = open(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd()))).or_else(|_| open(path))?;
    let inode = |file: &File| file.metadata().map(|metadata| (metadata.dev(), metadata.ino()));
    if inode(file)? == inode(&opened)? {
        Ok(opened)
    } else {
        Err(io::Error::other("the path names another file by now"))
    }
}

/// Reads one block at the start and one in the middle both ways: some file systems open directly and give wrong bytes.
fn check_direct(buffered: &File, direct: &File, block_bytes: usize, file_bytes: u64) -> Result<(), String> {
    let blocks = file_bytes / block_bytes as u64;
    if blocks == 0 {
        return Err("smaller than a block".to_owned());
    }
    let mut memory = Memory::reserve(2 * block_bytes).map_err(|cause| format!("no memory for the check: {cause}"))?;
    let (one, other) = memory.split_at_mut(block_bytes);
    for block in [0, blocks / 2] {
        let offset = block * block_bytes as u64;
        // Page cache left by whoever wrote the file would only show that the cache agrees with itself.
        advise_dropped(buffered, offset, block_bytes);
        direct
            .read_exact_at(one, offset)
            .map_err(|cause| format!("a direct read at offset {offset} failed: {cause}"))?;
        buffered.read_exact_at(other, offset).map_err(|cause| format!("offset {offset}: {cause}"))?;
        advise_dropped(buffered, offset, block_bytes);
        if one != other {
            return Err(format!("direct and buffered reads differ at offset {offset}"));
        }
        one.fill(0);
    }
    Ok(())
}

/// The block that direct reads must keep to: the largest of what the system says about offsets and memory.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn system_block_bytes(file: &File) -> usize {
    use rustix::fs::{AtFlags, StatxFlags, statx};
    let Ok(status) = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) else { return DEFAULT_BLOCK_BYTES };
    let reported = status.stx_dio_offset_align.max(status.stx_dio_mem_align) as usize;
    let known = status.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && status.stx_dio_offset_align > 0;
    let usable = reported.is_power_of_two() && (512..=crate::window::WINDOW_ALIGNMENT).contains(&reported);
    if known && usable { reported } else { DEFAULT_BLOCK_BYTES }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn system_block_bytes(_file: &File) -> usize {
    DEFAULT_BLOCK_BYTES
}

/// Experts are read in no order: reading ahead would only multiply the traffic.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn advise_random(file: &File) {
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Random);
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn advise_dropped(file: &File, offset: u64, bytes: usize) {
    // Pages that are covered in part would stay.
    let page = rustix::param::page_size() as u64;
    let (start, end) = (offset / page * page, (offset + bytes as u64).next_multiple_of(page));
    let _ = rustix::fs::fadvise(file, start, std::num::NonZeroU64::new(end - start), rustix::fs::Advice::DontNeed);
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn advise_random(_file: &File) {}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn advise_dropped(_file: &File, _offset: u64, _bytes: usize) {}

#[cfg(all(test, not(loom)))]
mod tests;
