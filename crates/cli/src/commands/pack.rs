//! `moce pack`: a model with each expert in one piece, ready for one instruction set.

use super::write_json;
use crate::arguments::Global;
use crate::{interrupt, report};
use anyhow::bail;
use clap::{Args, ValueHint};
use moce_convert::{Error, Pack};
use moce_engine::Isa;
use moce_gguf::Gguf;
use serde::Serialize;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct PackArguments {
    /// GGUF file (of a split model, any part)
    #[arg(value_name = "IN.gguf", value_hint = ValueHint::FilePath)]
    pub(crate) input: PathBuf,
    /// The packed file
    #[arg(short, long, value_name = "OUT.gguf", value_hint = ValueHint::FilePath)]
    pub(crate) output: PathBuf,
    /// The instruction set to order for: scalar, avx2 or avx512vnni [default: this CPU's best]
    #[arg(long, value_name = "NAME", value_parser = parse_isa)]
    pub(crate) isa: Option<Isa>,
    /// Replace the output if it exists
    #[arg(long)]
    pub(crate) force: bool,
}

fn parse_isa(name: &str) -> Result<Isa, String> {
    Isa::named(name).map_err(|error| error.to_string())
}

#[derive(Serialize)]
struct Outcome {
    file: String,
    file_bytes: u64,
    isa: &'static str,
    experts: usize,
    seconds: f64,
}

pub(crate) fn run(arguments: &PackArguments, global: &Global) -> anyhow::Result<()> {
    let PackArguments { input, output, isa, force } = arguments;
    if !force && output.symlink_metadata().is_ok() {
        bail!("{} exists; give --force to replace it, or another name", output.display());
    }
    let isa = match (isa, std::env::var("MOCE_ISA")) {
        (Some(isa), _) => *isa,
        (None, Ok(name)) => Isa::parse(&name).map_err(|error| anyhow::anyhow!("MOCE_ISA: {error}"))?,
        (None, Err(_)) => Isa::best(),
    };
    interrupt::listen();
    let started = std::time::Instant::now();
    let gguf = Gguf::open(input)?;
    let pack = Pack::new(&gguf, isa)?;
    let bar = report::bytes_bar(pack.file_bytes(), global.quiet);
    let outcome = pack.write(output, *force, &mut |written| {
        bar.set_position(written);
        if interrupt::happened() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    match outcome {
        // The exit status says the rest.
        Err(error @ Error::Stopped { .. }) if interrupt::happened() => {
            report::say(format_args!("moce: {error}"));
            return Ok(());
        }
        outcome => outcome?,
    }
    let outcome = Outcome {
        file: output.display().to_string(),
        file_bytes: pack.file_bytes(),
        isa: isa.name(),
        experts: pack.experts(),
        seconds: started.elapsed().as_secs_f64(),
    };
    let mut stdout = std::io::stdout().lock();
    if global.json {
        write_json(&mut stdout, &outcome)?;
    } else if !global.quiet {
        let Outcome { file, file_bytes, isa, experts, seconds } = &outcome;
        let size = report::size(*file_bytes);
        writeln!(stdout, "{file}: {experts} experts in the order of {isa}, {size}, {seconds:.1} s")?;
    }
    Ok(())
}
