//! Runs commands in a memory control group of their own, so that a budget is not only believed: what takes more is killed.
//!
//! Versions 1 and 2. The group is made below this process' own or, where that cannot be (version 2 forbids groups beside processes),
//! beside it or further up. It is removed at the end.

use crate::skipped;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A memory control group.
pub struct MemoryGroup {
    folder: PathBuf,
    version: &'static Version,
}

/// What the files of a version are called.
struct Version {
    root: &'static str,
    limit: &'static str,
    /// Limits memory and swap together, or swap alone; absent where the system counts no swap.
    swap: &'static str,
    /// What `swap` is set to beside a limit; `None`: the same limit.
    swap_bytes: Option<u64>,
    peak: &'static str,
}

const VERSION_1: Version = Version {
    root: "/sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    swap: "memory.memsw.limit_in_bytes",
    swap_bytes: None,
    peak: "memory.max_usage_in_bytes",
};

const VERSION_2: Version = Version {
    root: "/sys/fs/cgroup",
    limit: "memory.max",
    swap: "memory.swap.max",
    swap_bytes: Some(0),
    peak: "memory.peak",
};

impl MemoryGroup {
    /// A group whose processes together may hold `limit_bytes`. `None`, and a line on standard error that begins with `skipped:`, where the
    /// system has no such groups or does not let this user make one; the caller then returns.
    pub fn new(limit_bytes: u64) -> Option<MemoryGroup> {
        let mut reason = "this process is in no memory control group".to_owned();
        for (version, own) in own_groups() {
            let root = Path::new(version.root);
            let own = root.join(own.trim_start_matches('/'));
            for parent in own.ancestors().take_while(|folder| folder.starts_with(root)) {
                match MemoryGroup::below(parent, version, limit_bytes) {
                    Ok(group) => return Some(group),
                    Err(error) => reason = format!("no memory control group in {}: {error}", parent.display()),
                }
            }
        }
        skipped(&reason);
        None
    }

    fn below(parent: &Path, version: &'static Version, limit_bytes: u64) -> io::Result<MemoryGroup> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = parent.join(format!("moce-test-{}-{number}", std::process::id()));
        fs::create_dir(&folder)?;
        // From here on the folder is removed if anything fails.
        let group = MemoryGroup { folder, version };
        fs::write(group.folder.join(version.limit), limit_bytes.to_string())?;
        let swap = group.folder.join(version.swap);
        if swap.exists() {
            fs::write(swap, version.swap_bytes.unwrap_or(limit_bytes).to_string())?;
        }
        let entered = group.command(OsStr::new("true")).output()?;
        if entered.status.success() {
            Ok(group)
        } else {
            Err(io::Error::other(String::from_utf8_lossy(&entered.stderr).trim().to_owned()))
        }
    }

    /// A command whose process is in the group from its start.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(self.folder.join("cgroup.procs")).arg(program);
        command
    }

    /// The most that the group has held, page cache included; `None` where the system does not tell.
    pub fn peak_bytes(&self) -> Option<u64> {
        fs::read_to_string(self.folder.join(self.version.peak)).ok()?.trim().parse().ok()
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // A group that still has processes stays; there is nothing to do about it here.
        let _ = fs::remove_dir(&self.folder);
    }
}

/// The memory groups of this process: with both versions mounted, memory is counted by one of them.
fn own_groups() -> Vec<(&'static Version, String)> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let parse = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let version = match controllers {
            "" => &VERSION_2,
            _ if controllers.split(',').any(|controller| controller == "memory") => &VERSION_1,
            _ => return None,
        };
        Some((version, path.to_owned()))
    };
    groups.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_more_than_the_limit_does_not_finish() {
        let Some(group) = MemoryGroup::new(32 << 20) else { return };
        // `tail` keeps the last line of its input; this line never ends.
        let take = |bytes: &str| {
            let line = format!("head -c {bytes} /dev/zero | tail -n 1 | head -c 1");
            group.command("sh").args(["-c", &line]).output().expect("sh runs").stdout.len()
        };
        assert_eq!(take("1M"), 1);
        assert_eq!(take("200M"), 0, "200 MiB were held within 32");
        assert!(group.peak_bytes().is_none_or(|bytes| (1 << 20..=32 << 20).contains(&bytes)));
    }
}
