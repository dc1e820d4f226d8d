//! `moce tune`: the policy with the fewest misses within a stated loss, as a profile.

use super::{announce, check_target, model_context, write_json};
use crate::arguments::{
    CommonOptions, Global, LOGIT_ROWS, STUDY_CAPACITY_TEXT, parse_budget, parse_capacity, parse_share, positive,
    with_default,
};
use crate::{interrupt, model_path, report};
use anyhow::Context;
use clap::{Args, ValueHint};
use moce_engine::{Budget, Capacity, Engine, EngineOptions, NewFile};
use moce_lab::{Half, KEPT_LOGITS_BYTES, LayerPrice, PerplexityOptions, Trials, TuneOptions, TuneStep, tune};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)] // so that `--max-loss -1` is refused by its name
#[command(mut_arg("ctx", |option| with_default(option, "a window")))]
pub(crate) struct Tune {
    /// GGUF file (of a split model, any part)
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) model: Option<PathBuf>,
    /// The text to tune on, like what the model will be used for; `-` is standard input
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
    /// How much perplexity may rise, such as 1%
    #[arg(long, value_name = "SHARE", default_value = "1%", value_parser = parse_max_loss)]
    pub(crate) max_loss: f64,
    /// The profile to write. The search takes some 10 to 20 minutes with --limit 16384, the demo model and two cores; until it ends, what has
    /// been tried is in PROFILE.partial, so it may be interrupted: the same command, without --force, goes on with the trial that it was in
    #[arg(short, long, value_name = "PROFILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: PathBuf,
    /// Begin anew, and write over a profile that is there
    #[arg(long)]
    pub(crate) force: bool,
    /// Tokens predicted per window
    #[arg(long, value_name = "N", default_value = "1024", value_parser = positive)]
    pub(crate) window: usize,
    /// Score at most this many tokens of each half
    #[arg(long, value_name = "TOKENS", value_parser = positive)]
    pub(crate) limit: Option<usize>,
    /// Experts cached in each layer: a number, a share, or a file of one number per layer
    #[arg(long, value_name = "SPEC", value_parser = parse_capacity, default_value = STUDY_CAPACITY_TEXT)]
    pub(crate) capacity: Capacity,
    /// What everything may take: a size such as 3GiB; `auto`: what is free; `all`: every expert stays in memory
    #[arg(long, value_name = "SIZE|auto|all", value_parser = parse_budget, default_value = "auto")]
    pub(crate) memory: Budget,
    #[command(flatten)]
    pub(crate) options: CommonOptions,
}

