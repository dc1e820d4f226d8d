//! Reads by io_uring: one queue shared with the kernel, no threads. Files and, where the limits allow, the arena are
//! registered, which saves looking them up and pinning their pages at every read.

use super::{Completion, Device, Read};
use crate::{Arena, Error, Files, Via};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;

/// Reads that the ring holds at most: the queue of a block device holds as many.
const ENTRIES: u32 = 256;

/// As many where the user's limit of locked memory, which the ring counts against, is too small for that.
const FEW_ENTRIES: u32 = 64;

/// The kernel takes registered buffers of at most 1 GiB.
const LARGEST_BUFFER: usize = 1 << 30;

/// An io_uring instance.
pub(crate) struct Uring {
    ring: IoUring<squeue::Entry, cqueue::Entry>,
    files: Arc<Files>,
    /// What the kernel may still write to outlives the ring.
    arena: Arc<Arena>,
    /// Parts of the arena that are registered, ascending; none where the system refused.
    buffers: Vec<(NonNull<u8>, usize)>,
    has_registered_files: bool,
    /// By user data: the reads that the kernel has.
    reads: Vec<Option<Read>>,
    vacant: Vec<u32>,
    depth: usize,
    in_flight: usize,
}

// SAFETY: the pointers in `buffers` are only compared, never followed.
unsafe impl Send for Uring {}

impl Uring {
    /// Sets up a ring for reads of `files` into `arena`.
    ///
    /// # Errors
    /// The system does not allow io_uring, or a file is in memory.
    pub(crate) fn new(files: Arc<Files>, arena: Arc<Arena>) -> Result<Uring, Error> {
        let unavailable = |cause| Error::Unavailable { device: "io_uring", cause };
        if files.iter().any(|file| file.descriptor(Via::Any).is_none()) {
            return Err(unavailable(io::Error::other("a file is in memory")));
        }
        let ring = new_ring(ENTRIES)
            .or_else(|error| match error.kind() {
                io::ErrorKind::OutOfMemory => new_ring(FEW_ENTRIES),
                _ => Err(error),
            })
            .map_err(unavailable)?;
        let entries = ring.params().sq_entries();
        check_reads(&ring).map_err(unavailable)?;
        let descriptors: Vec<_> = files
            .iter()
            .flat_map(|file| {
                [Via::Blocks, Via::Any].map(|via| file.descriptor(via).map_or(-1, |file| file.as_raw_fd()))
            })
            .collect();
        let has_registered_files = ring.submitter().register_files(&descriptors).is_ok();
        let mut buffers = arena.parts(LARGEST_BUFFER);
        let vectors: Vec<libc::iovec> = buffers
            .iter()
            .map(|&(start, bytes)| libc::iovec { iov_base: start.as_ptr().cast(), iov_len: bytes })
            .collect();
        // SAFETY: the vectors describe the arena's memory, which is mapped for as long as `arena` lives, longer than the ring.
        if unsafe { ring.submitter().register_buffers(&vectors) }.is_err() {
            buffers.clear();
        }
        Ok(Uring {
            ring,
            files,
            arena,
            buffers,
            has_registered_files,
            reads: (0..entries).map(|_| None).collect(),
            vacant: (0..entries).collect(),
            depth: entries as usize,
            in_flight: 0,
        })
    }

    fn entry(&self, read: &Read) -> squeue::Entry {
        let start = read.target.start();
        let bytes = read.target.len() as u32;
        // Parts of the arena end where slots do, so the target lies in the last part that starts before it.
        let registered = self.buffers.partition_point(|&(buffer, _)| buffer <= start).checked_sub(1);
        let via = usize::from(read.via == Via::Any);
        let fixed = types::Fixed((2 * read.file + via) as u32);
        let plain = types::Fd(self.files[read.file].descriptor(read.via).expect("on disk, as `new` saw").as_raw_fd());
        match (registered, self.has_registered_files) {
            (Some(index), true) => {
                opcode::ReadFixed::new(fixed, start.as_ptr(), bytes, index as u16).offset(read.offset).build()
            }
            (Some(index), false) => {
                opcode::ReadFixed::new(plain, start.as_ptr(), bytes, index as u16).offset(read.offset).build()
            }
            (None, true) => opcode::Read::new(fixed, start.as_ptr(), bytes).offset(read.offset).build(),
            (None, false) => opcode::Read::new(plain, start.as_ptr(), bytes).offset(read.offset).build(),
        }
    }

