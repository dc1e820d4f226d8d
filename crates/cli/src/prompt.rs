//! Where the prompt of `moce run` comes from: an option, a file, standard input, or the built-in one.

use crate::commands::run::Run;
use crate::model_path::read_text;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::IsTerminal;

/// Shows the model at work where no prompt is given.
const BUILT_IN: &str = "Once upon a time, in a small village by the sea, there lived";

/// How long a pipe may take to show that something comes, where it was not asked for with `-f -`.
const PIPE_PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// The prompt, and whether it is the built-in one.
pub(crate) fn read(arguments: &Run) -> anyhow::Result<(String, bool)> {
    if let Some(text) = &arguments.prompt {
        return Ok((text.clone(), false));
    }
    if let Some(file) = &arguments.file {
        return Ok((read_text(file)?, false));
    }
    if stdin_has_content() {
        let text = read_text("-".as_ref())?;
        if !text.is_empty() {
            return Ok((text, false));
        }
    }
    Ok((BUILT_IN.to_owned(), true))
}

/// Whether standard input is a pipe or file that has something to read. A terminal or a pipe that stays silent has not: a program
/// that starts us without closing its end must not make us wait for ever.
fn stdin_has_content() -> bool {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return false;
    }
    let mut waiting = [PollFd::new(&stdin, PollFlags::IN)];
    poll(&mut waiting, Some(&PIPE_PATIENCE)).is_ok() && waiting[0].revents().contains(PollFlags::IN)
}
