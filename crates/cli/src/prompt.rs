//! Where the prompt of `moce run` comes from: an option, a file, standard input, or the built-in one.

use crate::commands::run::Run;
use crate::model_path::read_text;
use crate::report;
use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{IsTerminal, Read};

/// Shows the model at work where no prompt is given.
pub(crate) const BUILT_IN: &str = "Once upon a time, in a small village by the sea, there lived";

/// The longest tokens of usual vocabularies have some hundreds of bytes: no text with more a position fits a context.
const MOST_TOKEN_BYTES: usize = 1024;

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
/// one without content, or /dev/null, is no prompt, and no more is read than could fit a context of so many tokens.
pub(crate) fn from_standard_input(context: usize) -> anyhow::Result<Option<String>> {
    if std::io::stdin().is_terminal() {
        return Ok(None);
    }
    say_if_silent();
    let most = context.saturating_mul(MOST_TOKEN_BYTES);
    let mut bytes = Vec::new();
    std::io::stdin().take(most as u64 + 1).read_to_end(&mut bytes).context("cannot read standard input")?;
    if bytes.len() > most {
        bail!("standard input does not end within what a context of {context} tokens can hold");
    }
    let text = String::from_utf8(bytes).context("cannot read standard input as UTF-8 text")?;
    Ok(Some(text).filter(|text| !text.is_empty()))
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
