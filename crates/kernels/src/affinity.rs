//! Binding a thread to one processor (Linux); elsewhere asking for it is an error.

use crate::Error;

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

#[cfg(not(target_os = "linux"))]
pub(crate) fn bind_current_thread(processor: usize) -> Result<(), Error> {
    Err(Error::Affinity { processor, reason: "threads can be bound on Linux only".to_owned() })
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn check(processors: &[usize]) -> Result<(), Error> {
    processors.iter().try_for_each(|&processor| bind_current_thread(processor))
}
