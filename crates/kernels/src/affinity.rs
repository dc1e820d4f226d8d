//! Binding a thread to one processor (Linux); elsewhere asking for it is an error.

use crate::Error;
use std::marker::PhantomData;

/// Binds the calling thread to `processor`.
#[cfg(target_os = "linux")]
pub(crate) fn bind_current_thread(processor: usize) -> Result<(), Error> {
    use rustix::thread::{CpuSet, sched_setaffinity};
    if processor >= CpuSet::MAX_CPU {
        return Err(Error::Affinity { processor, reason: format!("numbers end at {}", CpuSet::MAX_CPU - 1) });
    }
    let mut set = CpuSet::new();
    set.set(processor);
    sched_setaffinity(None, &set).map_err(|error| Error::Affinity { processor, reason: error.to_string() })
}

/// Whether every one of `processors` can be bound to, found out on a thread of its own.
#[cfg(target_os = "linux")]
pub(crate) fn check(processors: &[usize]) -> Result<(), Error> {
    std::thread::scope(|scope| {
        let probe = scope.spawn(|| processors.iter().try_for_each(|&processor| bind_current_thread(processor)));
        probe.join().expect("binding does not panic")
    })
}

/// The calling thread bound to one processor; when this is dropped, it may run where it could before.
#[derive(Debug)]
#[must_use = "the thread is bound as long as this lives"]
pub struct Binding {
    #[cfg(target_os = "linux")]
    before: rustix::thread::CpuSet,
    /// It must be dropped on the thread that it was made on.
    on_this_thread: PhantomData<*const ()>,
}

#[cfg(target_os = "linux")]
impl Binding {
    /// `None` where the system refuses.
    pub(crate) fn to(processor: usize) -> Option<Binding> {
        let before = rustix::thread::sched_getaffinity(None).ok()?;
        bind_current_thread(processor).ok()?;
        Some(Binding { before, on_this_thread: PhantomData })
    }
}

#[cfg(target_os = "linux")]
impl Drop for Binding {
    fn drop(&mut self) {
        // Should its processors have gone meanwhile, running on the one that it has is still right.
        let _ = rustix::thread::sched_setaffinity(None, &self.before);
    }
}

#[cfg(not(target_os = "linux"))]
impl Binding {
    pub(crate) fn to(_processor: usize) -> Option<Binding> {
        None
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn bind_current_thread(processor: usize) -> Result<(), Error> {
    Err(Error::Affinity { processor, reason: "threads can be bound on Linux only".to_owned() })
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn check(processors: &[usize]) -> Result<(), Error> {
    processors.iter().try_for_each(|&processor| bind_current_thread(processor))
}
