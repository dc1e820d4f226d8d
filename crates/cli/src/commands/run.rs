//! `moce run`: generates text from a prompt.

use super::{IN_VAIN, Setting, check_target, leans_in_vain, open_engine, say_what_is_lost, write_json};
use crate::arguments::{Global, ModelOptions, Recording, RoutingPrompt, Sampling, parse_positive, whole};
use crate::report::usage;
use crate::status::{PromptProgress, Status};
use crate::{interrupt, prompt, report};
use anyhow::bail;
use clap::{Args, ValueHint};
use moce_engine::routing::Policy;
use moce_engine::{
    CacheState, Engine, GenerateOptions, Generation, Pace, PhaseReport, Piece, Sampler, Session, generate,
};
use serde::Serialize;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)] // so that `--temp -1` is refused by its name
pub(crate) struct Run {
    /// GGUF file (of a split model, any part)
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) model: Option<PathBuf>,
    /// The text to go on from
    #[arg(short, long, value_name = "TEXT", conflicts_with = "file")]
    pub(crate) prompt: Option<String>,
    /// A file with the text to go on from, without the line end behind it; `-` is standard input, which is also read without -p and -f
    /// unless it is a terminal
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    /// Most tokens to generate
    #[arg(short = 'n', long, value_name = "N", default_value_t = 256, value_parser = whole(0..=usize::MAX))]
    pub(crate) tokens: usize,
    #[command(flatten)]
    pub(crate) sampling: Sampling,
    /// End before this text (may be given several times)
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// Go on past the model's end tokens
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// Take up which experts were cached from this file, if it is there, and save it at the end
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "start")]
    pub(crate) cache_state: Option<PathBuf>,
    /// Move the profile's lambda between 0 and its limit to hold so many tokens/s; such a run depends on time
    #[arg(long, value_name = "TOKENS/S", conflicts_with = "replay_routing", value_parser = parse_positive)]
    pub(crate) target_tps: Option<f32>,
    /// Show speed, hits and flash traffic while text is written: in the terminal's title, or as a line where the text goes elsewhere
    #[arg(long)]
    pub(crate) status: bool,
    #[command(flatten)]
    pub(crate) recording: Recording,
    #[command(flatten)]
    pub(crate) options: ModelOptions,
}

