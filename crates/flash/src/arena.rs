//! The arena: one reservation, cut once into slots of fixed sizes. It holds bytes and keeps the slot protocol; it decides
//! nothing (which expert leaves is the cache's matter) and reads nothing (the fetcher does).
//!
//! All references into the memory are made here: shared ones under a [`Pin`], an exclusive one under a [`SliceMut`], and the
//! device's [`Target`] for what is in flight. SAFETY.md argues why they never overlap; `slot.rs` is the protocol they keep.

use crate::slot::{SlotState, SlotWord};
use crate::window::{WINDOW_ALIGNMENT, page_rounded};
use crate::{Error, MAX_SLICES, Memory};
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Slots of one size: those of a layer, or the staging slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotClass {
    /// Bytes of each (see [`crate::slot_bytes`]).
    pub bytes: usize,
    /// How many.
    pub count: usize,
}

/// A slot of an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(u32);

impl SlotId {
    /// No slot: stands where none has been named yet.
    pub(crate) const NONE: SlotId = SlotId(u32::MAX);

    /// Its number in the arena, from 0.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {}", self.0)
    }
}

/// All slots, in one reservation that is populated at start and never grows.
#[derive(Debug)]
pub struct Arena {
    /// Never looked at as a whole: devices write parts of it.
    memory: Memory,
    bytes: usize,
    slots: Vec<Slot>,
    /// First slot of each class, and the end of the last.
    classes: Vec<u32>,
}

#[derive(Debug)]
struct Slot {
    word: SlotWord,
    start: usize,
    bytes: usize,
    /// Where each slice lies, from the slot's start. Written while a fetch begins, read after a slice has landed.
    slices: [Place; MAX_SLICES],
}

#[derive(Debug, Default)]
struct Place {
    offset: AtomicUsize,
    bytes: AtomicUsize,
}

impl Arena {
    /// Bytes that an arena of these classes takes.
    #[must_use]
    pub fn bytes_for(classes: &[SlotClass]) -> usize {
        classes.iter().map(|class| page_rounded(class.bytes).saturating_mul(class.count)).fold(0, usize::saturating_add)
    }

    /// Reserves and populates the slots, class after class.
    ///
    /// # Errors
    /// The system refuses the memory.
    pub fn reserve(classes: &[SlotClass]) -> Result<Arena, Error> {
        let bytes = Arena::bytes_for(classes);
        let count: usize = classes.iter().map(|class| class.count).sum();
        let refused = |cause| Error::Memory { bytes, cause };
        if u32::try_from(count).is_err() {
            return Err(refused(std::io::ErrorKind::OutOfMemory.into()));
        }
        let mut memory = Memory::reserve(bytes).map_err(refused)?;
        memory.populate().map_err(refused)?;
        debug_assert!(bytes == 0 || memory.start().as_ptr().align_offset(WINDOW_ALIGNMENT) == 0);
        let mut slots = Vec::with_capacity(count);
        let mut first = vec![0];
        let mut start = 0;
        for class in classes {
            let bytes = page_rounded(class.bytes);
            for _ in 0..class.count {
                slots.push(Slot { word: SlotWord::new(), start, bytes, slices: Default::default() });
                start += bytes;
            }
            first.push(slots.len() as u32);
        }
        Ok(Arena { memory, bytes, slots, classes: first })
    }

    /// The slots of a class.
    ///
    /// # Panics
    /// There is no such class.
    #[must_use]
    pub fn slots(&self, class: usize) -> impl ExactSizeIterator<Item = SlotId> + Clone + use<> {
        (self.classes[class]..self.classes[class + 1]).map(SlotId)
    }

    /// The slot of this number.
    #[must_use]
    pub fn slot_at(&self, index: usize) -> Option<SlotId> {
        (index < self.slots.len()).then_some(SlotId(index as u32))
    }

    /// How many slots there are in all.
    #[must_use]
    pub fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// Bytes of all slots.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of one slot.
    ///
    /// # Panics
    /// The slot is of another arena (as in all methods that take one).
    #[must_use]
    pub fn slot_bytes(&self, slot: SlotId) -> usize {
        self.slot(slot).bytes
    }

    /// What the slot holds.
    #[must_use]
    pub fn state(&self, slot: SlotId) -> SlotState {
        self.slot(slot).word.state()
    }

    /// How many pins there are on the slot.
    #[must_use]
    pub fn pins(&self, slot: SlotId) -> u32 {
        self.slot(slot).word.pins()
    }

