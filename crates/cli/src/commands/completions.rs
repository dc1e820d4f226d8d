//! `moce completions`: a completion script for a shell.

use crate::arguments::Cli;
use clap::{Args, CommandFactory};
use std::io::Write;

#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

pub(crate) fn run(arguments: &Completions) -> anyhow::Result<()> {
    // Through a buffer: the generator panics where writing fails, a closed pipe for one.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "moce", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(())
}
