//! A disk that is soon full, for one test: the test runs once more in a mount namespace of its own, in which a small file system in memory
//! is mounted. It ends with that run, whatever happens.

use crate::skipped;
use std::path::PathBuf;
use std::process::Command;

/// Where the inner run finds its disk.
const VARIABLE: &str = "MOCE_SMALL_DISK";

/// The folder of a file system of `bytes` bytes, empty. `None` in the outer run, which then returns: it has run the test `name` of this
/// program within. Also `None`, and a line on standard error that begins with `skipped:`, where that needs rights that this user has not.
///
/// # Panics
/// The inner run fails.
pub fn on_a_small_disk(name: &str, bytes: u64) -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os(VARIABLE) {
        return Some(folder.into());
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let inside = |program: &str| {
        let mut command = Command::new("unshare");
        let mount = "mount -t tmpfs -o size=\"$1\" none \"$0\" && shift && exec \"$@\"";
        command.args(["--mount", "sh", "-c", mount]).arg(folder.path()).arg(bytes.to_string()).arg(program);
        command.env(VARIABLE, folder.path());
        command
    };
    if !inside("true").output().is_ok_and(|tried| tried.status.success()) {
        skipped("a small disk cannot be mounted here");
        return None;
    }
    let program = std::env::current_exe().expect("this program");
    let mut command = inside(program.to_str().expect("a path that is text"));
    let output = command.args(["--exact", name, "--nocapture"]).output().expect("unshare has just been run");
    let said = || [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    assert!(output.status.success(), "{name} failed on a small disk:\n{}", said());
    None
}
