//! What the pool needs of threads and memory order, from `std` or, under `--cfg loom`, from the model checker.

#[cfg(loom)]
mod source {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
    pub(crate) use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
    pub(crate) use loom::thread::JoinHandle;

    pub(crate) fn spawn(_index: usize, body: impl FnOnce() + 'static) -> std::io::Result<JoinHandle<()>> {
        Ok(loom::thread::spawn(body))
    }

    pub(crate) fn current_processor() -> Option<usize> {
        None
    }

    /// One look, then sleep: more would only multiply the same interleavings.
    #[derive(Debug)]
    pub(crate) struct Spin;

    impl Spin {
        pub(crate) fn for_threads(_threads: usize, _at_once: usize) -> Spin {
            Spin
        }

        pub(crate) fn until(&self, is_over: impl Fn() -> bool) -> bool {
            is_over()
        }
    }
}

#[cfg(not(loom))]
mod source {
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
    pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard};
    pub(crate) use std::thread::JoinHandle;
    use std::time::{Duration, Instant};

    pub(crate) fn spawn(index: usize, body: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name(format!("moce-compute-{index}")).spawn(body)
    }

    /// The processor that the calling thread is on, where the system says.
    pub(crate) fn current_processor() -> Option<usize> {
        #[cfg(target_os = "linux")]
        return Some(rustix::thread::sched_getcpu());
        #[cfg(not(target_os = "linux"))]
        None
    }

    /// A bounded busy wait. Between two products of a layer there are a few microseconds of serial work, and waking a
    /// sleeping thread costs about fifty: so waiting is right that long, and beyond it another process has better use.
    #[derive(Debug)]
    pub(crate) struct Spin(Duration);

    impl Spin {
        /// No spinning where the threads can't all run at once: it would keep the awaited one from its processor.
        pub(crate) fn for_threads(threads: usize, at_once: usize) -> Spin {
            Spin(Duration::from_micros(if threads <= at_once { 50 } else { 0 }))
        }

        /// Whether `is_over` came true in time.
        pub(crate) fn until(&self, is_over: impl Fn() -> bool) -> bool {
            if is_over() {
                return true;
            }
            if self.0.is_zero() {
                return false;
            }
            let begin = Instant::now();
            loop {
                // 16 pauses are 0.2 to 1 µs: seldom enough that reading the clock does not delay the answer.
                for _ in 0..16 {
                    if is_over() {
                        return true;
                    }
                    std::hint::spin_loop();
                }
                if begin.elapsed() >= self.0 {
                    return false;
                }
            }
        }
    }
}

pub(super) use source::*;
