//! What can go wrong with a GGUF file; every message says where, what was expected and what was found.
//!
//! Text from a file (keys, names) appears in messages with control characters escaped.

use std::io;
use std::path::PathBuf;

/// An error of reading or writing GGUF.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused to open, create or rename a file.
    #[error("{}: cannot {action}: {source}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// A read gave an error, or less than was asked for.
    #[error("{}: read at byte {offset}: wanted {wanted} bytes, got {got}{}", file.display(), reason(source))]
    Read {
        /// The file.
        file: PathBuf,
        /// Where the read began.
        offset: u64,
        /// Bytes asked for.
        wanted: u64,
        /// Bytes read before the error or the end of the file.
        got: u64,
        /// The system's error; none at the end of the file.
        source: Option<io::Error>,
    },
    /// The file is something else.
    #[error("{}: this is no GGUF file ({found}); moce reads .gguf files", file.display())]
    NotGguf {
        /// The file.
        file: PathBuf,
        /// What shows it.
        found: String,
    },
    /// The file ends before its last tensor does.
    #[error(
        "{}: the file is cut off: it has {bytes} bytes and needs at least {needed}; download it again",
        file.display()
    )]
    CutOff {
        /// The file.
        file: PathBuf,
        /// Its size.
        bytes: u64,
        /// Where its last tensor ends.
        needed: u64,
    },
    /// The file is for big-endian machines.
    #[error("{}: big-endian GGUF (version {version}), expected little-endian", file.display())]
    BigEndian {
        /// The file.
        file: PathBuf,
        /// Its version, read as big-endian.
        version: u32,
    },
    /// The header breaks GGUF's rules or this crate's limits.
    #[error("{}: byte {offset}: {what}: expected {expected}, found {found}", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// Where in the file.
        offset: u64,
        /// Which field, of which key or tensor.
        what: String,
        /// What the field may hold.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// The parts of a split file do not belong together.
    #[error("{}: split file: expected {expected}, found {found}", file.display())]
    Split {
        /// The part.
        file: PathBuf,
        /// What the file's name and the other parts demand.
        expected: String,
        /// What this part says.
        found: String,
    },
    /// What is asked of the writer is no GGUF, or over this crate's limits.
    #[error("cannot write GGUF: {what}: expected {expected}, found {found}")]
    Unwritable {
        /// Which key or tensor.
        what: String,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The data of a tensor to be written was not given, or not as many bytes as it has.
    #[error("{}: data of tensor {name:?}: {source}", file.display())]
    TensorData {
        /// The file that was being written.
        file: PathBuf,
        /// The tensor.
        name: String,
        /// What its source said.
        source: io::Error,
    },
    /// Two tensors have one name.
    #[error(
        "{}: byte {offset}: tensor {name:?}: expected each name once, found it at byte {first_offset} of {} too",
        file.display(), first.display()
    )]
    DuplicateTensor {
        /// The file of the second.
        file: PathBuf,
        /// The name, of a long one the beginning.
        name: String,
        /// Where the second's data is.
        offset: u64,
        /// The file of the first.
        first: PathBuf,
        /// Where the first's data is.
        first_offset: u64,
    },
    /// A metadata key that is needed is not there.
    #[error("{}: key {key:?}: expected {expected}, found no such key", file.display())]
    MissingKey {
        /// The file (part 1 of a split one).
        file: PathBuf,
        /// The key.
        key: String,
        /// The type that was asked for.
        expected: &'static str,
    },
    /// A metadata value has another type, or does not fit.
    #[error("{}: key {key:?}: expected {expected}, found {found}", file.display())]
    WrongValue {
        /// The file (part 1 of a split one).
        file: PathBuf,
        /// The key.
        key: String,
        /// The type that was asked for.
        expected: &'static str,
        /// The value's type, and the value where it is short.
        found: String,
    },
    /// A tensor that is needed is not there.
    #[error("{}: no tensor {name:?} among {count}", file.display())]
    MissingTensor {
        /// The file (part 1 of a split one).
        file: PathBuf,
        /// The tensor.
        name: String,
        /// How many tensors there are.
        count: usize,
    },
}

fn reason(source: &Option<io::Error>) -> String {
    match source {
        Some(error) => format!(": {error}"),
        None => " (end of file)".into(),
    }
}
