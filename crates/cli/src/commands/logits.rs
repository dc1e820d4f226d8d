//! `moce logits`: what the model expects after a text.

use super::{Setting, open_engine, say_what_is_lost, write_json};
use crate::arguments::{Global, ModelOptions, Recording, RoutingPrompt, whole, with_default};
use crate::report;
use clap::{Args, ValueHint};
use moce_engine::Session;
use moce_engine::routing::{Phase, Policy};
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(mut_arg("routing_prompt", |option| with_default(option, "same")))]
pub(crate) struct Logits {
    /// GGUF file (of a split model, any part)
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) model: Option<PathBuf>,
    /// The text before the token in question
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) prompt: String,
    /// How many tokens to show (with --json all logits are printed)
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = whole(0..=usize::MAX))]
    pub(crate) top: usize,
    #[command(flatten)]
    pub(crate) recording: Recording,
    #[command(flatten)]
    pub(crate) options: ModelOptions,
}

#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    setting: Setting,
    prompt_ids: &'a [u32],
    /// The policy that the prompt was routed by.
    routing: String,
    /// The policy that a replayed record was made under; its choices ran, not `routing`'s.
    replayed_routing: Option<String>,
    eviction: String,
    changed_share: f64,
    miss_rate: f64,
    logits: &'a [f32],
}

pub(crate) fn run(arguments: &Logits, global: &Global) -> anyhow::Result<()> {
    let replay = arguments.recording.read()?;
    // Every token is the prompt's: a policy that leaves them alone would do nothing.
    let engine = open_engine(arguments.model.as_deref(), &arguments.options, global, RoutingPrompt::Same, |_| {})?;
    let prompt = engine.tokenizer().encode_prompt(&arguments.prompt)?;
    say_what_is_lost(engine.tokenizer(), &arguments.prompt);
    let mut session = Session::new(&engine)?;
    let replayed_routing = arguments.recording.attach(replay, &mut session, global.quiet)?;
    session.prompt(&prompt)?;
    // A record that cannot be completed costs no result.
    let recorded = arguments.recording.finish(&mut session);
    let logits = session.logits();
    let mut output = std::io::stdout().lock();
    let counts = session.routing().total(Phase::Prompt);
    let prompt_policy = &engine.routing().prompt_policy;
    if global.json {
        let report = Report {
            setting: Setting::of(&engine),
            prompt_ids: &prompt,
            routing: prompt_policy.to_string(),
            replayed_routing,
            eviction: engine.routing().eviction.to_string(),
            changed_share: counts.changed_share(),
            miss_rate: counts.miss_rate(),
            logits,
        };
        write_json(&mut output, &report)?;
        return recorded;
    }
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: f32| libm::exp(f64::from(logit) - f64::from(max));
    let sum: f64 = logits.iter().copied().map(weight).sum();
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    writeln!(output, "{:>8}  {:>9}  {:>11}  piece", "id", "logit", "probability")?;
    for &id in ids.iter().take(arguments.top) {
        let logit = logits[id as usize];
        let probability = weight(logit) / sum;
        writeln!(
            output,
            "{id:>8}  {logit:>9.4}  {probability:>11.6}  {:?}",
            String::from_utf8_lossy(engine.tokenizer().piece(id).unwrap_or_default())
        )?;
    }
    if !global.quiet && (replayed_routing.is_some() || *prompt_policy != Policy::Original) {
        let routing =
            replayed_routing.map_or_else(|| prompt_policy.to_string(), |policy| format!("as recorded ({policy})"));
        let changed = 100.0 * counts.changed_share();
        report::say(report::dim(&format!("routing: {routing}, {changed:.1} % of the choices changed")));
    }
    recorded
}
