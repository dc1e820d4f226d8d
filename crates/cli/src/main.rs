//! The `moce` binary: flags become options, and one call per command does the work.
//!
//! Results go to standard output, everything else to standard error. Exit status: 0 done, 1 the work failed, 2 wrong usage, 130
//! after Ctrl-C. A closed pipe ends the program quietly.

#![forbid(unsafe_code)]

mod arguments;
mod commands;
mod interrupt;
mod model_path;
mod prompt;
mod report;
mod size;
mod status;

use arguments::{Cli, Command};
use clap::Parser;
use std::process::ExitCode;

/// Exit status of a command line that cannot be meant; clap's own.
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    report::start_log(cli.global.verbose);
    let outcome = match &cli.command {
        Command::Run(arguments) => commands::run::run(arguments, &cli.global),
        Command::Inspect(arguments) => commands::inspect::run(arguments, &cli.global),
        Command::Tokenize(arguments) => commands::tokenize::run(arguments, &cli.global),
        Command::Logits(arguments) => commands::logits::run(arguments, &cli.global),
        Command::Plan(arguments) => commands::plan::run(arguments, &cli.global),
        Command::Bench(arguments) => commands::bench::run(arguments, &cli.global),
        Command::Perplexity(arguments) => commands::perplexity::run(arguments, &cli.global),
        Command::Sweep(arguments) => commands::sweep::run(arguments, &cli.global),
        Command::Tune(arguments) => commands::tune::run(arguments, &cli.global),
        Command::Trace(arguments) => commands::trace::run(arguments, &cli.global),
        Command::Simulate(arguments) => commands::simulate::run(arguments, &cli.global),
        Command::Eval(arguments) => commands::eval::run(arguments, &cli.global),
        Command::Pack(arguments) => commands::pack::run(arguments, &cli.global),
        Command::Verify(arguments) => commands::verify::run(arguments, &cli.global),
        Command::Completions(arguments) => commands::completions::run(arguments),
        Command::Man(arguments) => commands::man::run(arguments),
    };
    match outcome {
        Ok(()) if interrupt::happened() => ExitCode::from(interrupt::EXIT_STATUS),
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            report::error(&error);
            match is_wrong_usage(&error) {
                _ if interrupt::happened() => ExitCode::from(interrupt::EXIT_STATUS),
                true => ExitCode::from(WRONG_USAGE),
                false => ExitCode::FAILURE,
            }
        }
    }
}

/// Whether an option has a value that cannot be meant, for any model or for this one.
fn is_wrong_usage(error: &anyhow::Error) -> bool {
    use moce_engine::Error as Engine;
    use moce_engine::routing::Error as Routing;
    let of_routing = |error: &Routing| matches!(error, Routing::Spec { .. } | Routing::Parameter { .. });
    let of_engine = |error: &Engine| match error {
        Engine::Routing(error) => of_routing(error),
        error => matches!(error, Engine::CapacityRange { .. } | Engine::ContextTooLong { .. }),
    };
    let of_lab = |error: &moce_lab::Error| match error {
        moce_lab::Error::Engine(error) => of_engine(error),
        moce_lab::Error::Routing(error) => of_routing(error),
        error => matches!(error, moce_lab::Error::WarmStart | moce_lab::Error::NoSubject { .. }),
    };
    error.is::<report::WrongUsage>()
        || error.downcast_ref().is_some_and(of_engine)
        || error.downcast_ref().is_some_and(of_lab)
}

/// Whether the reader of our output went away (`moce … | head`), which is no failure of ours.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let plain = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        let in_json = cause.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind);
        plain.or(in_json) == Some(std::io::ErrorKind::BrokenPipe)
    })
}
