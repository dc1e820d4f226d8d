//! How the parts of a region are handed out and reported done: atomics, and a condition variable for who sleeps.
//!
//! A region has a generation, and each of its parts a state: when it was last taken, and whether it is done. The starter writes the job, then
//! raises the generation (release); a worker that sees a new generation (acquire) sees the job. Whoever takes a part of that generation may
//! run the job, since the region lasts until the part is done; the starter waits for all parts to be done (acquire), so every part happens
//! before its return. Each thread takes its own part first, then what others have not begun: a worker that sleeps, or whose processor does
//! something else, keeps nobody waiting (but for a part that it is in), and finds nothing left to take when it comes. It may miss whole
//! generations.
//!
//! Where another program takes a processor, the system may put two of these threads on one that is left. They could only take turns, each
//! spinning while the other waits to run; so a worker that meets a thread before it on its processor naps instead, for many regions' time.
//!
//! Nobody who goes to sleep is forgotten: the sleeper announces itself and then looks once more, the waker changes the state
//! and then looks for sleepers, with a sequentially consistent fence between in both, so at least one of them sees the other.

use super::sync::{
    AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, Spin, current_processor, fence,
};
use std::ptr;
use std::time::Duration;

/// A value alone on its cache lines (two of them: neighbours are fetched in pairs).
#[derive(Debug)]
#[repr(align(128))]
struct Apart<T>(T);

#[derive(Debug)]
pub(super) struct Handoff {
    spin: Spin,
    /// Raised by the starter; what idle workers look at.
    generation: Apart<AtomicU64>,
    /// The job of this generation; null: stop.
    job: AtomicPtr<()>,
    /// Of each part: [`taken`] or [`done`], of the generation that it last was so in.
    parts: Vec<Apart<AtomicU64>>,
    /// Of each thread, the starter's first: the processor that it was on when it last looked; [`NOWHERE`] while a worker sleeps.
    processors: Vec<AtomicUsize>,
    /// Workers that look whose processor they are on before they take a part: all that have slept, or have just begun.
    away_workers: AtomicUsize,
    /// Those of them that wait to be woken.
    sleeping_workers: AtomicUsize,
    starter_sleeps: AtomicBool,
    sleeping: Mutex<()>,
    started: Condvar,
    finished: Condvar,
    stopped: Condvar,
}

const NOWHERE: usize = usize::MAX;

const NO_PANIC: &str = "nothing panics under this lock";

/// How long a worker stays away that would only take turns with another thread: many regions, and a fraction of what the system gives a
/// busy thread at a time.
const NAP: Duration = Duration::from_millis(1);

/// The state of a part that somebody runs.
fn taken(generation: u64) -> u64 {
    2 * generation
}

/// The state of a part that has been run.
fn done(generation: u64) -> u64 {
    2 * generation + 1
}

impl Handoff {
    /// For regions of `threads` parts, of which `at_once` can run at the same time.
    pub(super) fn new(threads: usize, at_once: usize) -> Handoff {
        Handoff {
            spin: Spin::for_threads(threads, at_once),
            generation: Apart(AtomicU64::new(0)),
            job: AtomicPtr::new(ptr::null_mut()),
            parts: (0..threads).map(|_| Apart(AtomicU64::new(done(0)))).collect(),
            processors: (0..threads).map(|_| AtomicUsize::new(NOWHERE)).collect(),
            away_workers: AtomicUsize::new(threads - 1),
            sleeping_workers: AtomicUsize::new(0),
            starter_sleeps: AtomicBool::new(false),
            sleeping: Mutex::new(()),
            started: Condvar::new(),
            finished: Condvar::new(),
            stopped: Condvar::new(),
        }
    }

    /// Begins a region and returns its generation; [`Handoff::wait_until_done`] must follow before the job goes away. One starter at a time.
    pub(super) fn start(&self, job: *mut ()) -> u64 {
        if self.away_workers.load(Ordering::Relaxed) > 0 {
            self.has_own_processor(0);
        }
        self.job.store(job, Ordering::Relaxed);
        let generation = self.generation.0.fetch_add(1, Ordering::Release) + 1;
        fence(Ordering::SeqCst);
        if self.sleeping_workers.load(Ordering::Relaxed) > 0 {
            // Taking the lock waits for a worker between its last look and its sleep.
            drop(self.lock());
            self.started.notify_all();
        }
        generation
    }

    /// Tells every worker to end.
    pub(super) fn stop(&self) {
        self.start(ptr::null_mut());
        drop(self.lock());
        self.stopped.notify_all();
    }

