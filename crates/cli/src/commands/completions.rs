//! `moce completions`: a completion script for a shell.

use crate::arguments::{Cli, Completions};
use clap::CommandFactory;
use std::io::Write;

pub(crate) fn run(arguments: &Completions) -> anyhow::Result<()> {
    // Through a buffer: the generator panics where writing fails, a closed pipe for one.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "moce", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(())
}
