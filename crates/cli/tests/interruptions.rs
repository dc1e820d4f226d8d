//! Runs that do not come to their end: Ctrl-C, readers that go away, and kills at bad moments.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers
#![cfg(unix)]

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Nothing here takes so long, on a busy machine either.
const LIMIT: Duration = Duration::from_secs(120);

fn moce(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moce"));
    command.args(arguments).env_remove("MOCE_MODEL").env_remove("MOCE_HOME").env_remove("MOCE_LOG");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Standard error, once the process has ended.
fn errors(child: &mut Child) -> String {
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    text
}

fn values(lines: impl Iterator<Item = std::io::Result<String>>) -> Vec<Value> {
    lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
}

/// A generation that would take minutes, and its output.
fn long_run(more: &[&str]) -> (Child, BufReader<ChildStdout>) {
    let long = ["run", "-q", "--json", "--temp", "0", "--ignore-eos", "-n", "4000", "-p", "Once upon a time"];
    let mut child = moce(&[&long, more].concat()).spawn().unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, output)
}

#[test]
fn ctrl_c_ends_a_run_with_130_and_keeps_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state.json");
    let (mut child, mut output) = long_run(&["--cache-state", state.to_str().unwrap()]);
    let mut first = String::new();
    (0..5).for_each(|_| assert!(output.read_line(&mut first).unwrap() > 0));
    send(&child, Signal::INT);
    let rest = values(output.lines());
    assert_eq!(child.wait().unwrap().code(), Some(130), "{}", errors(&mut child));
    let (summary, rest) = rest.split_last().unwrap();
    let pieces = values(first.lines().map(|line| Ok(line.to_owned())));
    let text: String = pieces.iter().chain(rest).map(|piece| piece["piece"].as_str().unwrap()).collect();
    assert_eq!((&summary["stop_reason"], summary["text"].as_str().unwrap()), (&"cancelled".into(), &text[..]));
    // What there is has the tokens that a shorter run has, and the warm cache was saved.
    let tokens = summary["token_ids"].as_array().unwrap();
    let count = tokens.len().to_string();
    let shorter =
        moce(&["run", "-q", "--json", "--temp", "0", "--ignore-eos", "-n", &count, "-p", "Once upon a time"]).output();
    let shorter = values(shorter.unwrap().stdout.lines());
    assert_eq!(shorter.last().unwrap()["token_ids"].as_array().unwrap(), tokens);
    let saved: Value = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
    assert_eq!(saved["version"], 1);
}

#[test]
fn a_second_ctrl_c_ends_at_once() {
    let (mut child, mut output) = long_run(&[]);
    output.read_line(&mut String::new()).unwrap();
    send(&child, Signal::INT);
    // Signals that come together count once, so this one is sent until it has come through.
    let started = Instant::now();
    let status = loop {
        send(&child, Signal::INT);
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
        assert!(started.elapsed() < LIMIT);
    };
    assert_eq!(status.code(), Some(130));
}

#[test]
fn a_reader_that_goes_away_ends_every_command_quietly() {
    for arguments in [
        &["run", "-q", "-n", "20"][..],
        &["run", "-q", "-n", "20", "--json"],
        &["inspect"],
        &["inspect", "--json"],
        &["plan", "--flash-bandwidth", "1GB"],
        &["tokenize", "Hello"],
        &["logits", "-q", "-p", "Hello", "--json"],
        &["completions", "bash"],
        &["man"],
        &["--help"],
        &["run", "--help"],
    ] {
        let mut child = moce(arguments).spawn().unwrap();
        drop(child.stdout.take());
        let said = errors(&mut child);
        let status = child.wait().unwrap();
        assert!(status.success(), "{arguments:?}: {status}, {said}");
        assert!(!said.contains("panicked") && !said.contains("roken pipe"), "{arguments:?}: {said}");
    }
}

