//! How many compute threads are worth starting: one a physical core, since two on one core share its dot units and its memory
//! port.

use std::num::NonZero;

/// Processors that this process may run on (affinity and cgroup quota respected), at least 1.
pub(crate) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// Physical cores that this process may run on (affinity and cgroup quota respected), at least 1.
pub(crate) fn physical_cores() -> usize {
    let processors = processors();
    cores_by_siblings().map_or(processors, |cores| cores.clamp(1, processors))
}

/// Counts the distinct cores behind the processors of this thread's affinity mask; `None` where the system does not say.
#[cfg(target_os = "linux")]
fn cores_by_siblings() -> Option<usize> {
    use rustix::thread::{CpuSet, sched_getaffinity};
    let allowed = sched_getaffinity(None).ok()?;
    let siblings = |processor: usize| {
        let path = format!("/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list");
        std::fs::read_to_string(path).ok()
    };
    // Processors of one core list the same siblings.
    let mut cores = (0..CpuSet::MAX_CPU)
        .filter(|&processor| allowed.is_set(processor))
        .map(siblings)
        .collect::<Option<Vec<String>>>()?;
    cores.sort_unstable();
    cores.dedup();
    Some(cores.len())
}

#[cfg(not(target_os = "linux"))]
fn cores_by_siblings() -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_one_and_all_processors() {
        assert!((1..=processors()).contains(&physical_cores()));
    }
}