    /// Whether a slice of what the slot holds, or is being filled with, can be read.
    #[must_use]
    pub fn has_landed(&self, slot: SlotId, slice: usize) -> bool {
        slice < MAX_SLICES && self.slot(slot).word.has_landed(slice)
    }

    /// Keeps what the slot holds, or is being filled with, until the pin is dropped.
    ///
    /// # Errors
    /// The slot is free or failed, or is being written.
    pub fn pin(&self, slot: SlotId) -> Result<Pin<'_>, Error> {
        match self.slot(slot).word.pin() {
            Ok(()) => Ok(Pin { arena: self, slot }),
            Err(refused) if matches!(refused.state, SlotState::Free | SlotState::Failed) => {
                Err(Error::NotHeld { slot, state: refused.state })
            }
            Err(refused) => Err(Error::in_use(slot, refused)),
        }
    }

    /// Frees the slot.
    ///
    /// # Errors
    /// The slot is pinned or in flight.
    pub fn evict(&self, slot: SlotId) -> Result<(), Error> {
        self.slot(slot).word.evict().map_err(|refused| Error::in_use(slot, refused))
    }

    /// Copies the landed slices of `from` into the slot `to`, whatever that held: from staging into a layer's slot.
    ///
    /// # Errors
    /// `to` is in use or too small, or `from` has not landed whole.
    pub fn copy(&self, from: &Pin<'_>, to: SlotId) -> Result<(), Error> {
        // Before the slices are counted: the last of them may be landing now.
        let state = from.arena.state(from.slot);
        if state != SlotState::Filled {
            return Err(Error::NotHeld { slot: from.slot, state });
        }
        let count = (0..MAX_SLICES).take_while(|&slice| from.has_landed(slice)).count();
        let places = from.arena.slot(from.slot).places();
        let wanted = places[count - 1].end;
        let target = self.slot(to);
        if target.bytes < wanted {
            return Err(Error::SlotTooSmall { slot: to, wanted, found: target.bytes });
        }
        target.word.begin().map_err(|refused| Error::in_use(to, refused))?;
        for (slice, place) in places.into_iter().enumerate().take(count) {
            target.place(slice, place.clone());
            let source = from.slice(slice).expect("all slices of a filled slot have landed");
            // SAFETY: `begin` gave this slot to us alone, and the place lies inside it as checked above.
            let mut bytes = unsafe { self.target(to, place) };
            bytes.bytes_mut().copy_from_slice(source);
        }
        (0..count).for_each(|slice| target.word.land(slice, slice + 1 == count));
        Ok(())
    }

    fn slot(&self, slot: SlotId) -> &Slot {
        &self.slots[slot.index()]
    }

    pub(crate) fn word(&self, slot: SlotId) -> &SlotWord {
        &self.slot(slot).word
    }

    /// Says where a slice will lie. Only between [`SlotWord::begin`] and the slice's landing.
    pub(crate) fn place(&self, slot: SlotId, slice: usize, place: Range<usize>) {
        self.slot(slot).place(slice, place);
    }

    /// The bytes `range` of a slot, for the device to write.
    ///
    /// # Safety
    /// The slot is in flight, `range` belongs to a slice of it that has not landed, and no other target overlaps it. The
    /// target is gone before the slice lands, and before the arena is.
    pub(crate) unsafe fn target(&self, slot: SlotId, range: Range<usize>) -> Target {
        let slot = self.slot(slot);
        assert!(range.start <= range.end && range.end <= slot.bytes, "{range:?} of a slot of {} bytes", slot.bytes);
        // SAFETY: the slot lies inside the memory, and the range inside the slot.
        let start = unsafe { self.memory.start().add(slot.start + range.start) };
        Target { start, bytes: range.len() }
    }

    /// The arena's memory, for io_uring to register, cut between slots into parts of at most `most` bytes (or of one slot).
    #[cfg(any(target_os = "linux", test))]
    pub(crate) fn parts(&self, most: usize) -> Vec<(NonNull<u8>, usize)> {
        let mut parts: Vec<(NonNull<u8>, usize)> = Vec::new();
        for slot in self.slots.iter().filter(|slot| slot.bytes > 0) {
            match parts.last_mut() {
                Some((_, bytes)) if *bytes + slot.bytes <= most => *bytes += slot.bytes,
                // SAFETY: the slot starts inside the memory.
                _ => parts.push((unsafe { self.memory.start().add(slot.start) }, slot.bytes)),
            }
        }
        parts
    }
}

