//! `moce man`: the manual page, or a folder of one page per command.

use crate::arguments::Cli;
use anyhow::Context;
use clap::{Args, CommandFactory, ValueHint};
use std::io::Write;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Write one page per command into this folder
    #[arg(short, long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) output: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Man) -> anyhow::Result<()> {
    let command = Cli::command();
    match &arguments.output {
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            std::io::stdout().write_all(&page)?;
        }
        Some(folder) => {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
            clap_mangen::generate_to(command, folder)
                .with_context(|| format!("cannot write pages into {}", folder.display()))?;
        }
    }
    Ok(())
}
