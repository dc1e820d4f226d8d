//! Fetches: brings slices from files into slots. It cuts the window of a slice into reads, keeps the device busy, goes on
//! after short reads, retries once after errors, puts demand before background, and lands slices in the arena as their last
//! read comes back. It decides neither what is fetched nor into which slot.
//!
//! One thread at a time drives it (`&mut self`); the slots are read through the [`Arena`] by any thread. No call allocates
//! unless it returns an error. Invariants:
//! - a piece (a read that is on the device, or waits to go on) is counted in its slice and its fetch;
//! - the device has at most one read of any byte of a slot;
//! - a fetch that failed or was cancelled keeps its slot until its last piece has come back.

mod dispatch;
mod fetch;
mod piece;

use crate::device::{Completion, Device, Read};
use crate::slot::SlotState;
use crate::window::{Window, page_rounded};
use crate::{Arena, Error, Files, MAX_SLICES, Slice, SlotId, Tuning};
use fetch::{Course, Fetch, SliceFetch};
use piece::Piece;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Idle-time reads in flight, in bytes: at 1 GB/s a demand read waits at most a millisecond for them.
const BACKGROUND_BYTES: usize = 1 << 20;

/// Why an expert is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// The router chose it.
    Demand,
    /// A guess, or a warm start: read while the device has nothing else to do.
    Background,
}

/// What a fetcher has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Reads that came back with bytes.
    pub reads: u64,
    /// Bytes that they brought, the blocks around slices included.
    pub bytes: u64,
    /// Of these, the bytes of demand reads. A read stays what it began as, here and in `busy`, also if its expert is chosen meanwhile.
    pub demand_bytes: u64,
    /// Reads that brought less than asked for, and were continued.
    pub short_reads: u64,
    /// Reads that failed or brought nothing, and were tried again.
    pub retries: u64,
    /// Time with demand reads on the device, from the first one to when the last was seen to be back.
    pub busy: Duration,
}

/// Says whether the bytes that were read for a slice are the right ones.
pub type Check = dyn Fn(&Slice, &[u8]) -> bool + Send;

/// Brings experts into slots.
pub struct Fetcher {
    device: Box<dyn Device>,
    files: Arc<Files>,
    arena: Arc<Arena>,
    /// By slot.
    fetches: Vec<Fetch>,
    demand: VecDeque<SlotId>,
    background: VecDeque<SlotId>,
    /// By ticket.
    pieces: Vec<Piece>,
    vacant: Vec<u32>,
    /// Pieces to be read on, or again.
    again: VecDeque<Read>,
    demand_in_flight: usize,
    background_in_flight: usize,
    done: Vec<Completion>,
    tuning: Tuning,
    check: Option<Box<Check>>,
    stats: Stats,
    /// When the demand reads began that are on the device now.
    busy_since: Option<Instant>,
}

impl Fetcher {
    /// A fetcher that reads by `device` into `arena`.
    #[must_use]
    pub(crate) fn with_device(device: Box<dyn Device>, arena: Arc<Arena>, tuning: Tuning) -> Fetcher {
        let files = device.files().clone();
        let slots = arena.slot_count();
        // A device's capacity may be lowered and raised again, up to what it is now.
        let capacity = device.capacity();
        let mut fetcher = Fetcher {
            device,
            files,
            arena,
            fetches: (0..slots).map(|_| Fetch::none()).collect(),
            demand: VecDeque::with_capacity(slots),
            background: VecDeque::with_capacity(slots),
            pieces: vec![Piece::none(); capacity],
            vacant: (0..capacity as u32).collect(),
            again: VecDeque::with_capacity(capacity),
            demand_in_flight: 0,
            background_in_flight: 0,
            done: Vec::with_capacity(capacity),
            tuning,
            check: None,
            stats: Stats::default(),
            busy_since: None,
        };
        fetcher.set_tuning(tuning);
        fetcher
    }

    /// The slots it fills.
    #[must_use]
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// The files it reads.
    #[must_use]
    pub fn files(&self) -> &Arc<Files> {
        &self.files
    }