    /// The wait of worker `index` for a generation after `seen`; `None`: it is to end.
    pub(super) fn next(&self, mut seen: u64, index: usize) -> Option<u64> {
        // Who shares a processor with the starter spins in vain: so it is enough to look whose it is after sleeping.
        let mut is_away = seen == 0;
        loop {
            if !self.spin.until(|| self.is_started_after(seen)) {
                if !std::mem::replace(&mut is_away, true) {
                    self.away_workers.fetch_add(1, Ordering::Relaxed);
                }
                self.sleep(seen, index);
            }
            let generation = self.generation.0.load(Ordering::Acquire);
            if self.job.load(Ordering::Relaxed).is_null() {
                return None;
            }
            if !is_away {
                return Some(generation);
            }
            if self.has_own_processor(index) {
                self.away_workers.fetch_sub(1, Ordering::Relaxed);
                return Some(generation);
            }
            self.nap(index);
            if self.is_done(generation) {
                seen = generation;
            }
        }
    }

    fn is_started_after(&self, seen: u64) -> bool {
        self.generation.0.load(Ordering::Acquire) != seen
    }

    /// Sleeps until a generation after `seen` is there.
    fn sleep(&self, seen: u64, index: usize) {
        self.processors[index].store(NOWHERE, Ordering::Relaxed);
        let mut guard = self.lock();
        self.sleeping_workers.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        while !self.is_started_after(seen) {
            guard = self.started.wait(guard).expect(NO_PANIC);
        }
        self.sleeping_workers.fetch_sub(1, Ordering::Relaxed);
    }

    /// Notes where this thread is; whether none of the threads before it was last seen there.
    fn has_own_processor(&self, index: usize) -> bool {
        let Some(here) = current_processor() else { return true };
        self.processors[index].store(here, Ordering::Relaxed);
        self.processors[..index].iter().all(|other| other.load(Ordering::Relaxed) != here)
    }

    /// Sleeps for a while, whatever is started.
    fn nap(&self, index: usize) {
        self.processors[index].store(NOWHERE, Ordering::Relaxed);
        let guard = self.lock();
        if !self.job.load(Ordering::Relaxed).is_null() {
            drop(self.stopped.wait_timeout(guard, NAP).expect(NO_PANIC));
        }
    }

    /// Takes a part of this generation that nobody has begun, part `own` before others, and returns it with the job, which lives until
    /// [`Handoff::part_done`]. `None`: there is none left.
    pub(super) fn take(&self, generation: u64, own: usize) -> Option<(usize, *mut ())> {
        // A part that was done in the generation before is not begun in this one; of a later generation, nothing looks so.
        let (open, taken) = (done(generation - 1), taken(generation));
        let part = (own..self.parts.len()).chain(0..own).find(|&part| {
            let state = &self.parts[part].0;
            state.load(Ordering::Relaxed) == open
                && state.compare_exchange(open, taken, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        })?;
        Some((part, self.job.load(Ordering::Relaxed)))
    }

    /// Reports that a part is done: whoever took it no longer touches the job.
    pub(super) fn part_done(&self, generation: u64, part: usize) {
        self.parts[part].0.store(done(generation), Ordering::Release);
        fence(Ordering::SeqCst);
        if self.starter_sleeps.load(Ordering::Relaxed) && self.is_done(generation) {
            drop(self.lock());
            self.finished.notify_one();
        }
    }

    /// Returns when every part of the region that this thread started is done.
    pub(super) fn wait_until_done(&self, generation: u64) {
        if self.spin.until(|| self.is_done(generation)) {
            return;
        }
        let mut guard = self.lock();
        self.starter_sleeps.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        while !self.is_done(generation) {
            guard = self.finished.wait(guard).expect(NO_PANIC);
        }
        self.starter_sleeps.store(false, Ordering::Relaxed);
    }

    /// How many workers wait to be woken.
    #[cfg(all(test, not(loom)))]
    pub(super) fn sleeping(&self) -> usize {
        self.sleeping_workers.load(Ordering::Relaxed)
    }

    /// Held by whoever goes to sleep, from the last look on.
    fn lock(&self) -> MutexGuard<'_, ()> {
        self.sleeping.lock().expect(NO_PANIC)
    }

    fn is_done(&self, generation: u64) -> bool {
        self.parts.iter().all(|part| part.0.load(Ordering::Acquire) == done(generation))
    }
}