pub(crate) fn run(arguments: &Run, global: &Global) -> anyhow::Result<()> {
    // clap's `requires` is waived where something that conflicts with a profile is given.
    if arguments.target_tps.is_some() && arguments.options.profile.is_none() {
        return Err(usage("--target-tps moves lambda below the limit of a --profile, and there is none"));
    }
    if let Some(path) = &arguments.cache_state {
        check_target(path)?;
    }
    let source = prompt::Source::open(arguments)?;
    let replay = arguments.recording.read()?;
    let engine = open_engine(arguments.model.as_deref(), &arguments.options, global, RoutingPrompt::Original, |_| {})?;
    // Not before: whoever names a wrong model is not kept waiting for a prompt.
    let given = source.read(engine.context())?;
    let is_built_in = given.is_none();
    let text = given.unwrap_or_else(|| prompt::BUILT_IN.to_owned());
    let prompt = engine.tokenizer().encode_prompt(&text)?;
    say_what_is_lost(engine.tokenizer(), &text);
    let sampling = arguments.sampling.sampler_options(seed_from_clock());
    let seed = sampling.seed;
    if is_built_in && !global.json && !global.quiet {
        let _ = write!(std::io::stderr(), "{}", report::dim(&text));
    }
    interrupt::listen();

    let mut session = Session::new(&engine)?;
    let mut setting = Setting::of(&engine);
    if let Some(path) = arguments.cache_state.as_deref().filter(|path| path.exists()) {
        session.warm_start(&CacheState::read(path)?)?;
        setting.start = "given".to_owned();
    }
    let replayed = arguments.recording.attach(replay, &mut session, global.quiet)?;
    let mut sampler = Sampler::new(sampling, engine.hyperparameters().vocabulary)?;
    let options = GenerateOptions {
        max_tokens: arguments.tokens,
        stop: arguments.stop.clone(),
        ignore_end: arguments.ignore_eos,
        pace: arguments.pace(&engine)?,
    };
    let mut written = Ok(());
    let mut output = std::io::stdout().lock();
    let mut status = Status::new(arguments.status);
    let progress = PromptProgress::new(!global.quiet && !arguments.status);
    let generation = generate(&mut session, &mut sampler, &prompt, &options, &mut |piece| {
        progress.show(prompt.len(), piece.prompt_left);
        written = write_piece(&mut output, &piece, global.json);
        status.add(&piece.cost);
        if written.is_err() || interrupt::happened() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    drop((status, progress));
    // A state or record that cannot be saved costs no output.
    let saved = arguments.cache_state.as_ref().map_or(Ok(()), |path| session.cache_state()?.write(path));
    let recorded = arguments.recording.finish(&mut session);
    written?;
    if global.json {
        serde_json::to_writer(&mut output, &Summary::new(setting, &engine, &generation, seed, replayed.as_deref()))?;
    }
    writeln!(output)?;
    output.flush()?;
    if !global.quiet {
        report::say(report::dim(&summary_line(&generation, seed, &engine, replayed.as_deref())));
    }
    recorded?;
    Ok(saved?)
}

impl Run {
    /// The wanted speed with the engine's policy as the limit.
    fn pace(&self, engine: &Engine) -> anyhow::Result<Option<Pace>> {
        let Some(tokens_per_second) = self.target_tps.map(f64::from) else { return Ok(None) };
        let policy = &engine.routing().policy;
        match Pace::new(tokens_per_second, policy.clone()) {
            Some(pace) => Ok(Some(pace)),
            None => bail!("--target-tps moves the lambda of cache-prior, and the profile's policy is {policy}"),
        }
    }
}

fn write_piece(output: &mut impl Write, piece: &Piece<'_>, json: bool) -> std::io::Result<()> {
    if json {
        if !piece.text.is_empty() {
            write_json(&mut *output, &PieceLine::new(piece))?;
        }
    } else {
        output.write_all(piece.text.as_bytes())?;
    }
    output.flush()
}

/// A new seed for every run; it is printed, so that the run can be repeated.
fn seed_from_clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Below 2^32: short enough to type.
    (now.as_nanos() as u64 ^ u64::from(std::process::id()) << 20) & 0xFFFF_FFFF
}

fn summary_line(generation: &Generation, seed: u64, engine: &Engine, replayed: Option<&str>) -> String {
    let rate = |phase: &PhaseReport| format!("{} tokens, {:.1} tokens/s", phase.tokens, phase.tokens_per_second());
    let mut line = format!("prompt: {} | generation: {}", rate(&generation.prompt), rate(&generation.generation));
    let routing = engine.routing();
    if engine.plan().streams() && generation.generation.tokens > 0 {
        let tokens = generation.generation.tokens as u64;
        line += &format!(
            " | hits: {:.1} % | flash: {} a token, {:.0} % of the time waiting",
            100.0 * generation.generation.counts.hit_rate(),
            report::size(generation.generation.traffic.flash_bytes / tokens),
            100.0 * generation.generation.traffic.waited.as_secs_f64() / generation.generation.time.as_secs_f64(),
        );
    }
    if let Some(policy) = replayed {
        line += &format!(" | routing: as recorded ({policy}){}", changed(generation));
    } else if routing.policy != Policy::Original || routing.prompt_policy != Policy::Original {
        let pace = generation.pace.map_or(String::new(), |pace| {
            format!(" (its lambda moved: {:.0} % of it in the mean)", 100.0 * pace.mean_share)
        });
        let policies = report::routing(&routing.policy.to_string(), &routing.prompt_policy.to_string());
        line += &format!(" | routing: {policies}{pace}{}", changed(generation));
        if leans_in_vain(engine) {
            line += &format!(" ({IN_VAIN})");
        }
    }
    if let Some(bytes) = report::peak_memory() {
        line += &format!(" | peak memory: {}", report::size(bytes));
    }
    line += &format!(" | seed: {seed} | ended: {}", generation.stop_reason.name().replace('_', " "));
    if generation.stop_reason == moce_engine::StopReason::ContextFull {
        line += " (--ctx sets the context length)";
    }
    line
}

/// Of each phase by itself, for they may run under two policies.
fn changed(generation: &Generation) -> String {
    let share = |phase: &PhaseReport| 100.0 * phase.counts.changed_share();
    format!(
        ", {:.1} % of the choices changed (prompt: {:.1} %)",
        share(&generation.generation),
        share(&generation.prompt)
    )
}

/// One line of streamed JSON output: text, and what its tokens cost.
#[derive(Serialize)]
struct PieceLine<'a> {
    piece: &'a str,
    tokens: usize,
    wait_seconds: f64,
    compute_seconds: f64,
    flash_bytes: u64,
    hits: u64,
    late_hits: u64,
    misses: u64,
}

