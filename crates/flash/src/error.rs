//! What can go wrong between a file and a slot. Read errors name file, offset, what was wanted and what came.

use crate::slot::{Refused, SlotState};
use crate::{Identity, SlotId};
use std::io;
use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be opened or asked for its size.
    #[error("cannot open {}: {cause}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        cause: io::Error,
    },
    /// Direct I/O was demanded, and the file cannot be read so.
    #[error("cannot read {} directly: {reason}", path.display())]
    Direct {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The system failed a read, and failed it again when it was retried.
    #[error("reading {} at offset {offset}: wanted {wanted} bytes, got {got}: {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Where the read started.
        offset: u64,
        /// Bytes wanted.
        wanted: usize,
        /// Bytes that came before the error.
        got: usize,
        /// What the system says.
        #[source]
        cause: io::Error,
    },
    /// The file ends before the slice does.
    #[error("{} ends early: wanted {wanted} bytes at offset {offset}, got {got}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Where the read started.
        offset: u64,
        /// Bytes wanted.
        wanted: usize,
        /// Bytes that came.
        got: usize,
    },
    /// What was read is not what was written.
    #[error("{}: the {bytes} bytes at offset {offset} are damaged: their checksum is another; moce verify looks at the whole file", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// First byte of the slice.
        offset: u64,
        /// Bytes of the slice.
        bytes: usize,
    },
    /// The file's content may be another than when it was opened.
    #[error("{} changed while in use: it was {expected}, it is {found}", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// What it was when it was opened.
        expected: Identity,
        /// What it is.
        found: Identity,
    },
    /// A request names bytes that the file does not have.
    #[error("slice of {bytes} bytes at offset {offset} of file {file}, which has {file_bytes} bytes")]
    SliceOutside {
        /// Which of the files.
        file: usize,
        /// First byte.
        offset: u64,
        /// Length.
        bytes: usize,
        /// Bytes of the file; 0 if there is no such file.
        file_bytes: u64,
    },
    /// A request has no slices, or more than a slot keeps track of.
    #[error("a fetch of {found} slices (expected 1 to {})", crate::MAX_SLICES)]
    SliceCount {
        /// Slices given.
        found: usize,
    },
    /// The slot is smaller than the windows of the slices.
    #[error("{slot} has {found} bytes, the fetch needs {wanted}")]
    SlotTooSmall {
        /// The slot.
        slot: SlotId,
        /// Bytes of the windows.
        wanted: usize,
        /// Bytes of the slot.
        found: usize,
    },
    /// The slot is in use, so it cannot be refilled, evicted or written.
    #[error("{slot} is in use: {state:?}, {pins} pins")]
    SlotInUse {
        /// The slot.
        slot: SlotId,
        /// Its state.
        state: SlotState,
        /// Computations that use it.
        pins: u32,
    },
    /// The slot holds nothing that could be waited for, pinned or read.
    #[error("{slot} has no such slice: {state:?}")]
    NotHeld {
        /// The slot.
        slot: SlotId,
        /// Its state.
        state: SlotState,
    },
    /// The system refuses the arena's memory.
    #[error("cannot reserve {bytes} bytes: {cause}")]
    Memory {
        /// Bytes asked for.
        bytes: usize,
        /// What the system says.
        #[source]
        cause: io::Error,
    },
    /// A device cannot be set up here.
    #[error("{device} cannot be used here: {cause}")]
    Unavailable {
        /// The device.
        device: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The device itself failed, not one of its reads.
    #[error("{device} failed while waiting for reads: {cause}")]
    Device {
        /// The device.
        device: &'static str,
        /// What the system says.
        #[source]
        cause: io::Error,
    },
    /// No device has that name.
    #[error("unknown I/O backend '{given}' (known: auto, uring, pread)")]
    UnknownBackend {
        /// What was given.
        given: String,
    },
}

impl Error {
    pub(crate) fn in_use(slot: SlotId, refused: Refused) -> Error {
        Error::SlotInUse { slot, state: refused.state, pins: refused.pins }
    }
}
