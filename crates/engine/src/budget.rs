//! How much memory there is: what the system has free, what limits this process, and what it uses already.

use std::fs;
use std::path::{Path, PathBuf};

/// What everything that the process holds has to fit into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Budget {
    /// What the system and its limits leave, less a reserve; experts are streamed if they do not fit.
    #[default]
    Auto,
    /// Whatever it takes to hold every expert.
    All,
    /// So many bytes.
    Bytes(u64),
}

/// Left to the rest of the system in any case.
const LEAST_RESERVE_BYTES: u64 = 256 << 20;
/// Left to the rest of the system, as a share: one in so many.
const RESERVE_SHARE: u64 = 20;

/// What an automatic budget may use: the least of available memory and the limits on this process, less max(5 %, 256 MiB).
pub(crate) fn available_bytes() -> u64 {
    let limits = [system_available(), cgroup_limit(), address_space_limit()];
    let least = limits.into_iter().flatten().min().unwrap_or(u64::MAX);
    least.saturating_sub(LEAST_RESERVE_BYTES.max(least / RESERVE_SHARE))
}

/// Resident memory of this process; 0 where the system does not tell.
pub(crate) fn resident_bytes() -> u64 {
    proc_kib("/proc/self/status", "VmRSS:").unwrap_or(0)
}

/// Memory that can be had without swapping, what this process holds already included.
fn system_available() -> Option<u64> {
    proc_kib("/proc/meminfo", "MemAvailable:").map(|available| available + resident_bytes())
}

/// A `Name:  123 kB` line of a /proc file, in bytes.
fn proc_kib(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The least memory limit of this process' control group and those above it, versions 1 and 2.
fn cgroup_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let limits = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        match controllers {
            "" => least_limit(Path::new("/sys/fs/cgroup"), path, "memory.max"),
            _ if controllers.split(',').any(|controller| controller == "memory") => {
                least_limit(Path::new("/sys/fs/cgroup/memory"), path, "memory.limit_in_bytes")
            }
            _ => None,
        }
    });
    limits.min()
}

/// The least number in `file` in the group's folder and the folders above it, up to `root`. Where the path does not exist below
/// `root` (containers), the root's own counts.
fn least_limit(root: &Path, group: &str, file: &str) -> Option<u64> {
    let group: PathBuf = root.join(group.trim_start_matches('/'));
    let folders = group.ancestors().take_while(|folder| folder.starts_with(root));
    folders.filter_map(|folder| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok()).min()
}

/// The limit on the address space (`ulimit -v`), where there is one.
fn address_space_limit() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/limits").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_on_the_way_up_counts() {
        let root = std::env::temp_dir().join(format!("moce-budget-{}", std::process::id()));
        let inner = root.join("a/b");
        fs::create_dir_all(&inner).unwrap();
        fs::write(root.join("memory.max"), "max\n").unwrap();
        fs::write(root.join("a/memory.max"), "1000\n").unwrap();
        fs::write(inner.join("memory.max"), "2000\n").unwrap();
        assert_eq!(least_limit(&root, "/a/b", "memory.max"), Some(1000));
        assert_eq!(least_limit(&root, "/elsewhere", "memory.max"), None);
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_uses_memory_and_some_is_left() {
        assert!(resident_bytes() > 1 << 20);
        assert!(available_bytes() > 0);
    }
}
