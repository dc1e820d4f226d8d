//! The protocol of one slot: who may touch its bytes, as one atomic word. It knows no bytes itself; the arena holds those.
//!
//! The word counts pins and keeps the phase, one bit a landed slice, and one bit for a writer. Invariants:
//! - while a slot is in flight, the bytes of a slice that has not landed belong to the device alone;
//! - a landed slice is read under a pin; it is written by one pin alone that holds the writer bit;
//! - a fetch begins, and an eviction happens, only with no pin and no writer: a slot in use can't be refilled;
//! - a slot leaves "in flight" only by [`SlotWord::land`] of its last slice or by [`SlotWord::fail`], both called when the
//!   last read has come back.

use crate::sync::{AtomicU32, Ordering};

/// Most slices that one fetch brings: gate, up and down projection, and one to spare.
pub const MAX_SLICES: usize = 4;

const PIN: u32 = 1;
const PINS: u32 = 0xffff;
const LANDED_SHIFT: u32 = 16;
const LANDED: u32 = ((1 << MAX_SLICES) - 1) << LANDED_SHIFT;
const WRITER: u32 = 1 << 20;
const PHASE_SHIFT: u32 = 21;
const PHASE: u32 = 3 << PHASE_SHIFT;

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotState {
    /// Nothing.
    Free,
    /// An expert that is being read; some of its slices may have landed.
    InFlight,
    /// An expert, whole.
    Filled,
    /// Nothing: its fetch failed, and the error has not been taken yet.
    Failed,
}

impl SlotState {
    fn of(word: u32) -> SlotState {
        match (word & PHASE) >> PHASE_SHIFT {
            0 => SlotState::Free,
            1 => SlotState::InFlight,
            2 => SlotState::Filled,
            _ => SlotState::Failed,
        }
    }

    fn bits(self) -> u32 {
        (match self {
            SlotState::Free => 0,
            SlotState::InFlight => 1,
            SlotState::Filled => 2,
            SlotState::Failed => 3,
        }) << PHASE_SHIFT
    }
}

/// Why a slot refused: its state and pins at that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) state: SlotState,
    pub(crate) pins: u32,
}

impl Refused {
    fn by(word: u32) -> Refused {
        Refused { state: SlotState::of(word), pins: word & PINS }
    }
}

#[derive(Debug)]
pub(crate) struct SlotWord(AtomicU32);

impl SlotWord {
    pub(crate) fn new() -> SlotWord {
        SlotWord(AtomicU32::new(0))
    }

    pub(crate) fn state(&self) -> SlotState {
        SlotState::of(self.0.load(Ordering::Acquire))
    }

    pub(crate) fn pins(&self) -> u32 {
        self.0.load(Ordering::Relaxed) & PINS
    }

    /// Whether `slice` may be read under a pin.
    pub(crate) fn has_landed(&self, slice: usize) -> bool {
        // Acquire: the reader sees the bytes that `land` published.
        self.0.load(Ordering::Acquire) & landed_bit(slice) != 0
    }

    /// Gives the slot to the device for a new fetch; what it held is gone.
    pub(crate) fn begin(&self) -> Result<(), Refused> {
        // Acquire: reads under the last pins happen before the device's first write.
        self.change(Ordering::Acquire, |word| {
            let may = word & (PINS | WRITER) == 0 && SlotState::of(word) != SlotState::InFlight;
            may.then_some(SlotState::InFlight.bits())
        })
    }

    /// Gives up what the slot held.
    pub(crate) fn evict(&self) -> Result<(), Refused> {
        self.change(Ordering::Acquire, |word| {
            let may = word & (PINS | WRITER) == 0 && SlotState::of(word) != SlotState::InFlight;
            may.then_some(SlotState::Free.bits())
        })
    }

    /// Publishes a slice whose reads have all come back; `last` when none of the slot's is left.
    pub(crate) fn land(&self, slice: usize, last: bool) {
        let landed = self.change(Ordering::AcqRel, |word| {
            debug_assert_eq!(SlotState::of(word), SlotState::InFlight);
            let word = word | landed_bit(slice);
            Some(if last { (word & !PHASE) | SlotState::Filled.bits() } else { word })
        });
        debug_assert!(landed.is_ok());
    }

    /// Ends a fetch that brings no whole expert, after its last read has come back. Pins that exist stay, and what they
    /// borrow stays as it is, since nothing can begin before they are gone.
    pub(crate) fn fail(&self, state: SlotState) {
        debug_assert!(matches!(state, SlotState::Failed | SlotState::Free));
        let failed = self.change(Ordering::AcqRel, |word| {
            debug_assert_eq!(SlotState::of(word), SlotState::InFlight);
            Some((word & (PINS | WRITER)) | state.bits())
        });
        debug_assert!(failed.is_ok());
    }

    /// A failed slot whose error has been taken is free.
    pub(crate) fn acknowledge(&self) {
        let _ = self.change(Ordering::AcqRel, |word| {
            (SlotState::of(word) == SlotState::Failed).then_some((word & !PHASE) | SlotState::Free.bits())
        });
    }

    pub(crate) fn pin(&self) -> Result<(), Refused> {
        self.change(Ordering::Acquire, |word| {
            let holds = matches!(SlotState::of(word), SlotState::InFlight | SlotState::Filled);
            (holds && word & WRITER == 0 && word & PINS < PINS).then_some(word.wrapping_add(PIN))
        })
    }

    pub(crate) fn unpin(&self) {
        // Release: what was read under the pin was read before the slot is refilled.
        let before = self.0.fetch_sub(PIN, Ordering::Release);
        debug_assert!(before & PINS > 0);
    }

    /// Makes the caller's own pin the only one, so that it may write `slice`.
    pub(crate) fn lock(&self, slice: usize) -> Result<(), Refused> {
        self.change(Ordering::Acquire, |word| {
            (word & PINS == PIN && word & WRITER == 0 && word & landed_bit(slice) != 0).then_some(word | WRITER)
        })
    }

    pub(crate) fn unlock(&self) {
        // Release: later pins see what was written.
        let before = self.0.fetch_and(!WRITER, Ordering::Release);
        debug_assert!(before & WRITER != 0);
    }

    fn change(&self, success: Ordering, step: impl Fn(u32) -> Option<u32>) -> Result<(), Refused> {
        self.0.fetch_update(success, Ordering::Relaxed, step).map(|_| ()).map_err(Refused::by)
    }
}

fn landed_bit(slice: usize) -> u32 {
    debug_assert!(slice < MAX_SLICES);
    (1 << LANDED_SHIFT << slice) & LANDED
}

#[cfg(test)]
mod tests;
