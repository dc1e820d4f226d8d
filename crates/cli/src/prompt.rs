//! Where the prompt of `moce run` comes from: an option, a file, standard input, or the built-in one.

use crate::commands::run::Run;
use crate::model_path::read_text;
use crate::report;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::IsTerminal;

/// Shows the model at work where no prompt is given.
const BUILT_IN: &str = "Once upon a time, in a small village by the sea, there lived";

/// How long standard input may stay silent before we say that we wait for it.
const SILENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The prompt, and whether it is the built-in one.
pub(crate) fn read(arguments: &Run) -> anyhow::Result<(String, bool)> {
    if let Some(text) = &arguments.prompt {
        return Ok((text.clone(), false));
    }
    if let Some(file) = &arguments.file {
        return Ok((read_text(file)?, false));
    }
    // As every filter does: a pipe is waited for however long its writer takes. One without content, or /dev/null, is no prompt.
    if !std::io::stdin().is_terminal() {
        say_if_silent();
        let text = read_text("-".as_ref())?;
        if !text.is_empty() {
            return Ok((text, false));
        }
    }
    Ok((BUILT_IN.to_owned(), true))
}

/// Says what we wait for where nothing comes: whoever started us may have left a pipe open that nobody writes to. With `--quiet` too, or
/// it would look like a hang.
fn say_if_silent() {
    let stdin = std::io::stdin();
    let silent = poll(&mut [PollFd::new(&stdin, PollFlags::IN)], Some(&SILENCE)) == Ok(0);
    if silent {
        report::say(
            "waiting for a prompt on standard input; -p TEXT gives one, and with </dev/null there is a built-in one",
        );
    }
}
