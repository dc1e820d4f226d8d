//! Reads by a pool of threads, each in a plain positional read: for systems without io_uring, and those that forbid it.
//! The threads sleep on a condition variable while there is nothing to read.

use super::{Completion, Device, Read};
use crate::{Error, Files};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

/// Reads that the queue holds at most.
const CAPACITY: usize = 256;

/// Most threads of a pool.
pub(crate) const MOST_THREADS: usize = 64;

/// A pool of reading threads.
pub(crate) struct Pread {
    files: Arc<Files>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Why it is this device and not a better one.
    reason: Option<String>,
    depth: usize,
    in_flight: usize,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Something to read, a thread may go on, or the end.
    work: Condvar,
    /// Something was read.
    done: Condvar,
}

#[derive(Default)]
struct Queue {
    reads: VecDeque<Read>,
    done: Vec<Completion>,
    /// How many may read at once, and how many do.
    depth: usize,
    reading: usize,
    /// The waiter sleeps until so many are done: waking it for each would be for nothing.
    wanted: usize,
    is_over: bool,
}

impl Pread {
    /// Starts `threads` threads; `reason` says in words why it is not another device.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub(crate) fn new(files: Arc<Files>, threads: usize, reason: Option<String>) -> Result<Pread, Error> {
        let threads = threads.clamp(1, MOST_THREADS);
        let shared: Arc<Shared> = Arc::default();
        let mut pool =
            Pread { files, shared, threads: Vec::with_capacity(threads), reason, depth: threads, in_flight: 0 };
        {
            let mut queue = pool.shared.lock();
            queue.reads.reserve(CAPACITY);
            queue.done.reserve(CAPACITY);
            queue.depth = threads;
        }
        for index in 0..threads {
            let (shared, files) = (pool.shared.clone(), pool.files.clone());
            let started = std::thread::Builder::new()
                .name(format!("moce-read-{index}"))
                .stack_size(128 << 10)
                .spawn(move || read_until_over(&shared, &files))
                .map_err(|cause| Error::Unavailable { device: "a reading thread", cause })?;
            pool.threads.push(started);
        }
        Ok(pool)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while it holds the lock; and if it did, the queue would still be whole.
        self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn read_until_over(shared: &Shared, files: &Files) {
    let mut queue = shared.lock();
    loop {
        if queue.reading < queue.depth
            && let Some(mut read) = queue.reads.pop_front()
        {
            queue.reading += 1;
            drop(queue);
            let result = files[read.file].read_at(read.via, read.offset, read.target.bytes_mut());
            queue = shared.lock();
            queue.reading -= 1;
            queue.done.push(Completion { read, result });
            if queue.done.len() >= queue.wanted {
                shared.done.notify_one();
            }
        } else if queue.is_over {
            return;
        } else {
            queue = shared.work.wait(queue).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }
}

// SAFETY: a read is in the queue, with the one thread that carries it out, or done; `drop` waits for the threads.
unsafe impl Device for Pread {
    fn name(&self) -> &'static str {
        "pread"
    }

    fn files(&self) -> &Arc<Files> {
        &self.files
    }

    fn capacity(&self) -> usize {
        CAPACITY
    }

    fn limit_depth(&mut self, depth: usize) {
        self.depth = depth.clamp(1, self.threads.len());
        self.shared.lock().depth = self.depth;
        self.shared.work.notify_all();
    }

    fn submit(&mut self, read: Read) {
        self.in_flight += 1;
        self.shared.lock().reads.push_back(read);
        // A thread that finds the limit of `depth` reached sleeps again, but the one that finishes looks for more itself.
        self.shared.work.notify_one();
    }

    fn flush(&mut self) {}

    fn complete(&mut self, wait_for: usize, done: &mut Vec<Completion>) -> io::Result<()> {
        let wait_for = wait_for.min(self.in_flight);
        let mut queue = self.shared.lock();
        queue.wanted = wait_for;
        while queue.done.len() < wait_for {
            queue = self.shared.done.wait(queue).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        self.in_flight -= queue.done.len();
        done.append(&mut queue.done);
        Ok(())
    }
}

impl Drop for Pread {
    fn drop(&mut self) {
        {
            let mut queue = self.shared.lock();
            queue.reads.clear();
            queue.is_over = true;
        }
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl fmt::Display for Pread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pread with {} threads", self.threads.len())?;
        self.reason.as_ref().map_or(Ok(()), |reason| write!(f, " ({reason})"))
    }
}

impl fmt::Debug for Pread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pread").field("depth", &self.depth).field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}