impl<'a> PieceLine<'a> {
    fn new(piece: &Piece<'a>) -> PieceLine<'a> {
        let PhaseReport { tokens, time, counts, traffic, .. } = piece.cost;
        PieceLine {
            piece: piece.text,
            tokens,
            wait_seconds: traffic.waited.as_secs_f64(),
            compute_seconds: time.saturating_sub(traffic.waited).as_secs_f64(),
            flash_bytes: traffic.flash_bytes,
            hits: counts.hits,
            late_hits: traffic.late_hits,
            misses: counts.misses,
        }
    }
}

/// The last line of JSON output.
#[derive(Serialize)]
struct Summary<'a> {
    #[serde(flatten)]
    setting: Setting,
    isa: &'static str,
    io: &'a str,
    threads: usize,
    ctx: usize,
    memory_budget_bytes: Option<u64>,
    memory_plan_bytes: u64,
    peak_memory_bytes: Option<u64>,
    capacity: &'a [usize],
    resident_capacity: &'a [usize],
    routing: String,
    /// The speed that `routing`'s lambda moved for, between 0 and what it says; and what share of it applied.
    #[serde(flatten)]
    pace: Option<PaceSummary>,
    /// The policy that a replayed record was made under; its choices ran, not `routing`'s.
    replayed_routing: Option<&'a str>,
    routing_prompt: String,
    eviction: String,
    changed_selections: u64,
    changed_share: f64,
    top_j_kept: f64,
    hits: u64,
    misses: u64,
    miss_rate: f64,
    misses_per_token: f64,
    flash_bytes: u64,
    seed: u64,
    text: &'a str,
    token_ids: &'a [u32],
    stop_reason: &'static str,
    prompt: PhaseSummary,
    generation: PhaseSummary,
}

#[derive(Serialize)]
struct PaceSummary {
    target_tps: f64,
    lambda_share_mean: f64,
    lambda_share_last: f64,
}

#[derive(Serialize)]
struct PhaseSummary {
    tokens: usize,
    seconds: f64,
    tokens_per_second: f64,
    hits: u64,
    misses: u64,
    miss_rate: f64,
    misses_per_token: f64,
    changed_selections: u64,
    changed_share: f64,
    logical_bytes: u64,
    flash_bytes: u64,
    fetches: u64,
    late_hits: u64,
    prefetch_bytes: u64,
    prefetch_useful_bytes: u64,
    wait_seconds: f64,
    compute_seconds: f64,
}

impl PhaseSummary {
    fn new(phase: &PhaseReport) -> PhaseSummary {
        PhaseSummary {
            tokens: phase.tokens,
            seconds: phase.time.as_secs_f64(),
            tokens_per_second: phase.tokens_per_second(),
            hits: phase.counts.hits,
            misses: phase.counts.misses,
            miss_rate: phase.counts.miss_rate(),
            misses_per_token: phase.counts.misses as f64 / phase.tokens.max(1) as f64,
            changed_selections: phase.counts.changed,
            changed_share: phase.counts.changed_share(),
            logical_bytes: phase.logical_bytes,
            flash_bytes: phase.traffic.flash_bytes,
            fetches: phase.traffic.fetches,
            late_hits: phase.traffic.late_hits,
            prefetch_bytes: phase.traffic.prefetch_bytes,
            prefetch_useful_bytes: phase.traffic.prefetch_useful_bytes,
            wait_seconds: phase.traffic.waited.as_secs_f64(),
            compute_seconds: phase.time.saturating_sub(phase.traffic.waited).as_secs_f64(),
        }
    }
}

impl<'a> Summary<'a> {
    fn new(
        setting: Setting,
        engine: &'a Engine,
        generation: &'a Generation,
        seed: u64,
        replayed: Option<&'a str>,
    ) -> Summary<'a> {
        let mut counts = generation.prompt.counts;
        counts += generation.generation.counts;
        let tokens = generation.prompt.tokens + generation.generation.tokens;
        Summary {
            setting,
            isa: engine.cpu().isa().name(),
            io: engine.flash(),
            threads: engine.cpu().threads(),
            ctx: engine.context(),
            memory_budget_bytes: engine.plan().budget_bytes,
            memory_plan_bytes: engine.plan().total_bytes(),
            peak_memory_bytes: report::peak_memory(),
            capacity: &engine.plan().capacity,
            resident_capacity: &engine.plan().resident,
            routing: engine.routing().policy.to_string(),
            pace: generation.pace.map(|pace| PaceSummary {
                target_tps: pace.tokens_per_second,
                lambda_share_mean: pace.mean_share,
                lambda_share_last: pace.last_share,
            }),
            replayed_routing: replayed,
            routing_prompt: engine.routing().prompt_policy.to_string(),
            eviction: engine.routing().eviction.to_string(),
            changed_selections: counts.changed,
            changed_share: counts.changed_share(),
            top_j_kept: counts.top_kept(),
            hits: counts.hits,
            misses: counts.misses,
            miss_rate: counts.miss_rate(),
            misses_per_token: counts.misses as f64 / tokens.max(1) as f64,
            flash_bytes: generation.prompt.traffic.flash_bytes + generation.generation.traffic.flash_bytes,
            seed,
            text: &generation.text,
            token_ids: &generation.token_ids,
            stop_reason: generation.stop_reason.name(),
            prompt: PhaseSummary::new(&generation.prompt),
            generation: PhaseSummary::new(&generation.generation),
        }
    }
}
