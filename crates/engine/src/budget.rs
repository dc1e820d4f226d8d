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

/// What an automatic budget may use: the least of available memory and what the limits on this process leave, less max(5 %, 256 MiB).
pub(crate) fn available_bytes() -> u64 {
    let limits = [system_available(), group_available(), address_space_limit()];
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
    number_after(Path::new(path), name)?.checked_mul(1024)
}

/// The number behind `name` in the file's line that begins with it.
fn number_after(file: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Where a version of control groups says what.
struct GroupFiles {
    root: &'static str,
    limit: &'static str,
    usage: &'static str,
    /// The lines of `memory.stat` that count pages of files, which the system gives up when memory is short.
    reclaimable: [&'static str; 2],
}

const VERSION_1: GroupFiles = GroupFiles {
    root: "/sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: ["total_inactive_file ", "total_active_file "],
};

const VERSION_2: GroupFiles = GroupFiles {
    root: "/sys/fs/cgroup",
    limit: "memory.max",
    usage: "memory.current",
    reclaimable: ["inactive_file ", "active_file "],
};

/// The least that the memory limits of this process' control group and those above it leave to it, versions 1 and 2.
fn group_available() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let left = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let files = match controllers {
            "" => &VERSION_2,
            _ if controllers.split(',').any(|controller| controller == "memory") => &VERSION_1,
            _ => return None,
        };
        least_left(Path::new(files.root), path, files, resident_bytes())
    });
    left.min()
}

/// What is left to a process that holds `own` bytes, what it holds included: the least limit in the group's folder and the folders above
/// it, up to `root`, each less what others hold there. Where the path does not exist below `root` (containers), the root's own counts.
fn least_left(root: &Path, group: &str, files: &GroupFiles, own: u64) -> Option<u64> {
    let group: PathBuf = root.join(group.trim_start_matches('/'));
    let folders = group.ancestors().take_while(|folder| folder.starts_with(root));
    let left = folders.filter_map(|folder| {
        let number = |file: &str| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
        let limit = number(files.limit)?;
        let stat = folder.join("memory.stat");
        let reclaimable = files.reclaimable.iter().filter_map(|name| number_after(&stat, name)).sum();
        let others = number(files.usage).unwrap_or(0).saturating_sub(reclaimable).saturating_sub(own);
        Some(limit.saturating_sub(others))
    });
    left.min()
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

    /// Control groups in a folder that goes with the test: files by path, and their contents.
    fn groups(name: &str, files: &[(&str, &str)], test: impl FnOnce(&Path)) {
        let root = std::env::temp_dir().join(format!("moce-budget-{name}-{}", std::process::id()));
        for (path, content) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        test(&root);
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn the_least_limit_on_the_way_up_counts() {
        let files = [("memory.max", "max\n"), ("a/memory.max", "1000\n"), ("a/b/memory.max", "2000\n")];
        groups("limits", &files, |root| {
            assert_eq!(least_left(root, "/a/b", &VERSION_2, 0), Some(1000));
            assert_eq!(least_left(root, "/elsewhere", &VERSION_2, 0), None);
        });
    }

    #[test]
    fn what_others_hold_in_a_group_is_not_left() {
        let stat = "anon 700\ninactive_anon 3\ninactive_file 30\nactive_file 20\n";
        let files = [
            ("a/memory.max", "1000"),
            ("a/memory.current", "800"),
            ("a/memory.stat", stat),
            ("a/b/memory.max", "900"),
            ("a/b/memory.current", "200"),
        ];
        groups("version-2", &files, |root| {
            // 800 less 50 that can be reclaimed, less what the process holds itself.
            assert_eq!(least_left(root, "/a/b", &VERSION_2, 150), Some(1000 - 600));
            assert_eq!(least_left(root, "/a/b", &VERSION_2, 0), Some(1000 - 750));
            // With what it holds in both, others hold 50 in the upper group and nothing in its own.
            assert_eq!(least_left(root, "/a/b", &VERSION_2, 700), Some(900));
        });
        let files = [
            ("memory.limit_in_bytes", "1000"),
            ("memory.usage_in_bytes", "800"),
            ("memory.stat", "inactive_file 1\ntotal_inactive_file 60\ntotal_active_file 40\n"),
        ];
        groups("version-1", &files, |root| assert_eq!(least_left(root, "/", &VERSION_1, 200), Some(500)));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_uses_memory_and_some_is_left() {
        assert!(resident_bytes() > 1 << 20);
        assert!(available_bytes() > 0);
    }
}
