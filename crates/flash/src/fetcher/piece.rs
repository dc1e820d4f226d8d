//! One piece of a slice: what follows from what its read brought. Short reads go on, an error is tried again once.

use crate::device::Read;
use crate::fetcher::{Stats, Urgency};
use crate::{Error, SlotId, Via};
use std::io;

/// How often the system may ask to try a read again (interrupted, cancelled, no resources) before that counts as an error.
const MOST_INTERRUPTIONS: u8 = 32;

#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) slot: SlotId,
    pub(super) slice: usize,
    pub(super) urgency: Urgency,
    pub(super) offset: u64,
    pub(super) bytes: usize,
    /// Up to here the slice needs it; what lies behind only fills the block.
    pub(super) needed: usize,
    pub(super) got: usize,
    pub(super) has_failed: bool,
    pub(super) interruptions: u8,
}

/// What follows from a completion.
pub(super) enum Next {
    Done,
    Again(Read),
    Failed(Wrong),
}

/// How a piece failed for good.
pub(super) enum Wrong {
    System(io::Error),
    Ended,
}

impl Wrong {
    pub(super) fn into_error(self, piece: &Piece, path: std::path::PathBuf) -> Error {
        let &Piece { offset, bytes: wanted, got, .. } = piece;
        match self {
            Wrong::System(cause) => Error::Read { path, offset, wanted, got, cause },
            Wrong::Ended => Error::Truncated { path, offset, wanted, got },
        }
    }
}

impl Piece {
    /// Stands where there is none yet.
    pub(super) fn none() -> Piece {
        Piece {
            slot: SlotId::NONE,
            slice: 0,
            urgency: Urgency::Demand,
            offset: 0,
            bytes: 0,
            needed: 0,
            got: 0,
            has_failed: false,
            interruptions: 0,
        }
    }

    /// Takes what a read of this piece brought.
    pub(super) fn take(
        &mut self,
        mut read: Read,
        result: io::Result<usize>,
        block_bytes: usize,
        stats: &mut Stats,
    ) -> Next {
        match result {
            Ok(count) if self.got + count >= self.needed => Next::Done,
            Ok(count) => {
                // Block reads go on at a block's start, so the last part of a block is read again.
                let kept = if read.via == Via::Blocks { count / block_bytes * block_bytes } else { count };
                if kept == 0 {
                    // The end of the file, or a read that a fault cut: the second time it is the end.
                    if std::mem::replace(&mut self.has_failed, true) {
                        self.got += count;
                        return Next::Failed(Wrong::Ended);
                    }
                    stats.retries += 1;
                } else {
                    stats.short_reads += 1;
                    self.got += kept;
                    read.offset += kept as u64;
                    read.target.advance(kept);
                }
                Next::Again(read)
            }
            Err(error) if is_interruption(&error) && self.interruptions < MOST_INTERRUPTIONS => {
                self.interruptions += 1;
                Next::Again(read)
            }
            Err(_) if !std::mem::replace(&mut self.has_failed, true) => {
                stats.retries += 1;
                Next::Again(read)
            }
            Err(error) => Next::Failed(Wrong::System(error)),
        }
    }
}

/// Not an error of the read: the system asks to try again, or the thread that submitted it has ended.
fn is_interruption(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
        || error.raw_os_error() == Some(rustix::io::Errno::CANCELED.raw_os_error())
}
