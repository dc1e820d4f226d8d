//! Keeps the device busy: cuts pieces in the order of urgency, takes them back, lands slices and ends fetches.

use crate::device::{Completion, Read};
use crate::fetcher::fetch::{Course, SliceFetch};
use crate::fetcher::piece::{Next, Piece};
use crate::fetcher::{BACKGROUND_BYTES, Fetcher, Urgency};
use crate::slot::SlotState;
use crate::window::Window;
use crate::{Error, Slice, SlotId, Via};
use std::time::Instant;

impl Fetcher {
    fn in_flight_of(&mut self, urgency: Urgency) -> &mut usize {
        match urgency {
            Urgency::Demand => &mut self.demand_in_flight,
            Urgency::Background => &mut self.background_in_flight,
        }
    }

    /// Fills the device: first what has to go on, then demand, then, if there is none, background.
    pub(super) fn dispatch(&mut self) {
        let most = self.device.capacity();
        let mut has_submitted = false;
        while self.in_flight() < most {
            let Some(read) = self.next_read() else { break };
            *self.in_flight_of(self.pieces[read.ticket as usize].urgency) += 1;
            self.device.submit(read);
            has_submitted = true;
        }
        if has_submitted {
            self.device.flush();
            if self.demand_in_flight > 0 && self.busy_since.is_none() {
                self.busy_since = Some(Instant::now());
            }
        }
    }

    fn next_read(&mut self) -> Option<Read> {
        while let Some(read) = self.again.pop_front() {
            if self.fetches[self.pieces[read.ticket as usize].slot.index()].is_going() {
                return Some(read);
            }
            self.release(read.ticket);
        }
        if self.vacant.is_empty() {
            return None;
        }
        while let Some(&slot) = self.demand.front() {
            if let Some(read) = self.cut(slot) {
                return Some(read);
            }
            self.demand.pop_front();
        }
        while self.demand_in_flight == 0
            && let Some(&slot) = self.background.front()
        {
            let piece_bytes = self.fetches[slot.index()].slices[0].piece_bytes.max(1);
            if self.background_in_flight >= (BACKGROUND_BYTES / piece_bytes).max(1) {
                break;
            }
            if let Some(read) = self.cut(slot) {
                return Some(read);
            }
            self.background.pop_front();
        }
        None
    }

    /// Cuts the next piece of a fetch; `None` if all are cut.
    fn cut(&mut self, slot: SlotId) -> Option<Read> {
        let fetch = &mut self.fetches[slot.index()];
        if !fetch.is_going() {
            return None;
        }
        while fetch.cutting < fetch.count {
            let part = &mut fetch.slices[fetch.cutting];
            let Window { offset: window_start, blocks_end, end, .. } = part.window;
            if part.next == end {
                fetch.cutting += 1;
                continue;
            }
            let offset = part.next;
            let (via, bytes) = if offset < blocks_end {
                (Via::Blocks, ((blocks_end - offset) as usize).min(part.piece_bytes))
            } else {
                (Via::Any, (end - offset) as usize)
            };
            part.next += bytes as u64;
            part.pieces += 1;
            fetch.pieces += 1;
            let slice_end = part.slice.offset + part.slice.bytes as u64;
            let needed = bytes.min((slice_end - offset) as usize);
            let ticket = self.vacant.pop().expect("`next_read` saw one");
            let (slice, urgency) = (fetch.cutting, fetch.urgency);
            self.pieces[ticket as usize] = Piece { slot, slice, urgency, offset, bytes, needed, ..Piece::none() };
            let start = part.start + (offset - window_start) as usize;
            // SAFETY: the slot is in flight; windows of a fetch don't overlap, and pieces are cut from a window one after
            // the other; a slice lands when its pieces are back, and `self.arena` outlives the device.
            let target = unsafe { self.arena.target(slot, start..start + bytes) };
            return Some(Read { ticket, file: part.slice.file, via, offset, target });
        }
        None
    }

    pub(super) fn finish(&mut self, completion: Completion) {
        let Completion { read, result } = completion;
        let (ticket, file) = (read.ticket, read.file);
        let piece = &mut self.pieces[ticket as usize];
        let (slot, slice, urgency) = (piece.slot, piece.slice, piece.urgency);
        if let Ok(count) = result {
            self.stats.reads += u64::from(count > 0);
            self.stats.bytes += count as u64;
            if urgency == Urgency::Demand {
                self.stats.demand_bytes += count as u64;
            }
            self.files[file].drop_pages(read.offset, count);
        }
        let next = piece.take(read, result, self.files[file].block_bytes(), &mut self.stats);
        *self.in_flight_of(urgency) -= 1;
        match next {
            _ if !self.fetches[slot.index()].is_going() => self.release(ticket),
            Next::Done => {
                self.release(ticket);
                let fetch = &self.fetches[slot.index()];
                let part = fetch.slices[slice];
                if part.pieces == 0 && part.next == part.window.end {
                    if self.is_right(slot, &part) {
                        let fetch = &mut self.fetches[slot.index()];
                        fetch.landed += 1;
                        self.arena.word(slot).land(slice, fetch.landed == fetch.count);
                    } else {
                        let Slice { file, offset, bytes } = part.slice;
                        let path = self.files[file].path().to_owned();
                        self.fail(slot, Error::Damaged { path, offset, bytes });
                        self.end_if_back(slot);
                    }
                }
            }
            Next::Again(read) => self.again.push_back(read),
            Next::Failed(wrong) => {
                let piece = self.pieces[ticket as usize];
                self.fail(slot, wrong.into_error(&piece, self.files[file].path().to_owned()));
                self.release(ticket);
            }
        }
    }

    /// Whether what was read for a slice passes the check, if there is one. All of its reads are back, and it has not landed.
    fn is_right(&self, slot: SlotId, part: &SliceFetch) -> bool {
        let Some(check) = &self.check else { return true };
        let start = part.start + part.window.skip;
        // SAFETY: the slot is in flight; the slice's reads are all back and it has not landed, so its bytes have no other target; this
        // one is gone before the slice lands.
        let mut bytes = unsafe { self.arena.target(slot, start..start + part.slice.bytes) };
        check(&part.slice, bytes.bytes_mut())
    }

    /// Ends a fetch with an error; its slot is given back with its last piece.
    fn fail(&mut self, slot: SlotId, error: Error) {
        let fetch = &mut self.fetches[slot.index()];
        fetch.course = Course::Failed(error);
        let urgency = fetch.urgency;
        self.queue(urgency).retain(|&queued| queued != slot);
    }

    /// A piece is back for good.
    fn release(&mut self, ticket: u32) {
        let Piece { slot, slice, .. } = self.pieces[ticket as usize];
        let fetch = &mut self.fetches[slot.index()];
        fetch.slices[slice].pieces -= 1;
        fetch.pieces -= 1;
        self.vacant.push(ticket);
        if !fetch.is_going() {
            self.end_if_back(slot);
        }
    }

    /// A fetch that was given up gives its slot back with its last piece.
    pub(super) fn end_if_back(&mut self, slot: SlotId) {
        let fetch = &self.fetches[slot.index()];
        if fetch.pieces == 0 {
            let has_error = matches!(fetch.course, Course::Failed(_));
            self.arena.word(slot).fail(if has_error { SlotState::Failed } else { SlotState::Free });
        }
    }
}
