//! A disk that fills up while a file is written: an error that says so, and nothing half under a final name.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers
#![cfg(target_os = "linux")]

use moce_convert::{Shape, Synthetic};
use moce_quant::Format;
use moce_testkit::on_a_small_disk;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

const MIB: u64 = 1 << 20;

/// Takes what is left of a disk.
fn fill(disk: &Path) {
    let mut file = File::create(disk.join("filler")).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
}

fn names(disk: &Path) -> Vec<OsString> {
    std::fs::read_dir(disk).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

/// A small model of a real one's shape: 8 MB.
fn small() -> Synthetic {
    let shape = Shape {
        layers: 2,
        hidden: 512,
        heads: 4,
        kv_heads: 4,
        expert_width: 256,
        shared_width: 256,
        vocabulary: 4000,
        ..Shape::named("qwen1.5-moe-a2.7b").unwrap()
    };
    Synthetic::new(&shape, Format::Q4_0, 1).unwrap()
}

#[test]
fn a_model_that_no_longer_fits_is_not_left_half() {
    let Some(disk) = on_a_small_disk("a_model_that_no_longer_fits_is_not_left_half", 64 * MIB) else { return };
    let path = disk.join("model.gguf");
    let synthetic = small();
    assert!(synthetic.file_bytes() > 4 * MIB);
    // There was room when it began.
    let mut filled = false;
    let error = synthetic.write(&path, false, &mut |_| {
        if !std::mem::replace(&mut filled, true) {
            fill(&disk);
        }
        ControlFlow::Continue(())
    });
    let message = error.unwrap_err().to_string();
    assert!(message.contains("model.gguf") && message.contains("No space left"), "{message}");
    assert_eq!(names(&disk), ["filler"]);
    // And where there is none from the start, nothing is begun.
    let message = synthetic.write(&path, false, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(message.contains("needed"), "{message}");
    // Later it goes well.
    std::fs::remove_file(disk.join("filler")).unwrap();
    synthetic.write(&path, false, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), synthetic.file_bytes());
}

#[test]
fn a_cache_state_that_cannot_be_saved_costs_no_output_and_not_the_old_one() {
    let name = "a_cache_state_that_cannot_be_saved_costs_no_output_and_not_the_old_one";
    let Some(disk) = on_a_small_disk(name, MIB) else { return };
    let state = disk.join("state.json");
    let run = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_moce"));
        command.args(["run", "-q", "--json", "-n", "2", "-p", "Hello", "--cache-state"]).arg(&state);
        command.env_remove("MOCE_MODEL").env_remove("MOCE_HOME").output().unwrap()
    };
    assert!(run().status.success());
    let old = std::fs::read(&state).unwrap();
    fill(&disk);
    let refused = run();
    let message = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{message}");
    assert!(message.contains("state.json") && message.contains("No space left"), "{message}");
    let output = String::from_utf8(refused.stdout).unwrap();
    assert!(output.lines().last().unwrap().contains("\"stop_reason\""), "{output}");
    assert!(std::fs::read(&state).unwrap() == old);
    let mut left = names(&disk);
    left.sort();
    assert_eq!(left, ["filler", "state.json"]);
}
