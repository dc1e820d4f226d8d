//! How a region is handed to the workers and reported done: atomics, and a condition variable for who sleeps.
//!
//! A region has a generation. The starter writes the job and the number of parts, then raises the generation (release); a
//! worker that sees a new generation (acquire) sees the job, does its part and counts down; the starter waits for zero
//! (acquire), so every part happens before its return. The starter never starts a region before the last one is done, so a
//! worker can't miss a generation.
//!
//! Nobody who goes to sleep is forgotten: the sleeper announces itself and then looks once more, the waker changes the state
//! and then looks for sleepers, with a sequentially consistent fence between in both, so at least one of them sees the other.

use super::sync::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Condvar, Mutex, Ordering, Spin, fence};
use std::ptr;

/// A value alone on its cache lines (two of them: neighbours are fetched in pairs).
#[derive(Debug)]
#[repr(align(128))]
struct Apart<T>(T);

#[derive(Debug)]
pub(super) struct Handoff {
    workers: usize,
    spin: Spin,
    /// Raised by the starter; what idle workers look at.
    generation: Apart<AtomicU32>,
    /// The job of this generation; null: stop.
    job: AtomicPtr<()>,
    /// Workers that have not finished this generation; what the waiting starter looks at.
    working: Apart<AtomicUsize>,
    sleeping_workers: AtomicUsize,
    starter_sleeps: AtomicBool,
    sleep: Mutex<()>,
    started: Condvar,
    done: Condvar,
}

impl Handoff {
    /// For `threads - 1` workers and a starter, of which `at_once` can run at the same time.
    pub(super) fn new(threads: usize, at_once: usize) -> Handoff {
        Handoff {
            workers: threads - 1,
            spin: Spin::for_threads(threads, at_once),
            generation: Apart(AtomicU32::new(0)),
            job: AtomicPtr::new(ptr::null_mut()),
            working: Apart(AtomicUsize::new(0)),
            sleeping_workers: AtomicUsize::new(0),
            starter_sleeps: AtomicBool::new(false),
            sleep: Mutex::new(()),
            started: Condvar::new(),
            done: Condvar::new(),
        }
    }

    /// Gives every worker its part; [`Handoff::wait_until_done`] must follow before the job goes away. One starter at a time.
    pub(super) fn start(&self, job: *mut ()) {
        self.job.store(job, Ordering::Relaxed);
        self.working.0.store(self.workers, Ordering::Relaxed);
        self.generation.0.fetch_add(1, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.sleeping_workers.load(Ordering::Relaxed) > 0 {
            // Taking the lock waits for a worker between its last look and its sleep.
            drop(self.sleep.lock().expect("nothing panics under this lock"));
            self.started.notify_all();
        }
    }

    /// Tells every worker to end.
    pub(super) fn stop(&self) {
        self.start(ptr::null_mut());
    }

    /// Returns when every worker has done its part of the region that this thread started.
    pub(super) fn wait_until_done(&self) {
        let is_done = || self.working.0.load(Ordering::Acquire) == 0;
        if self.spin.until(is_done) {
            return;
        }
        let mut guard = self.sleep.lock().expect("nothing panics under this lock");
        self.starter_sleeps.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        while !is_done() {
            guard = self.done.wait(guard).expect("nothing panics under this lock");
        }
        self.starter_sleeps.store(false, Ordering::Relaxed);
    }

    /// A worker's wait for the generation after `seen`; returns its job.
    pub(super) fn next(&self, seen: &mut u32) -> *mut () {
        let is_started = || self.generation.0.load(Ordering::Acquire) != *seen;
        if !self.spin.until(is_started) {
            let mut guard = self.sleep.lock().expect("nothing panics under this lock");
            self.sleeping_workers.fetch_add(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            while !is_started() {
                guard = self.started.wait(guard).expect("nothing panics under this lock");
            }
            self.sleeping_workers.fetch_sub(1, Ordering::Relaxed);
        }
        *seen = seen.wrapping_add(1);
        self.job.load(Ordering::Relaxed)
    }

    /// A worker's report that its part is done: it no longer touches the job.
    pub(super) fn part_done(&self) {
        if self.working.0.fetch_sub(1, Ordering::AcqRel) == 1 {
            fence(Ordering::SeqCst);
            if self.starter_sleeps.load(Ordering::Relaxed) {
                drop(self.sleep.lock().expect("nothing panics under this lock"));
                self.done.notify_one();
            }
        }
    }
}
