//! What the fetcher remembers of a slot's fetch: its slices, how far each is cut, and how many of its pieces are out.

use crate::fetcher::Urgency;
use crate::window::Window;
use crate::{Error, MAX_SLICES, Slice};

/// The fetch that a slot is in, or was in last.
#[derive(Debug)]
pub(super) struct Fetch {
    pub(super) slices: [SliceFetch; MAX_SLICES],
    pub(super) count: usize,
    pub(super) urgency: Urgency,
    /// The slice that the next piece is cut from.
    pub(super) cutting: usize,
    pub(super) pieces: usize,
    pub(super) landed: usize,
    pub(super) course: Course,
}

#[derive(Debug)]
pub(super) enum Course {
    Going,
    Cancelled,
    Failed(Error),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct SliceFetch {
    pub(super) slice: Slice,
    pub(super) window: Window,
    /// Where the window starts in the slot.
    pub(super) start: usize,
    /// File offset of the next piece.
    pub(super) next: u64,
    pub(super) piece_bytes: usize,
    pub(super) pieces: usize,
}

impl Fetch {
    pub(super) fn none() -> Fetch {
        let slice = Slice { file: 0, offset: 0, bytes: 0 };
        let window = Window { offset: 0, blocks_end: 0, end: 0, skip: 0 };
        let part = SliceFetch { slice, window, start: 0, next: 0, piece_bytes: 0, pieces: 0 };
        Fetch {
            slices: [part; MAX_SLICES],
            count: 0,
            urgency: Urgency::Demand,
            cutting: 0,
            pieces: 0,
            landed: 0,
            course: Course::Cancelled,
        }
    }

    /// Whether slices have still to land: the slot is this fetch's own as long as it goes, another may fill it afterwards.
    pub(super) fn is_going(&self) -> bool {
        matches!(self.course, Course::Going) && self.landed < self.count
    }
}