impl Slot {
    fn place(&self, slice: usize, place: Range<usize>) {
        // Relaxed: `SlotWord::land` publishes, `SlotWord::has_landed` acquires.
        self.slices[slice].offset.store(place.start, Ordering::Relaxed);
        self.slices[slice].bytes.store(place.len(), Ordering::Relaxed);
    }

    fn places(&self) -> [Range<usize>; MAX_SLICES] {
        std::array::from_fn(|slice| {
            let offset = self.slices[slice].offset.load(Ordering::Relaxed);
            offset..offset + self.slices[slice].bytes.load(Ordering::Relaxed)
        })
    }
}

/// Keeps a slot's expert where it is, and gives its landed slices.
#[derive(Debug)]
pub struct Pin<'a> {
    arena: &'a Arena,
    slot: SlotId,
}

impl Pin<'_> {
    /// The slot.
    #[must_use]
    pub fn slot(&self) -> SlotId {
        self.slot
    }

    /// Whether a slice can be read.
    #[must_use]
    pub fn has_landed(&self, slice: usize) -> bool {
        self.arena.has_landed(self.slot, slice)
    }

    /// The bytes of a slice, once it has landed.
    #[must_use]
    pub fn slice(&self, slice: usize) -> Option<&[u8]> {
        if !self.has_landed(slice) {
            return None;
        }
        let range = self.range(slice);
        // SAFETY: the range lies in the memory; the slice has landed, so no device writes it; the slot is pinned, so no
        // fetch begins; and a `SliceMut` needs the only pin mutably, which is this one, borrowed.
        Some(unsafe { std::slice::from_raw_parts(self.arena.memory.start().as_ptr().add(range.start), range.len()) })
    }

    /// A landed slice to write in place, while nobody else has a pin.
    ///
    /// # Errors
    /// There are other pins, or the slice has not landed.
    pub fn write(&mut self, slice: usize) -> Result<SliceMut<'_>, Error> {
        if !self.has_landed(slice) {
            return Err(Error::NotHeld { slot: self.slot, state: self.arena.state(self.slot) });
        }
        let word = &self.arena.slot(self.slot).word;
        word.lock(slice).map_err(|refused| Error::in_use(self.slot, refused))?;
        let range = self.range(slice);
        // SAFETY: the range lies in the memory; the slice has landed, so no device writes it; this is the only pin, it is
        // borrowed mutably, and the writer bit keeps others from pinning until the `SliceMut` is dropped.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(self.arena.memory.start().as_ptr().add(range.start), range.len()) };
        Ok(SliceMut { word, bytes })
    }

    /// Where a landed slice lies in the arena's memory.
    fn range(&self, slice: usize) -> Range<usize> {
        let slot = self.arena.slot(self.slot);
        let place = slot.places()[slice].clone();
        assert!(place.end <= slot.bytes, "slices lie inside their slot");
        slot.start + place.start..slot.start + place.end
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.arena.slot(self.slot).word.unpin();
    }
}

/// A landed slice, held exclusively: for putting it into kernel order in place.
#[derive(Debug)]
pub struct SliceMut<'a> {
    word: &'a SlotWord,
    bytes: &'a mut [u8],
}

impl Deref for SliceMut<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

impl DerefMut for SliceMut<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes
    }
}

impl Drop for SliceMut<'_> {
    fn drop(&mut self) {
        self.word.unlock();
    }
}

/// Bytes of a slot in flight, owned by whoever fills them: the device. Not a slice before the device is done, since the
/// system writes behind the compiler's back.
#[derive(Debug)]
pub(crate) struct Target {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a target owns its bytes, like `&mut [u8]`.
unsafe impl Send for Target {}

impl Target {
    /// Address of the first byte, for io_uring.
    #[cfg(target_os = "linux")]
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Length.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// Leaves out the first `bytes`, which have been filled.
    pub(crate) fn advance(&mut self, bytes: usize) {
        assert!(bytes <= self.bytes, "{bytes} of {}", self.bytes);
        // SAFETY: inside the target, or at its end.
        self.start = unsafe { self.start.add(bytes) };
        self.bytes -= bytes;
    }

    /// The bytes, for a device that writes them by plain code.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: a target owns its bytes, which are initialised (the arena is populated with zeros).
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
