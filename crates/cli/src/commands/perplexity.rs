//! `moce perplexity`: how well a model predicts a text.

use super::{Setting, open_engine, write_json};
use crate::arguments::{
    Global, ModelOptions, Recording, RoutingPrompt, STUDY_CAPACITY, STUDY_CAPACITY_TEXT, Scoring, with_default,
};
use crate::report::usage;
use crate::{interrupt, model_path, report};
use clap::{Args, ValueHint};
use moce_engine::Session;
use moce_engine::routing::Policy;
use moce_lab::statistics::{Interval, why_no_interval};
use moce_lab::{DivergenceReport, PerplexityReport, perplexity_in};
use serde::Serialize;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(mut_arg("capacity", |option| with_default(option, STUDY_CAPACITY_TEXT)))]
#[command(mut_arg("routing_prompt", |option| with_default(option, "same")))]
#[command(mut_arg("ctx", |option| with_default(option, Scoring::CONTEXT)))]
pub(crate) struct Perplexity {
    /// GGUF file (of a split model, any part)
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) model: Option<PathBuf>,
    /// The text to score; `-` is standard input
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) scoring: Scoring,
    #[command(flatten)]
    pub(crate) recording: Recording,
    #[command(flatten)]
    pub(crate) options: ModelOptions,
}

pub(crate) fn run(arguments: &Perplexity, global: &Global) -> anyhow::Result<()> {
    refuse_policy_in_vain(&arguments.options)?;
    let text = model_path::read_text(&arguments.file)?;
    let replay = arguments.recording.read()?;
    let engine = open_engine(arguments.model.as_deref(), &arguments.options, global, RoutingPrompt::Same, |options| {
        options.capacity.get_or_insert(STUDY_CAPACITY);
        arguments.scoring.prepare(options);
    })?;
    let bar = report::progress_bar(global.quiet, "{pos}/{len} tokens  {msg}");
    interrupt::listen();
    let mut session = Session::new(&engine)?;
    let replayed = arguments.recording.attach(replay, &mut session, global.quiet)?;
    let mut report = perplexity_in(&mut session, &text, &arguments.scoring.options(), &mut |scored, all, nll| {
        bar.set_length(all as u64);
        bar.set_position(scored as u64);
        bar.set_message(format!("perplexity {:.4}", (nll / scored as f64).exp()));
        if interrupt::happened() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    bar.finish_and_clear();
    report.replayed_routing = replayed;
    // A record that cannot be completed costs no result.
    let recorded = arguments.recording.finish(&mut session);
    if global.json {
        let options = arguments.scoring.options();
        let document =
            Document { setting: Setting::of(&engine), window: options.window, bos: options.bos, report: &report };
        write_json(&mut std::io::stdout().lock(), &document)?;
    } else {
        print(&report)?;
    }
    recorded
}

/// Refuses a policy that is kept from all tokens that there are.
fn refuse_policy_in_vain(options: &ModelOptions) -> anyhow::Result<()> {
    let has_policy = options.profile.is_some() || options.policy.routing != Policy::Original;
    if has_policy && matches!(options.policy.routing_prompt, Some(RoutingPrompt::Original)) {
        return Err(usage(
            "--routing-prompt original: every token of a text counts as a prompt token, so the policy would do nothing; \
             leave it away",
        ));
    }
    Ok(())
}

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    setting: Setting,
    /// Tokens predicted a window.
    window: usize,
    /// Whether every window begins with the BOS token.
    bos: bool,
    #[serde(flatten)]
    report: &'a PerplexityReport,
}

fn print(report: &PerplexityReport) -> std::io::Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "perplexity per token  {:.4}  ({} tokens)", report.perplexity, report.tokens)?;
    let per_word = report.word_perplexity.map_or("-".to_owned(), |perplexity| format!("{perplexity:.4}"));
    writeln!(output, "perplexity per word   {per_word}  ({} words)", report.words)?;
    writeln!(output, "nll                   {:.2} nats", report.nll)?;
    if let Some(divergence) = &report.divergence {
        print_divergence(&mut output, divergence)?;
    }
    if report.per_layer.is_empty() {
        return Ok(());
    }
    writeln!(
        output,
        "misses                {:.2} % of the choices, {:.2} a token  ({})",
        100.0 * report.miss_rate,
        report.misses_per_token,
        caches(&report.eviction, &report.capacity),
    )?;
    write!(output, "cached for            {:.1} tokens on average", report.lifetime_mean)?;
    match report.lifetimes_still_cached {
        Some(stays) if stays > 0 => writeln!(output, " ({stays} stays had not ended)")?,
        _ => writeln!(output)?,
    }
    let routing = match &report.replayed_routing {
        Some(replayed) => format!("as recorded ({replayed})"),
        None => report.routing.clone(),
    };
    write!(output, "routing               {routing}, {:.2} % of the choices changed", 100.0 * report.changed_share)?;
    match report.top_j_kept {
        Some(kept) if kept < 1.0 => writeln!(output, ", {:.2} % of the strongest kept", 100.0 * kept),
        _ => writeln!(output),
    }
}

/// What misses were counted with, for people: `lru, 30 experts cached a layer`.
pub(super) fn caches(eviction: &str, capacity: &[usize]) -> String {
    format!("{eviction}, {} experts cached a layer", report::capacity(capacity))
}

fn print_divergence(output: &mut impl Write, divergence: &DivergenceReport) -> std::io::Result<()> {
    let DivergenceReport { kl_mean, top1_agreement, original_perplexity, perplexity_rise, .. } = *divergence;
    let kl = range(divergence.kl_interval, 1.0, 5);
    let agreement = range(divergence.top1_agreement_interval, 100.0, 2);
    // All have an interval, or none has.
    let rise = match why_no_interval(divergence.window_kl.len()) {
        Some(why) => format!("  ({why})"),
        None => range(divergence.perplexity_rise_interval, 100.0, 2),
    };
    writeln!(
        output,
        "original routing      {original_perplexity:.4} a token; the policy: {:+.2} %{rise}",
        100.0 * perplexity_rise
    )?;
    writeln!(output, "KL from the original  {kl_mean:.5} nats a token{kl}")?;
    writeln!(output, "same likeliest token  {:.2} % of the tokens{agreement}", 100.0 * top1_agreement)
}

/// `  (95 %: 1.20 to 1.40)`; nothing where too few windows say too little about the spread.
fn range(interval: Option<Interval>, factor: f64, decimals: usize) -> String {
    interval.map_or_else(String::new, |Interval { low, high }| {
        format!("  (95 %: {:.decimals$} to {:.decimals$})", factor * low, factor * high)
    })
}