/// What there is in a folder.
fn names(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Waits until something turns up in the folder, or the process has ended.
fn something_turns_up(folder: &Path, child: &mut Child) -> bool {
    let started = Instant::now();
    while names(folder).is_empty() {
        if child.try_wait().unwrap().is_some() {
            return !names(folder).is_empty();
        }
        assert!(started.elapsed() < LIMIT);
    }
    true
}

#[test]
fn a_kill_while_a_cache_state_is_written_leaves_a_whole_one_or_none() {
    let mut written = 0;
    // Writing takes about a millisecond; after the last of these times it is done.
    let delays = [0, 150, 300, 450, 600, 750, 2_000_000].map(Duration::from_micros);
    for delay in delays {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state.json");
        let mut command = moce(&["run", "-q", "-n", "1", "-p", "Hello", "--cache-state"]);
        let mut child = command.arg(&state).stdout(Stdio::null()).spawn().unwrap();
        assert!(something_turns_up(folder.path(), &mut child), "{}", errors(&mut child));
        std::thread::sleep(delay);
        let _ = child.kill();
        child.wait().unwrap();
        if state.exists() {
            let saved: Value = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
            assert_eq!(saved["version"], 1);
            written += 1;
        }
    }
    println!("{written} of {} were written before the kill", delays.len());
    assert!(written > 0, "no state was ever written");
}

/// What was measured is printed even if its record does not get its name.
#[test]
fn a_record_whose_name_is_taken_meanwhile_costs_no_result() {
    let folder = tempfile::tempdir().unwrap();
    let text = "the cat sat on the mat and looked at the sea ".repeat(150);
    let file = folder.path().join("text");
    std::fs::write(&file, &text).unwrap();
    for (arguments, field) in [
        (&["logits", "-p", &text][..], "logits"),
        (&["perplexity", "--window", "300", "-f", file.to_str().unwrap()], "perplexity"),
    ] {
        let records = tempfile::tempdir().unwrap();
        let record = records.path().join("record.trace");
        let mut command = moce(&[arguments, &["-q", "--json", "--record-routing"]].concat());
        let mut child = command.arg(&record).spawn().unwrap();
        assert!(something_turns_up(records.path(), &mut child), "{}", errors(&mut child));
        std::fs::write(&record, "precious").unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("record.trace") && said.contains("exists"), "{said}");
        assert!(!serde_json::from_slice::<Value>(&output.stdout).unwrap()[field].is_null());
        assert_eq!(std::fs::read(&record).unwrap(), b"precious");
    }
}

/// A sweep keeps the cells that it has finished, and says so.
#[test]
fn an_interrupted_sweep_says_that_it_can_go_on() {
    let (folder, cells) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let text = folder.path().join("text");
    std::fs::write(&text, "the cat sat on the mat and looked at the sea ".repeat(5_000)).unwrap();
    let mut command = moce(&["sweep", "-q", "--json", "--window", "32", "--routing-grid", "original", "-f"]);
    let mut child = command.arg(&text).arg("-o").arg(cells.path()).spawn().unwrap();
    assert!(something_turns_up(cells.path(), &mut child), "{}", errors(&mut child));
    send(&child, Signal::INT);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(output.stdout.is_empty() && said.contains("the same command goes on"), "{said}");
}

/// A round of 4,000 tokens takes far longer than the test waits.
#[test]
fn an_interrupted_bench_ends_within_a_round_and_prints_nothing() {
    let mut command = moce(&["bench", "--json", "--rounds", "1", "--prompt-tokens", "8", "-n", "4000"]);
    let mut child = command.spawn().unwrap();
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    // The line at the start: from then on it listens, and soon measures.
    let mut said = String::new();
    assert!(errors.read_line(&mut said).unwrap() > 0);
    std::thread::sleep(Duration::from_millis(300));
    send(&child, Signal::INT);
    let output = child.wait_with_output().unwrap();
    errors.read_to_string(&mut said).unwrap();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(output.stdout.is_empty() && said.contains("interrupted"), "{said}");
}

#[test]
fn a_table_that_is_not_written_whole_does_not_get_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let (text, trace, tables) =
        (folder.path().join("text"), folder.path().join("text.trace"), folder.path().join("tables"));
    std::fs::write(&text, "the cat sat on the mat and looked at the sea ".repeat(100)).unwrap();
    std::fs::create_dir(&tables).unwrap();
    let mut record = moce(&["trace", "record", "-q", "--window", "500", "-f"]);
    assert!(record.arg(&text).arg("-o").arg(&trace).status().unwrap().success());
    // Nearly two million rows.
    let mut export = moce(&["trace", "export", "--all"]);
    let mut child = export.arg(&trace).arg("-o").arg(tables.join("table.csv")).spawn().unwrap();
    assert!(something_turns_up(&tables, &mut child), "{}", errors(&mut child));
    send(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130), "{}", errors(&mut child));
    assert!(names(&tables).is_empty(), "{:?}", names(&tables));
}

/// The file of a shape takes long to write: 8 GB. A kill leaves it under a temporary name, Ctrl-C leaves nothing.
#[test]
fn a_shape_that_is_not_written_whole_does_not_get_its_name() {
    for signal in [Signal::KILL, Signal::INT] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = moce(&["bench", "-q", "--shape", "qwen1.5-moe-a2.7b", "--yes", "--folder"]);
        let mut child = command.arg(folder.path()).stdout(Stdio::null()).spawn().unwrap();
        if !something_turns_up(folder.path(), &mut child) {
            let said = errors(&mut child);
            assert!(said.contains("free") || said.contains("room") || said.contains("space"), "{said}");
            return moce_testkit::skipped("no 8 GB free for the file of a shape");
        }
        std::thread::sleep(Duration::from_millis(200));
        send(&child, signal);
        let status = child.wait().unwrap();
        let left = names(folder.path());
        assert!(left.iter().all(|path| path.extension().is_none_or(|e| e != "gguf")), "{signal:?}: {left:?}");
        if signal == Signal::INT {
            assert_eq!(status.code(), Some(130), "{}", errors(&mut child));
            assert!(left.is_empty(), "{left:?}");
        }
    }
}
