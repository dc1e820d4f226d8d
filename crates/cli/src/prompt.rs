//! Where the prompt of `moce run` comes from: an option, a file, standard input, or the built-in one.

use crate::commands::run::Run;
use crate::model_path::read_text;
use crate::report;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::IsTerminal;

/// Shows the model at work where no prompt is given.
pub(crate) const BUILT_IN: &str = "Once upon a time, in a small village by the sea, there lived";

/// How long standard input may stay silent before we say that we wait for it.
const SILENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The prompt of an option or a file.
pub(crate) fn given(arguments: &Run) -> anyhow::Result<Option<String>> {
    match (&arguments.prompt, &arguments.file) {
        (Some(text), _) => Ok(Some(text.clone())),
        (None, Some(file)) => Ok(Some(read_text(file)?)),
        (None, None) => Ok(None),
    }
}

/// The prompt of standard input, where that is no terminal. As every filter does, this waits for a pipe however long its writer takes;
/// one without content, or /dev/null, is no prompt.
pub(crate) fn from_standard_input() -> anyhow::Result<Option<String>> {
    if std::io::stdin().is_terminal() {
        return Ok(None);
    }
    say_if_silent();
    Ok(Some(read_text("-".as_ref())?).filter(|text| !text.is_empty()))
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
