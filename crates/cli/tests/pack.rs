//! `moce pack` and `moce verify` as users and scripts see them, on the demo model.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers

use moce_testkit::demo_model;
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moce"));
    command.env_remove("MOCE_MODEL").env_remove("MOCE_HOME").env_remove("MOCE_ISA");
    command
}

fn moce(arguments: &[&str]) -> Output {
    command().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
fn stdout(arguments: &[&str]) -> String {
    let output = moce(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_packed_demo_model_runs_inspects_and_verifies() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (demo_model(), folder.path().join("packed.gguf"));
    let (input, output) = (input.to_str().unwrap(), output.to_str().unwrap());
    let said: serde_json::Value = serde_json::from_str(&stdout(&["pack", input, "-o", output, "--json"])).unwrap();
    assert_eq!(said["file_bytes"], std::fs::metadata(output).unwrap().len());

    let run = |model, more: &[&str]| {
        let greedy = ["run", model, "-q", "--temp", "0", "-n", "12", "-p", "The capital of France is"];
        stdout(&[&greedy[..], more].concat())
    };
    let expected = run(input, &[]);
    for more in [&[][..], &["--capacity", "4"], &["--capacity", "4", "--verify-fetches"]] {
        assert_eq!(run(output, more), expected, "{more:?}");
    }
    let inspect = |model| serde_json::from_str::<serde_json::Value>(&stdout(&["inspect", model, "--json"])).unwrap();
    let (plain, packed) = (inspect(input), inspect(output));
    for key in ["architecture", "identity", "parameters", "experts", "dense_bytes", "layers", "vocabulary"] {
        assert_eq!(plain[key], packed[key], "{key}");
    }
    assert_eq!(packed["packed_for"], said["isa"]);
    let whole: serde_json::Value = serde_json::from_str(&stdout(&["verify", output, "--json"])).unwrap();
    assert_eq!((&whole["whole"], &whole["bytes"]), (&true.into(), &said["file_bytes"]));
    assert!(stdout(&["verify", output]).contains("whole"));
    let plain = stdout(&["verify", input]);
    assert!(plain.contains("no damage seen") && plain.contains("without checksums"), "{plain}");

    // An existing file is kept, unless replacing it is asked for.
    let kept = moce(&["pack", input, "-o", output]);
    assert_eq!(kept.status.code(), Some(1));
    assert!(text(&kept.stderr).contains("--force"), "{}", text(&kept.stderr));
    let again = moce(&["pack", output, "-o", &format!("{output}.again")]);
    assert!(text(&again.stderr).contains("packed already"), "{}", text(&again.stderr));

    // One byte in the middle: the first damage is named, with status 1.
    let mut bytes = std::fs::read(output).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(output, bytes).unwrap();
    let damaged = moce(&["verify", output, "--json"]);
    assert_eq!(damaged.status.code(), Some(1));
    let found: serde_json::Value = serde_json::from_str(&text(&damaged.stdout)).unwrap();
    assert_eq!((&found["whole"], &found["damaged"]), (&false.into(), &1.into()));
    let offset = found["damage"][0]["offset"].as_u64().unwrap();
    assert!(text(&damaged.stderr).contains(&format!("packed.gguf is damaged at byte {offset}")));
    assert_eq!(names(folder.path()), ["packed.gguf"]);
}

fn packing(output: &Path) -> Child {
    command().arg("pack").arg(demo_model()).arg("-o").arg(output).stderr(Stdio::null()).spawn().unwrap()
}

/// Starts packing, and kills it after a while.
fn killed(output: &Path, after: Duration) {
    let mut packing = packing(output);
    std::thread::sleep(after);
    // It may have ended by itself.
    let _ = packing.kill();
    packing.wait().unwrap();
}

/// Starts packing into an empty folder, and sends a signal as soon as there is something of the file; returns the exit status.
fn interrupted(output: &Path, signal: Signal) -> Option<i32> {
    let mut packing = packing(output);
    while !output.with_file_name(".packed.gguf.unfinished").exists() {
        if let Some(status) = packing.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    kill_process(Pid::from_child(&packing), signal).unwrap();
    packing.wait().unwrap().code()
}

#[test]
fn killed_at_any_moment_no_half_file_has_the_final_name_and_the_next_run_works() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("packed.gguf");
    let mut cut = 0;
    for milliseconds in [1, 10, 30, 60, 120] {
        killed(&output, Duration::from_millis(milliseconds));
        if output.exists() {
            // It was faster: then it is whole.
            stdout(&["verify", output.to_str().unwrap()]);
            std::fs::remove_file(&output).unwrap();
        } else {
            cut += 1;
        }
    }
    assert!(cut > 0, "no run was killed in the middle");
    stdout(&["pack", demo_model().to_str().unwrap(), "-o", output.to_str().unwrap()]);
    stdout(&["verify", output.to_str().unwrap()]);
    assert_eq!(names(folder.path()), ["packed.gguf"], "what a killed run left is gone");
}

#[test]
fn interrupted_packing_ends_with_130_and_leaves_nothing() {
    for signal in [Signal::INT, Signal::TERM] {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("packed.gguf");
        // On a busy machine a signal may come through only when all has been written.
        let stopped = (0..10).any(|_| {
            let status = interrupted(&output, signal);
            let is_whole = output.exists();
            if is_whole {
                std::fs::remove_file(&output).unwrap();
            } else {
                assert_eq!(status, Some(130), "{signal:?}");
            }
            assert_eq!(names(folder.path()), [""; 0], "{signal:?} leaves nothing");
            !is_whole
        });
        assert!(stopped, "{signal:?} stopped none of 10 runs");
    }
}

/// A file system of its own, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: &str) -> Option<SmallDisk> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "moce-test"]).arg(folder.path());
        let mounted = mount.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        mounted.then(|| SmallDisk(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_disk_without_room_is_seen_before_and_a_disk_that_fills_up_leaves_nothing() {
    let Some(disk) = SmallDisk::new("200m") else {
        return moce_testkit::skipped("no file system can be mounted here");
    };
    let folder = disk.0.path();
    let output = folder.join("packed.gguf");
    let (input, path) = (demo_model(), output.to_str().unwrap());
    let filler = folder.join("filler");
    std::fs::File::create(&filler).unwrap();
    std::fs::write(&filler, vec![1; 100 << 20]).unwrap();
    let refused = moce(&["pack", input.to_str().unwrap(), "-o", path]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("free; choose another folder"), "{}", text(&refused.stderr));
    assert_eq!(names(folder), ["filler"]);
    // There is room when it starts, and none a moment later: it is held meanwhile.
    std::fs::write(&filler, b"").unwrap();
    let mut packing = command().arg("pack").arg(&input).arg("-o").arg(&output).stderr(Stdio::piped()).spawn().unwrap();
    while !folder.join(".packed.gguf.unfinished").exists() {
        assert_eq!(packing.try_wait().unwrap(), None, "it ended before there was anything of the file");
        std::thread::sleep(Duration::from_micros(100));
    }
    kill_process(Pid::from_child(&packing), Signal::STOP).unwrap();
    let _ = std::fs::write(&filler, vec![1; 190 << 20]);
    kill_process(Pid::from_child(&packing), Signal::CONT).unwrap();
    let full = packing.wait_with_output().unwrap();
    assert_eq!(full.status.code(), Some(1), "{}", text(&full.stderr));
    assert!(text(&full.stderr).contains("No space left"), "{}", text(&full.stderr));
    assert_eq!(names(folder), ["filler"]);
}
