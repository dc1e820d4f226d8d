//! Where the prompt of `moce run` comes from: an option, a file, standard input, or the built-in one.

use crate::commands::run::Run;
use crate::report;
use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

/// Shows the model at work where no prompt is given.
pub(crate) const BUILT_IN: &str = "Once upon a time, in a small village by the sea, there lived";

/// The longest tokens of usual vocabularies have some hundreds of bytes: no text with more a position fits a context.
const MOST_TOKEN_BYTES: usize = 1024;

/// How long standard input may stay silent before we say that we wait for it.
const SILENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// What a prompt is read from.
pub(crate) enum Source {
    /// It is an option.
    Text(String),
    /// A file, opened.
    File(File, PathBuf),
    /// Asked for.
    StandardInput,
    /// Nothing was named: standard input, where that is no terminal and has content.
    Unnamed,
}

impl Source {
    /// Finds it; a file that is not there is missed at once.
    pub(crate) fn open(arguments: &Run) -> anyhow::Result<Source> {
        Ok(match (&arguments.prompt, &arguments.file) {
            (Some(text), _) => Source::Text(text.clone()),
            (None, Some(file)) if file == Path::new("-") => Source::StandardInput,
            (None, Some(file)) => {
                let opened = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
                Source::File(opened, file.clone())
            }
            (None, None) => Source::Unnamed,
        })
    }

    /// The prompt, of which no more is read than could fit a context of so many tokens; `None` where there is none. As every filter
    /// does, this waits for a pipe however long its writer takes. The line end that editors and `echo` put behind a text is no part of it.
    pub(crate) fn read(self, context: usize) -> anyhow::Result<Option<String>> {
        let standard_input = || bounded(std::io::stdin(), "standard input", context);
        match self {
            Source::Text(text) => Ok(Some(text)),
            Source::File(file, path) => bounded(file, &path.display().to_string(), context).map(Some),
            Source::StandardInput => standard_input().map(Some),
            Source::Unnamed if std::io::stdin().is_terminal() => Ok(None),
            Source::Unnamed => {
                say_if_silent();
                Ok(Some(standard_input()?).filter(|text| !text.is_empty()))
            }
        }
    }
}

fn bounded(input: impl Read, name: &str, context: usize) -> anyhow::Result<String> {
    let most = context.saturating_mul(MOST_TOKEN_BYTES);
    let mut bytes = Vec::new();
    input.take(most as u64 + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {name}"))?;
    if bytes.len() > most {
        bail!("{name} does not end within what a context of {context} tokens can hold");
    }
    let mut text = String::from_utf8(bytes).with_context(|| format!("cannot read {name} as UTF-8 text"))?;
    let line = text.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line).len());
    text.truncate(line.unwrap_or(text.len()));
    Ok(text)
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