pub(crate) fn run(arguments: &Tune, global: &Global) -> anyhow::Result<()> {
    check_target(&arguments.output)?;
    let text = model_path::read_text(&arguments.file)?;
    let path = model_path::resolve(arguments.model.as_deref())?;
    // The capacity has to fit, so that the same budget can run the profile.
    let capacity = Some(&arguments.capacity);
    let options = arguments.options.engine_options(arguments.memory, capacity, || model_context(&path))?;
    let context = options.context.unwrap_or(arguments.window);
    // Divergence runs original routing beside a policy.
    let options = EngineOptions {
        spare_slots: true,
        logit_rows: LOGIT_ROWS,
        context: Some(context),
        sessions: 2,
        reserve: KEPT_LOGITS_BYTES as u64,
        ..options
    };
    let engine = Arc::new(Engine::open(&path, &options)?);
    announce(&engine, None, global);
    if !global.quiet {
        let most = percent(arguments.max_loss);
        report::say(format_args!("perplexity may rise by at most {most} % (--max-loss)"));
    }
    interrupt::listen();
    let options = TuneOptions {
        max_loss: arguments.max_loss,
        capacity: arguments.capacity.clone(),
        base: engine.routing().clone(),
        perplexity: PerplexityOptions { window: arguments.window, limit: arguments.limit, bos: false, kl: false },
    };
    let mut trials = Trials::beside(&arguments.output, &engine, &text, &options, arguments.force)?;
    let mut show = |step: &TuneStep<'_>| {
        if !global.quiet {
            show(step);
        }
    };
    let profile = tune(&engine, &text, &options, &mut trials, &interrupt::happened, &mut show)
        .map_err(|error| interrupt::resumable(error, arguments.force))?;
    // A profile that cannot be saved is shown all the same, and what led to it stays.
    let saved = NewFile::create(&arguments.output, true)
        .and_then(|file| profile.write(file))
        .with_context(|| format!("cannot write {}", arguments.output.display()))
        .and_then(|()| Ok(trials.discard()?));
    let mut output = std::io::stdout().lock();
    if global.json {
        write_json(&mut output, &profile)?;
        return saved;
    }
    let measured = &profile.measured;
    writeln!(output, "routing     {}", profile.routing)?;
    writeln!(
        output,
        "misses      {:.2} %, original {:.2} %",
        100.0 * measured.miss_rate,
        100.0 * measured.original_miss_rate
    )?;
    writeln!(
        output,
        "perplexity  {:+.2} %, at most {:+.2} % (95 %), on {} tokens that chose no candidate",
        100.0 * measured.perplexity_rise,
        100.0 * measured.perplexity_rise_upper,
        measured.tokens
    )?;
    writeln!(output, "changed     {:.2} % of the choices", 100.0 * measured.changed_share)?;
    saved?;
    if !global.quiet {
        report::say(report::dim(&format!("--profile {} applies it", arguments.output.display())));
    }
    Ok(())
}

/// A share; a bare number of half or more is a percentage without its sign.
fn parse_max_loss(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.5..=100.0).contains(&share) => {
            Err(format!("{text} without % is {} %; did you mean {text}%?", percent(share)))
        }
        _ => parse_share(text),
    }
}

/// A share in percent, as it was written: single precision hides the last digits of the product.
fn percent(share: f64) -> f32 {
    (100.0 * share) as f32
}

/// A line of progress.
fn show(step: &TuneStep<'_>) {
    match step {
        TuneStep::Trial(trial) => {
            let (half, at_most) = match trial.half {
                Half::First => ("first half ", ""),
                Half::Second => ("second half", "at most "),
            };
            let by_layer = if trial.by_layer { ", capacities by layer" } else { "" };
            let (rise, misses) = (100.0 * trial.perplexity_rise, 100.0 * trial.miss_rate);
            let policy = trial.policy;
            report::say(format_args!(
                "{half}: {misses:5.1} % misses, perplexity {at_most}{rise:+.2} %: {policy}{by_layer}"
            ));
        }
        TuneStep::Layer(LayerPrice { layer, kl, misses_saved, .. }) => report::say(format_args!(
            "leaning in layer {layer:2} alone: {misses_saved:.2} misses a token saved, KL {kl:.4} nats a token"
        )),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_without_its_sign_is_no_limit() {
        for (text, share) in [("1%", 0.01), ("0.3%", 0.003), ("50%", 0.5), ("100%", 1.0), ("0.01", 0.01), ("0", 0.0)] {
            assert!((parse_max_loss(text).unwrap() - share).abs() < 1e-12, "{text}");
        }
        for (text, hint) in [("1", "1 without % is 100 %; did you mean 1%?"), ("0.5", "0.5%?"), ("2", "2%?")] {
            let said = parse_max_loss(text).unwrap_err();
            assert!(said.contains(hint), "{said}");
        }
        for wrong in ["-1", "nan", "101%", "1000", ""] {
            assert!(parse_max_loss(wrong).unwrap_err().contains("from 0 % to 100 %"), "{wrong}");
        }
        assert_eq!([0.01, 0.003, 0.055, 1.0].map(|share| percent(share).to_string()), ["1", "0.3", "5.5", "100"]);
    }
}
