//! The worker pool: the same few threads for every parallel region, a short spin and then sleep between regions.
//!
//! This file owns the threads; the protocol by which a region is handed to them and reported done is [`handoff`]. There are no
//! queues: worker `i` does part `i`, so that it finds its rows where it left them; where it does not come in time, most of all on a busy
//! machine, another thread does it instead of waiting.

mod handoff;
mod sync;

use crate::affinity::{self, Binding};
use crate::{Error, topology};
use handoff::Handoff;
use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use sync::{Arc, AtomicBool, JoinHandle, Mutex, Ordering};

/// The part of `0..count` that worker `index` of `parts` does: contiguous, in order, sizes differing by at most one.
pub fn split(count: usize, parts: usize, index: usize) -> Range<usize> {
    debug_assert!(index < parts);
    count * index / parts..count * (index + 1) / parts
}

type Job<'a> = &'a (dyn Fn(usize) + Sync);

/// Worker threads; the caller of [`Pool::run`] is worker 0.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// The processor of worker 0, if the workers are bound.
    first_processor: Option<usize>,
    /// A region is running: whoever calls now does all parts itself.
    busy: AtomicBool,
}

#[derive(Debug)]
struct Shared {
    handoff: Handoff,
    /// The first panic in the current region.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Pool {
    /// Starts `threads - 1` workers (none for 0 or 1).
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn new(threads: usize) -> Result<Pool, Error> {
        Pool::with_affinity(threads, None)
    }

    /// The same with worker `i` bound to processor `processors[i]`. Worker 0 is whoever calls, and bound while it wants to be:
    /// [`Pool::bind_caller`].
    ///
    /// # Errors
    /// The system refuses a thread or a processor, or the list is shorter than `threads`.
    pub fn with_affinity(threads: usize, processors: Option<&[usize]>) -> Result<Pool, Error> {
        let threads = threads.max(1);
        if let Some(processors) = processors {
            if processors.len() < threads {
                return Err(Error::AffinityTooShort { threads, processors: processors.len() });
            }
            affinity::check(&processors[..threads])?;
        }
        let at_once = processors.map_or(usize::MAX, |processors| distinct(&processors[..threads]));
        let at_once = at_once.min(topology::processors());
        let shared = Arc::new(Shared { handoff: Handoff::new(threads, at_once), panic: Mutex::new(None) });
        let first_processor = processors.map(|processors| processors[0]);
        let workers = Vec::with_capacity(threads - 1);
        let mut pool = Pool { shared, workers, first_processor, busy: AtomicBool::new(false) };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let processor = processors.map(|processors| processors[index]);
            let body = move || {
                // `check` has bound a thread to this processor once already; should it have gone since, running anywhere
                // is still right.
                let _ = processor.map(affinity::bind_current_thread);
                shared.work(index);
            };
            // Leaving early drops the pool, which joins the workers started so far.
            pool.workers.push(sync::spawn(index, body).map_err(Error::Thread)?);
        }
        Ok(pool)
    }

    /// Workers, the calling thread included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Binds the calling thread to the processor of worker 0 where the workers are bound, until what is returned is dropped: for the time
    /// of many regions. What it does otherwise, and the threads that it starts then, are not bound.
    pub fn bind_caller(&self) -> Option<Binding> {
        // As with the workers: `check` has bound a thread to this processor once already.
        self.first_processor.and_then(Binding::to)
    }

    /// Runs `job(index)` once for every part in `0..threads()` and returns when all are done. Allocates nothing.
    ///
    /// The parts must not wait for one another, and a thread may do several: while a region is running, a second call, from inside a job or
    /// from another thread, does all of its parts in order on its own thread.
    ///
    /// # Panics
    /// Where parts panic: after all are done, with the payload of the first; in a call that does all on its own thread, at once.
    pub fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() || self.busy.swap(true, Ordering::Acquire) {
            (0..self.threads()).for_each(job);
            return;
        }
        let generation = self.shared.handoff.start((&raw const job).cast_mut().cast());
        self.shared.run_parts(generation, 0);
        self.shared.handoff.wait_until_done(generation);
        let panic = self.shared.panic.lock().expect("nothing panics under this lock").take();
        self.busy.store(false, Ordering::Release);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

/// How many processors a list names.
fn distinct(processors: &[usize]) -> usize {
    (0..processors.len()).filter(|&index| !processors[..index].contains(&processors[index])).count()
}

impl Shared {
    /// A worker's life: region after region until the pool stops.
    fn work(&self, index: usize) {
        let mut seen = 0;
        while let Some(generation) = self.handoff.next(seen, index) {
            self.run_parts(generation, index);
            seen = generation;
        }
    }

    /// Runs part `own` of a region, and those that no other thread has begun by then.
    fn run_parts(&self, generation: u64, own: usize) {
        while let Some((part, job)) = self.handoff.take(generation, own) {
            // SAFETY: `run` made this pointer from its local variable of this very type, and stays in its frame until `part_done` has been
            // called for every part, this one included.
            let job: Job<'_> = unsafe { *job.cast::<Job<'_>>() };
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| job(part))) {
                let mut first = self.panic.lock().expect("nothing panics under this lock");
                match *first {
                    None => *first = Some(payload),
                    // Not dropped: that may panic, too, and nothing may leave here before the part is reported.
                    Some(_) => std::mem::forget(payload),
                }
            }
            self.handoff.part_done(generation, part);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.handoff.stop();
        for worker in self.workers.drain(..) {
            worker.join().expect("a worker catches the panics of its jobs");
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