    /// Moves what the kernel has finished to `done`; returns how many.
    fn reap(&mut self, done: &mut Vec<Completion>) -> usize {
        let mut count = 0;
        for entry in self.ring.completion() {
            let index = entry.user_data() as u32;
            let read = self.reads[index as usize].take().expect("the kernel completes what it was given, once");
            self.vacant.push(index);
            let result = entry.result();
            let result = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
            done.push(Completion { read, result });
            count += 1;
        }
        self.in_flight -= count;
        count
    }
}

/// Completions are looked at when we enter the kernel anyway; interrupting a computing thread for each gains nothing. Linux
/// before 5.19 does not know the flags.
fn new_ring(entries: u32) -> io::Result<IoUring> {
    let flagged = IoUring::builder().setup_coop_taskrun().setup_taskrun_flag().build(entries);
    flagged.or_else(|error| match error.kind() {
        io::ErrorKind::InvalidInput => IoUring::new(entries),
        _ => Err(error),
    })
}

/// An old kernel may have io_uring without plain reads (before 5.6).
fn check_reads(ring: &IoUring) -> io::Result<()> {
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    if probe.is_supported(opcode::Read::CODE) && probe.is_supported(opcode::ReadFixed::CODE) {
        Ok(())
    } else {
        Err(io::Error::other("this kernel's io_uring cannot read"))
    }
}

// SAFETY: a read stays in `reads` until the kernel's completion of it has been seen, and `drop` waits for all of them.
unsafe impl Device for Uring {
    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn files(&self) -> &Arc<Files> {
        &self.files
    }

    fn capacity(&self) -> usize {
        self.depth
    }

    fn limit_depth(&mut self, depth: usize) {
        self.depth = depth.clamp(1, self.reads.len());
    }

    fn submit(&mut self, read: Read) {
        let index = self.vacant.pop().expect("at most `capacity` reads are submitted");
        let entry = self.entry(&read).user_data(u64::from(index));
        self.reads[index as usize] = Some(read);
        self.in_flight += 1;
        // SAFETY: the target stays valid and ours until the completion is reaped, since `reads` owns it and `arena` its memory;
        // the descriptors live in `files`.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("the queue has an entry for each of `reads`");
    }

    fn flush(&mut self) {
        if !self.ring.submission().is_empty() {
            // What the kernel refuses now (no memory for requests, a signal) stays in the queue for the next call.
            let _ = self.ring.submit();
        }
    }

    fn complete(&mut self, wait_for: usize, done: &mut Vec<Completion>) -> io::Result<()> {
        let mut missing = wait_for.min(self.in_flight).saturating_sub(self.reap(done));
        let mut refusals = 0;
        loop {
            missing = missing.min(self.in_flight);
            let has_work = {
                let queue = self.ring.submission();
                !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
            };
            if missing == 0 && !has_work {
                return Ok(());
            }
            match self.ring.submit_and_wait(missing) {
                Ok(_) => refusals = 0,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The kernel is short of memory, or wants its completions looked at first.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) && refusals < 1000 => {
                    refusals += 1;
                    if missing > 0 {
                        std::thread::sleep(std::time::Duration::from_millis(1));
                    }
                }
                Err(error) => return Err(error),
            }
            missing = missing.saturating_sub(self.reap(done));
            if missing == 0 {
                return Ok(());
            }
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        let mut done = Vec::new();
        while self.in_flight > 0 {
            if self.complete(self.in_flight, &mut done).is_err() {
                // The kernel may write for longer than we can watch: the memory must stay.
                std::mem::forget(self.arena.clone());
                return;
            }
            done.clear();
        }
    }
}

impl fmt::Display for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("io_uring")?;
        if !self.buffers.is_empty() { f.write_str(" with registered buffers") } else { Ok(()) }
    }
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring").field("depth", &self.depth).field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}