    /// The name of the device that carries out its reads.
    #[must_use]
    pub fn device(&self) -> &'static str {
        self.device.name()
    }

    /// What it has done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// How reads are cut, and how many are on the device at once.
    #[must_use]
    pub fn tuning(&self) -> Tuning {
        self.tuning
    }

    /// Changes how the reads of later requests are cut, and how many are on the device at once.
    pub fn set_tuning(&mut self, tuning: Tuning) {
        self.tuning = tuning;
        self.device.limit_depth(tuning.depth);
    }

    /// From now on every slice is looked at before it lands, by the thread that drives the fetcher. A fetch with a wrong one fails.
    pub fn check_slices(&mut self, check: Box<Check>) {
        self.check = Some(check);
    }

    /// Asks for an expert: `slices` into `slot`, in this order, behind what was asked for with the same urgency. Nothing is
    /// read before [`Fetcher::submit`], so that a layer's misses start together. What the slot held is gone.
    ///
    /// # Errors
    /// The slot is pinned, in flight or too small, or a slice lies outside its file.
    pub fn request(&mut self, slot: SlotId, slices: &[Slice], urgency: Urgency) -> Result<(), Error> {
        if slices.is_empty() || slices.len() > MAX_SLICES {
            return Err(Error::SliceCount { found: slices.len() });
        }
        let mut fetch = Fetch { urgency, count: slices.len(), course: Course::Going, ..Fetch::none() };
        let mut start = 0;
        for (target, slice) in fetch.slices.iter_mut().zip(slices) {
            let file_bytes = self.files.get(slice.file).map_or(0, |file| file.identity().bytes);
            if slice.bytes == 0 || slice.offset.checked_add(slice.bytes as u64).is_none_or(|end| end > file_bytes) {
                let Slice { file, offset, bytes } = *slice;
                return Err(Error::SliceOutside { file, offset, bytes, file_bytes });
            }
            let block_bytes = self.files[slice.file].block_bytes();
            let window = Window::around(slice, block_bytes, file_bytes);
            let tuning = match urgency {
                Urgency::Demand => self.tuning,
                // Small enough that a demand never waits for a large guess.
                Urgency::Background => {
                    Tuning { piece_bytes: self.tuning.piece_bytes.min(BACKGROUND_BYTES / 2), ..self.tuning }
                }
            };
            let piece_bytes = tuning.piece_of(window.bytes(), block_bytes);
            *target = SliceFetch { slice: *slice, window, start, next: window.offset, piece_bytes, pieces: 0 };
            start += page_rounded(window.bytes());
        }
        if start > self.arena.slot_bytes(slot) {
            return Err(Error::SlotTooSmall { slot, wanted: start, found: self.arena.slot_bytes(slot) });
        }
        self.arena.word(slot).begin().map_err(|refused| Error::in_use(slot, refused))?;
        for (index, part) in fetch.slices[..fetch.count].iter().enumerate() {
            let start = part.start + part.window.skip;
            self.arena.place(slot, index, start..start + part.slice.bytes);
        }
        self.fetches[slot.index()] = fetch;
        self.queue(urgency).push_back(slot);
        Ok(())
    }

    /// Starts what was requested, as much as the device takes.
    pub fn submit(&mut self) {
        self.dispatch();
    }

    /// Takes what has come back and starts what waited for that, without sleeping. To be called every millisecond or two
    /// while computing with requests outstanding: the device is kept shallow, so that experts land one after the other, and
    /// gets its next reads here.
    ///
    /// # Errors
    /// The device failed.
    pub fn poll(&mut self) -> Result<(), Error> {
        self.advance(0)
    }

    /// Sleeps until a slice has landed. A background fetch that is waited for becomes a demand.
    ///
    /// # Errors
    /// The fetch failed (the slot is free then), or the slot has no such slice.
    pub fn wait(&mut self, slot: SlotId, slice: usize) -> Result<(), Error> {
        self.wait_any(&[(slot, slice)]).map(|_| ())
    }

    /// Sleeps until one of `wanted` has landed; returns which, the first in the list if there are several.
    ///
    /// # Errors
    /// One of the fetches failed (its slot is free then), or a slot has no such slice.
    ///
    /// # Panics
    /// `wanted` is empty.
    pub fn wait_any(&mut self, wanted: &[(SlotId, usize)]) -> Result<usize, Error> {
        assert!(!wanted.is_empty(), "waiting for nothing would never end");
        wanted.iter().for_each(|&(slot, _)| self.promote(slot));
        self.advance(0)?;
        loop {
            if let Some(index) = wanted.iter().position(|&(slot, slice)| self.arena.has_landed(slot, slice)) {
                return Ok(index);
            }
            let mut fewest = usize::MAX;
            for &(slot, slice) in wanted {
                let state = self.arena.state(slot);
                let fetch = &self.fetches[slot.index()];
                match state {
                    SlotState::InFlight if slice < fetch.count && fetch.is_going() => {
                        fewest = fewest.min(fetch.slices[slice].pieces);
                    }
                    SlotState::InFlight if slice < fetch.count => fewest = fewest.min(fetch.pieces),
                    SlotState::Failed => return Err(self.take_error(slot).unwrap_or(Error::NotHeld { slot, state })),
                    _ => return Err(Error::NotHeld { slot, state }),
                }
            }
            // A slice of n pieces lands after n completions at the earliest: no need to wake up before. While more waits
            // for the device, wake up to keep it busy.
            let has_backlog = !self.demand.is_empty() || !self.again.is_empty();
            let wait_for = if has_backlog { fewest.min(self.device.capacity() / 4) } else { fewest };
            self.advance(wait_for.max(1))?;
        }
    }

    /// Sleeps until nothing is in flight or waits to be, background included. Failed fetches keep their errors.
    ///
    /// # Errors
    /// The device failed.
    pub fn wait_all(&mut self) -> Result<(), Error> {
        self.dispatch();
        while self.in_flight() > 0 {
            let has_backlog = !self.demand.is_empty() || !self.again.is_empty() || !self.background.is_empty();
            let wait_for = if has_backlog { self.device.capacity() / 4 } else { self.in_flight() };
            self.advance(wait_for.clamp(1, self.in_flight()))?;
        }
        Ok(())
    }

    /// Whether nothing is in flight or waiting.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.in_flight() == 0 && self.demand.is_empty() && self.background.is_empty() && self.again.is_empty()
    }

    /// Makes a background fetch a demand: the router chose what was guessed.
    pub fn promote(&mut self, slot: SlotId) {
        let fetch = &mut self.fetches[slot.index()];
        if fetch.urgency == Urgency::Background && fetch.is_going() {
            fetch.urgency = Urgency::Demand;
            if let Some(position) = self.background.iter().position(|&queued| queued == slot) {
                self.background.remove(position);
                self.demand.push_back(slot);
            }
        }
    }

    /// Whether the slot's fetch has not begun: to cancel it frees the slot at once.
    #[must_use]
    pub fn is_queued(&self, slot: SlotId) -> bool {
        let fetch = &self.fetches[slot.index()];
        fetch.is_going() && fetch.slices[0].next == fetch.slices[0].window.offset
    }

    /// Gives up a fetch. Its slot is free as soon as the reads that have started are back.
    pub fn cancel(&mut self, slot: SlotId) {
        let fetch = &mut self.fetches[slot.index()];
        if self.arena.state(slot) != SlotState::InFlight || !fetch.is_going() {
            return;
        }
        fetch.course = Course::Cancelled;
        let urgency = fetch.urgency;
        self.queue(urgency).retain(|&queued| queued != slot);
        self.end_if_back(slot);
    }

    /// Gives up every fetch, and sleeps until the reads that have started are back. Failed fetches keep their errors.
    ///
    /// # Errors
    /// The device failed.
    pub fn cancel_all(&mut self) -> Result<(), Error> {
        for index in 0..self.fetches.len() {
            if let Some(slot) = self.arena.slot_at(index) {
                self.cancel(slot);
            }
        }
        self.wait_all()
    }

    /// Sleeps until the reads of a fetch that was given up are back: its slot is in flight no longer.
    ///
    /// # Errors
    /// The device failed.
    pub fn wait_given_up(&mut self, slot: SlotId) -> Result<(), Error> {
        // Pieces that waited to be read on, or again, end here: they may be all that was missing.
        self.dispatch();
        while self.arena.state(slot) == SlotState::InFlight {
            self.advance(1)?;
        }
        Ok(())
    }

    /// The error of a failed fetch, once; the slot is free then.
    pub fn take_error(&mut self, slot: SlotId) -> Option<Error> {
        if self.arena.state(slot) != SlotState::Failed {
            return None;
        }
        let course = std::mem::replace(&mut self.fetches[slot.index()].course, Course::Cancelled);
        self.arena.word(slot).acknowledge();
        match course {
            Course::Failed(error) => Some(error),
            Course::Going | Course::Cancelled => None,
        }
    }

    fn in_flight(&self) -> usize {
        self.demand_in_flight + self.background_in_flight
    }

    fn queue(&mut self, urgency: Urgency) -> &mut VecDeque<SlotId> {
        match urgency {
            Urgency::Demand => &mut self.demand,
            Urgency::Background => &mut self.background,
        }
    }

    fn advance(&mut self, wait_for: usize) -> Result<(), Error> {
        self.dispatch();
        if wait_for > 0 && self.in_flight() == 0 {
            debug_assert!(false, "waiting with nothing in flight");
            return Err(Error::Device { device: self.device.name(), cause: io::Error::other("a read was lost") });
        }
        let mut done = std::mem::take(&mut self.done);
        let mut outcome = self.device.complete(wait_for, &mut done);
        if wait_for > 0 && done.is_empty() && outcome.is_ok() {
            // Waiting on would never end: a panic has come between a completion and our account of it.
            outcome = Err(io::Error::other("a read was lost"));
        }
        done.drain(..).for_each(|completion| self.finish(completion));
        self.done = done;
        self.dispatch();
        if self.demand_in_flight == 0
            && let Some(since) = self.busy_since.take()
        {
            self.stats.busy += since.elapsed();
        }
        outcome.map_err(|cause| Error::Device { device: self.device.name(), cause })
    }
}

impl Drop for Fetcher {
    /// Waits for the reads that have started; fetches in flight end, their slots are free.
    fn drop(&mut self) {
        // An error here means that the device is beyond waiting; it then sees to it that the memory stays.
        let _ = self.cancel_all();
    }
}

impl fmt::Display for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = self.files.iter().map(crate::ModelFile::mode).find(|&mode| *mode != crate::Mode::Direct);
        write!(f, "{}, {}, {}", self.device, mode.unwrap_or(&crate::Mode::Direct), self.tuning)
    }
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fetcher { device, tuning, stats, demand_in_flight, background_in_flight, .. } = self;
        f.debug_struct("Fetcher")
            .field("device", device)
            .field("tuning", tuning)
            .field("stats", stats)
            .field("demand_in_flight", demand_in_flight)
            .field("background_in_flight", background_in_flight)
            .finish_non_exhaustive()
    }
}
