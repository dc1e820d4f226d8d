//! A decorator that makes a device misbehave: errors, short reads, delays, a file that ends early. By schedule, by place, or
//! by seed. What a fault withholds is overwritten with [`POISON`], so that whoever trusts it is found out.

use super::simulated::Random;
use super::{Completion, Device, Read};
use crate::Files;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Fills what a fault withholds.
pub const POISON: u8 = 0xee;

/// `EIO`: what systems say when a device cannot read.
const INPUT_OUTPUT_ERROR: i32 = 5;

/// What happens to one read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails with this error number.
    Error(i32),
    /// It brings at most so many bytes.
    Short(usize),
    /// It comes back after others that were submitted later.
    Delay,
}

/// Which reads misbehave. Changing it takes effect with the next read that is submitted.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// What happens to the n-th read of the device, from 0.
    pub schedule: BTreeMap<u64, Fault>,
    /// Reads that touch these bytes of a file always fail.
    pub bad_ranges: Vec<(usize, Range<u64>)>,
    /// Files that end here.
    pub ends: Vec<(usize, u64)>,
    /// Share of the reads that fail with an input/output error.
    pub errors: f64,
    /// Share that comes back short, by a random length of at least a block where the read is longer.
    pub short: f64,
    /// Share that comes back late.
    pub delays: f64,
}

/// A device with faults.
pub(crate) struct Faulty {
    inner: Box<dyn Device>,
    faults: Arc<Mutex<Faults>>,
    random: Random,
    /// Reads submitted so far.
    count: u64,
    /// Reads that the inner device has, and what happens to each.
    inner_faults: Vec<(u32, Option<Fault>)>,
    ready: Vec<Completion>,
    held: Vec<(u32, Completion)>,
    inbox: Vec<Completion>,
}

impl Faulty {
    pub(crate) fn new(inner: Box<dyn Device>, faults: Arc<Mutex<Faults>>, seed: u64) -> Faulty {
        let capacity = inner.capacity();
        Faulty {
            inner,
            faults,
            random: Random::new(seed),
            count: 0,
            inner_faults: Vec::with_capacity(capacity),
            ready: Vec::with_capacity(capacity),
            held: Vec::with_capacity(capacity),
            inbox: Vec::with_capacity(capacity),
        }
    }

    /// What happens to this read.
    fn fault(&mut self, read: &Read) -> Option<Fault> {
        let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let number = self.count;
        self.count += 1;
        let bytes = read.offset..read.offset + read.target.len() as u64;
        let touches = |(file, range): &(usize, Range<u64>)| {
            *file == read.file && range.start < bytes.end && bytes.start < range.end
        };
        if faults.bad_ranges.iter().any(touches) {
            return Some(Fault::Error(INPUT_OUTPUT_ERROR));
        }
        if let Some(&fault) = faults.schedule.get(&number) {
            return Some(fault);
        }
        if let Some((_, end)) = faults.ends.iter().find(|(file, end)| *file == read.file && *end < bytes.end) {
            return Some(Fault::Short(end.saturating_sub(bytes.start) as usize));
        }
        let draw = self.random.unit();
        let length = self.random.below(bytes.end - bytes.start) as usize;
        if draw < faults.errors {
            Some(Fault::Error(INPUT_OUTPUT_ERROR))
        } else if draw < faults.errors + faults.short {
            Some(Fault::Short(length.max(self.files()[read.file].block_bytes())))
        } else if draw < faults.errors + faults.short + faults.delays {
            Some(Fault::Delay)
        } else {
            None
        }
    }

    /// Sorts what the inner device gave back: into `done`, shortened or not, or held for later.
    fn sort(&mut self, done: &mut Vec<Completion>) {
        for mut completion in self.inbox.drain(..) {
            let ticket = completion.read.ticket;
            let index = self.inner_faults.iter().position(|&(of, _)| of == ticket).expect("it was submitted");
            match self.inner_faults.swap_remove(index).1 {
                Some(Fault::Short(most)) => {
                    completion.result = completion.result.map(|count| count.min(most));
                    let brought = *completion.result.as_ref().unwrap_or(&0);
                    completion.read.target.bytes_mut()[brought..].fill(POISON);
                    done.push(completion);
                }
                Some(Fault::Delay) => self.held.push((4, completion)),
                Some(Fault::Error(_)) | None => done.push(completion),
            }
        }
    }
}

// SAFETY: every read is with the inner device, in `ready` or in `held`, and comes back from there once; targets are
// written only before that. The inner device is dropped with this one and waits for its own.
unsafe impl Device for Faulty {
    fn name(&self) -> &'static str {
        "faulty"
    }

    fn files(&self) -> &Arc<Files> {
        self.inner.files()
    }

    fn capacity(&self) -> usize {
        self.inner.capacity()
    }

    fn limit_depth(&mut self, depth: usize) {
        self.inner.limit_depth(depth);
    }

    fn submit(&mut self, mut read: Read) {
        match self.fault(&read) {
            Some(Fault::Error(number)) => {
                read.target.bytes_mut().fill(POISON);
                self.ready.push(Completion { read, result: Err(io::Error::from_raw_os_error(number)) });
            }
            fault => {
                self.inner_faults.push((read.ticket, fault));
                self.inner.submit(read);
            }
        }
    }

    fn flush(&mut self) {
        self.inner.flush();
    }

    fn complete(&mut self, wait_for: usize, done: &mut Vec<Completion>) -> io::Result<()> {
        let before = done.len();
        let wait_for = wait_for.min(self.ready.len() + self.held.len() + self.inner_faults.len());
        done.append(&mut self.ready);
        for held in &mut self.held {
            held.0 = held.0.saturating_sub(1);
        }
        done.extend(self.held.extract_if(.., |held| held.0 == 0).map(|held| held.1));
        loop {
            let missing = wait_for.saturating_sub(done.len() - before);
            self.inner.complete(missing.min(self.inner_faults.len()), &mut self.inbox)?;
            self.sort(done);
            if done.len() - before >= wait_for {
                return Ok(());
            }
            if self.inner_faults.is_empty() {
                done.extend(self.held.drain(..).map(|held| held.1));
            }
        }
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with faults", self.inner)
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty").field("inner", &self.inner).finish_non_exhaustive()
    }
}
