//! `moce verify`: whether a model file is whole, by reading every byte of it once.

use super::write_json;
use crate::arguments::Global;
use crate::{interrupt, model_path, report};
use anyhow::bail;
use clap::{Args, ValueHint};
use moce_convert::{Damage, Error, verify};
use moce_engine::packed::Header;
use moce_gguf::Gguf;
use serde::Serialize;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// GGUF file (of a split model, any part)
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) model: Option<PathBuf>,
}

#[derive(Serialize)]
struct Document {
    whole: bool,
    files: Vec<String>,
    bytes: u64,
    tensors: usize,
    packed_for: Option<String>,
    checksums: usize,
    damaged: usize,
    damage: Vec<Place>,
}

#[derive(Serialize)]
struct Place {
    file: String,
    offset: u64,
    what: String,
}

pub(crate) fn run(arguments: &Verify, global: &Global) -> anyhow::Result<()> {
    let path = model_path::resolve(arguments.model.as_deref())?;
    interrupt::listen();
    let gguf = Gguf::open(&path)?;
    let bytes = gguf.parts().iter().map(|part| part.bytes()).sum();
    let bar = report::bytes_bar(bytes, global.quiet);
    let outcome = verify(&gguf, &mut |read| {
        bar.set_position(read);
        if interrupt::happened() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    let found = match outcome {
        Err(Error::Interrupted) if interrupt::happened() => return Ok(()), // the exit status says it
        outcome => outcome?,
    };
    let place = |Damage { file, offset, what }: Damage| Place { file: file.display().to_string(), offset, what };
    let document = Document {
        whole: found.damaged == 0,
        files: gguf.parts().iter().map(|part| part.path().display().to_string()).collect(),
        bytes: found.bytes,
        tensors: gguf.tensors().len(),
        packed_for: Header::read(&gguf)?.map(|header| header.isa),
        checksums: found.checksums,
        damaged: found.damaged,
        damage: found.damage.into_iter().map(place).collect(),
    };
    let mut output = std::io::stdout().lock();
    if global.json {
        write_json(&mut output, &document)?;
    } else {
        for Place { file, offset, what } in &document.damage {
            writeln!(output, "{file}: byte {offset}: {what}")?;
        }
        if document.whole {
            let (size, tensors) = (report::size(document.bytes), document.tensors);
            let (verdict, sums) = match document.checksums {
                0 => (
                    "no damage seen",
                    "without checksums (`moce pack` adds them), so changed bytes may not show".to_owned(),
                ),
                sums => ("whole", format!("{sums} checksums agree")),
            };
            writeln!(output, "{}: {verdict}: {size} read, {tensors} tensors, {sums}", path.display())?;
        }
    }
    match document.damage.first() {
        None => Ok(()),
        Some(Place { file, offset, .. }) => bail!(
            "{file} is damaged at byte {offset}{}; get or make the file again",
            if document.damaged > 1 { format!(" and {} more places", document.damaged - 1) } else { String::new() }
        ),
    }
}
