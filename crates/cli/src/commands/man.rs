//! `moce man`: the manual page, or a folder of one page per command.

use crate::arguments::Cli;
use anyhow::{Context, bail};
use clap::{Args, Command, CommandFactory, ValueHint};
use moce_engine::NewFile;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Write one page per command into this folder
    #[arg(short, long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) output: Option<PathBuf>,
    /// Overwrite pages that are there
    #[arg(long, requires = "output")]
    pub(crate) force: bool,
}

pub(crate) fn run(arguments: &Man) -> anyhow::Result<()> {
    match &arguments.output {
        None => std::io::stdout().write_all(&Page::of(Cli::command())?.text)?,
        Some(folder) => {
            // Built as a whole, so that each command knows those above it.
            let mut command = Cli::command().disable_help_subcommand(true);
            command.build();
            let mut pages = Vec::new();
            Page::add_all(&command, &mut pages)?;
            write(&pages, folder, arguments.force)?;
        }
    }
    Ok(())
}

/// A manual page, and what its file is called.
struct Page {
    name: String,
    text: Vec<u8>,
}

impl Page {
    fn of(command: Command) -> std::io::Result<Page> {
        let manual = clap_mangen::Man::new(command);
        let mut text = Vec::new();
        manual.render(&mut text)?;
        Ok(Page { name: manual.get_filename(), text })
    }

    /// Adds the pages of a command and of those below it.
    fn add_all(command: &Command, pages: &mut Vec<Page>) -> std::io::Result<()> {
        for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
            Page::add_all(below, pages)?;
        }
        pages.push(Page::of(command.clone())?);
        Ok(())
    }
}

/// Writes all pages, or none if one of them is there and must stay.
fn write(pages: &[Page], folder: &Path, force: bool) -> anyhow::Result<()> {
    let taken = pages.iter().map(|page| folder.join(&page.name)).find(|path| path.exists());
    if let Some(path) = taken.filter(|_| !force) {
        bail!("{} exists already; give another folder or --force", path.display());
    }
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for Page { name, text } in pages {
        let path = folder.join(name);
        let written = NewFile::create(&path, force).and_then(|mut file| {
            file.write_all(text)?;
            file.finish()
        });
        written.with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
