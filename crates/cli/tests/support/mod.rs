//! Running the binary, for every test of it.

#![allow(dead_code)] // no test file uses all of it

use std::io::Write;
use std::process::{Command, Output, Stdio};

/// Runs `moce` with these arguments and this standard input, in an environment without its variables.
pub(crate) fn moce_with_input(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_moce"))
        .args(arguments)
        .env_remove("MOCE_MODEL")
        .env_remove("MOCE_HOME")
        .env_remove("MOCE_ISA")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that does not read its input may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

pub(crate) fn moce(arguments: &[&str]) -> Output {
    moce_with_input(arguments, b"")
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Standard output of a command that must succeed.
pub(crate) fn stdout(arguments: &[&str]) -> String {
    let output = moce(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Standard error of a command that must end with this status, and print nothing else.
pub(crate) fn refused(arguments: &[&str], status: i32) -> String {
    let output = moce(arguments);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", text(&output.stderr));
    assert!(output.stdout.is_empty(), "{arguments:?} printed {}", text(&output.stdout));
    text(&output.stderr)
}
