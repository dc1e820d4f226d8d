//! How the parts of a region are handed out and reported done: atomics, and a condition variable for who sleeps.
//!
//! A region has a generation, and each of its parts a state: when it was last taken, and whether it is done. The starter writes the job, then
//! raises the generation (release); a worker that sees a new generation (acquire) sees the job. Whoever takes a part of that generation may
//! run the job, since the region lasts until the part is done; the starter waits for all parts to be done (acquire), so every part happens
//! before its return. Each thread takes its own part first, then what others have not begun: a worker that sleeps, or whose processor does
//! something else, keeps nobody waiting, and finds nothing left to take when it comes. It may miss whole generations.
//!
//! Where another program takes a processor, the system may put two of these threads on one that is left. They could only take turns, each
//! spinning while the other waits to run; so a worker that meets a thread before it on its processor naps instead, for many regions' time.
//!
//! Nobody who goes to sleep is forgotten: the sleeper announces itself and then looks once more, the waker changes the state
//! and then looks for sleepers, with a sequentially consistent fence between in both, so at least one of them sees the other.

use super::sync::{
    AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Condvar, Mutex, Ordering, Spin, current_processor, fence,
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
    /// One a thread, the starter's first.
    seats: Vec<Apart<Seat>>,
    sleeping_workers: AtomicUsize,
    starter_sleeps: AtomicBool,
    sleep: Mutex<()>,
    started: Condvar,
    finished: Condvar,
    stopped: Condvar,
}

/// A thread, and the part that it takes first.
#[derive(Debug)]
struct Seat {
    /// Of the part: [`taken`] or [`done`], of the generation that it last was so in.
    part: AtomicU64,
    /// The processor that the thread was on when it last began a region; [`NOWHERE`] while it sleeps.
    processor: AtomicUsize,
}

const NOWHERE: usize = usize::MAX;

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
            seats: (0..threads)
                .map(|_| Apart(Seat { part: AtomicU64::new(done(0)), processor: AtomicUsize::new(NOWHERE) }))
                .collect(),
            sleeping_workers: AtomicUsize::new(0),
            starter_sleeps: AtomicBool::new(false),
            sleep: Mutex::new(()),
            started: Condvar::new(),
            finished: Condvar::new(),
            stopped: Condvar::new(),
        }
    }

    /// Begins a region and returns its generation; [`Handoff::wait_until_done`] must follow before the job goes away. One starter at a time.
    pub(super) fn start(&self, job: *mut ()) -> u64 {
        self.sits_alone(0);
        self.job.store(job, Ordering::Relaxed);
        let generation = self.generation.0.fetch_add(1, Ordering::Release) + 1;
        fence(Ordering::SeqCst);
        if self.sleeping_workers.load(Ordering::Relaxed) > 0 {
            // Taking the lock waits for a worker between its last look and its sleep.
            drop(self.sleep.lock().expect("nothing panics under this lock"));
            self.started.notify_all();
        }
        generation
    }

    /// Tells every worker to end.
    pub(super) fn stop(&self) {
        self.start(ptr::null_mut());
        drop(self.sleep.lock().expect("nothing panics under this lock"));
        self.stopped.notify_all();
    }

    /// The wait of worker `index` for a generation after `seen`; `None`: it is to end.
    pub(super) fn next(&self, seen: u64, index: usize) -> Option<u64> {
        loop {
            self.wait_for_start(seen, index);
            let generation = self.generation.0.load(Ordering::Acquire);
            if self.job.load(Ordering::Relaxed).is_null() {
                return None;
            }
            if self.sits_alone(index) {
                return Some(generation);
            }
            self.nap(index);
        }
    }

    fn wait_for_start(&self, seen: u64, index: usize) {
        let is_started = || self.generation.0.load(Ordering::Acquire) != seen;
        if self.spin.until(is_started) {
            return;
        }
        self.seats[index].0.processor.store(NOWHERE, Ordering::Relaxed);
        let mut guard = self.sleep.lock().expect("nothing panics under this lock");
        self.sleeping_workers.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        while !is_started() {
            guard = self.started.wait(guard).expect("nothing panics under this lock");
        }
        self.sleeping_workers.fetch_sub(1, Ordering::Relaxed);
    }

    /// Notes where this thread is; whether it has the processor for itself, as far as the threads before it are concerned.
    fn sits_alone(&self, index: usize) -> bool {
        let Some(here) = current_processor() else { return true };
        self.seats[index].0.processor.store(here, Ordering::Relaxed);
        self.seats[..index].iter().all(|other| other.0.processor.load(Ordering::Relaxed) != here)
    }

    /// Sleeps for a while, whatever is started.
    fn nap(&self, index: usize) {
        self.seats[index].0.processor.store(NOWHERE, Ordering::Relaxed);
        let guard = self.sleep.lock().expect("nothing panics under this lock");
        if !self.job.load(Ordering::Relaxed).is_null() {
            drop(self.stopped.wait_timeout(guard, NAP).expect("nothing panics under this lock"));
        }
    }

    /// Takes a part of this generation that nobody has begun, part `own` before others, and returns it with the job, which lives until
    /// [`Handoff::part_done`]. `None`: there is none left.
    pub(super) fn take(&self, generation: u64, own: usize) -> Option<(usize, *mut ())> {
        // A part that was done in the generation before is not begun in this one; of a later generation, nothing looks so.
        let (open, taken) = (done(generation - 1), taken(generation));
        let part = (own..self.seats.len()).chain(0..own).find(|&part| {
            let state = &self.seats[part].0.part;
            state.load(Ordering::Relaxed) == open
                && state.compare_exchange(open, taken, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        })?;
        Some((part, self.job.load(Ordering::Relaxed)))
    }

    /// Reports that a part is done: whoever took it no longer touches the job.
    pub(super) fn part_done(&self, generation: u64, part: usize) {
        self.seats[part].0.part.store(done(generation), Ordering::Release);
        fence(Ordering::SeqCst);
        if self.starter_sleeps.load(Ordering::Relaxed) && self.is_done(generation) {
            drop(self.sleep.lock().expect("nothing panics under this lock"));
            self.finished.notify_one();
        }
    }

    /// Returns when every part of the region that this thread started is done.
    pub(super) fn wait_until_done(&self, generation: u64) {
        if self.spin.until(|| self.is_done(generation)) {
            return;
        }
        let mut guard = self.sleep.lock().expect("nothing panics under this lock");
        self.starter_sleeps.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        while !self.is_done(generation) {
            guard = self.finished.wait(guard).expect("nothing panics under this lock");
        }
        self.starter_sleeps.store(false, Ordering::Relaxed);
    }

    fn is_done(&self, generation: u64) -> bool {
        self.seats.iter().all(|seat| seat.0.part.load(Ordering::Acquire) == done(generation))
    }
}
