//! What carries out reads: the device trait. A device knows no experts, slices, priorities or retries; the fetcher does.
//! It takes reads, works on several at once, and gives each back once, with what the system said about it.

pub(crate) mod faulty;
pub(crate) mod pread;
pub(crate) mod simulated;
#[cfg(target_os = "linux")]
pub(crate) mod uring;

use crate::arena::Target;
use crate::{Files, Via};
use std::fmt;
use std::io;
use std::sync::Arc;

/// A read on its way to a device.
#[derive(Debug)]
pub(crate) struct Read {
    /// Names the read in its completion.
    pub(crate) ticket: u32,
    /// Which of the files.
    pub(crate) file: usize,
    /// How the file is read.
    pub(crate) via: Via,
    /// First byte; with [`Via::Blocks`] a multiple of the file's block, as are the target's length and address.
    pub(crate) offset: u64,
    /// Where the bytes go.
    pub(crate) target: Target,
}

/// A read that has come back.
#[derive(Debug)]
pub(crate) struct Completion {
    /// The read.
    pub(crate) read: Read,
    /// Bytes that were read, fewer than wanted at the end of the file or whenever the system likes; or its error.
    pub(crate) result: io::Result<usize>,
}

/// Carries out reads.
///
/// # Safety
/// From [`Device::submit`] on a device owns the read and its target; it gives each read back exactly once, in a
/// [`Completion`], and after that nothing writes into the target any more. Dropping a device waits until nothing writes
/// into any target of a read that it still has.
pub(crate) unsafe trait Device: Send + fmt::Debug + fmt::Display {
    /// A short name for messages.
    fn name(&self) -> &'static str;

    /// The files it reads.
    fn files(&self) -> &Arc<Files>;

    /// How many reads it takes at once, those it works on and those it queues.
    fn capacity(&self) -> usize;

    /// Sets how many reads it works on at once, as far as it can.
    fn limit_depth(&mut self, depth: usize);

    /// Takes a read; it may start at the next [`Device::flush`]. At most [`Device::capacity`] at a time.
    fn submit(&mut self, read: Read);

    /// Starts everything submitted.
    fn flush(&mut self);

    /// Appends finished reads to `done`. Sleeps until at least `wait_for` have come back, or all that there are; with 0 it
    /// does not sleep.
    ///
    /// # Errors
    /// The device as a whole does not work any more.
    fn complete(&mut self, wait_for: usize, done: &mut Vec<Completion>) -> io::Result<()>;
}
