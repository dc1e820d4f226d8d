//! `moce trace`: records what routers say, and looks into what was recorded.

use super::{check_target, open_engine, write_json};
use crate::arguments::{
    Global, ModelOptions, RoutingPrompt, STUDY_CAPACITY, STUDY_CAPACITY_TEXT, Sampling, positive, whole, with_default,
};
use crate::report::{self, usage};
use crate::{interrupt, model_path};
use anyhow::{Context, bail};
use clap::{ArgGroup, Args, Subcommand, ValueHint};
use moce_engine::routing::{Phase, Precision, ScoreKind, StoredScores, TraceReader};
use moce_engine::tokenizer::SpecialTokens;
use moce_engine::{Engine, GenerateOptions, NewFile, RoutingRecorder, Sampler, Session, generate};
#[cfg(feature = "parquet")]
use moce_lab::export_parquet;
use moce_lab::{PerplexityOptions, TraceInfo, export_csv, import_route_csv, record_text, trace_info};
use serde::Serialize;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug, Args)]
pub(crate) struct Trace {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Run a text and write down what the routers said and what was chosen
    #[command(after_help = "Examples:\n  moce trace record -f text.txt --limit 65536 -o text.trace\n  \
        moce trace record model.gguf -p \"Once upon a time\" -n 200 --f16 -o story.trace")]
    Record(Box<Record>),
    /// Say what a trace holds, and check all of it
    #[command(after_help = "Example:\n  moce trace info text.trace")]
    Info(Info),
    /// Write a trace as a table
    #[command(
        after_help = "Examples:\n  moce trace export text.trace -o choices.csv\n  moce trace export text.trace --all | head"
    )]
    Export(Export),
    /// Make a trace from what another engine recorded (.route.csv of DriftWood and BigMoeOnEdge)
    #[command(after_help = "Example:\n  moce trace import qwen.route.csv -o qwen.trace")]
    Import(Import),
}

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)] // so that `--temp -1` is refused by its name
#[command(mut_arg("capacity", |option| with_default(option, STUDY_CAPACITY_TEXT)))]
#[command(mut_arg("routing_prompt", |option| with_default(option, "same; with -n: original")))]
#[command(mut_arg("ctx", |option| with_default(option, "a window; with -n: 4096, or the model's if smaller")))]
#[command(mut_arg("seed", |option| option.help("Seed of the random numbers [default: 0, so that a record can be repeated]")))]
#[command(mut_args(|option| match option.get_help_heading() {
    Some(Sampling::HEADING) => option.requires("tokens"),
    _ => option,
}))]
#[command(group(ArgGroup::new("text").args(["prompt", "file"]).required(true)))]
struct Record {
    /// GGUF file (of a split model, any part)
    #[arg(value_hint = ValueHint::FilePath)]
    model: Option<PathBuf>,
    /// The text
    #[arg(short, long, value_name = "TEXT")]
    prompt: Option<String>,
    /// A file with the text; `-` is standard input
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: Option<PathBuf>,
    /// The trace to write
    #[arg(short, long, value_name = "OUT", value_hint = ValueHint::FilePath)]
    output: PathBuf,
    /// Tokens to generate behind the text, which is then one prompt; 0: the text alone, window by window as in perplexity
    #[arg(short = 'n', long, value_name = "N", default_value_t = 0, value_parser = whole(0..=usize::MAX))]
    tokens: usize,
    /// Without -n: tokens of a window [default: 1024]
    #[arg(long, value_name = "N", value_parser = positive)]
    window: Option<usize>,
    /// Without -n: at most this many tokens of the text
    #[arg(long, value_name = "TOKENS", value_parser = positive)]
    limit: Option<usize>,
    /// Store scores in half precision: half the size, and near ties may fall the other way in a replay
    #[arg(long)]
    f16: bool,
    /// Overwrite OUT
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    options: ModelOptions,
}

#[derive(Debug, Args)]
struct Info {
    /// The trace
    #[arg(value_hint = ValueHint::FilePath)]
    trace: PathBuf,
}

#[derive(Debug, Args)]
struct Export {
    /// The trace
    #[arg(value_hint = ValueHint::FilePath)]
    trace: PathBuf,
    /// The file to write, as Parquet if it ends in .parquet, else as CSV [default: standard output]
    #[arg(short, long, value_name = "OUT", value_hint = ValueHint::FilePath)]
    output: Option<PathBuf>,
    /// A row for every expert with its score, not only for the chosen ones
    #[arg(long)]
    all: bool,
    /// Overwrite OUT
    #[arg(long, requires = "output")]
    force: bool,
}

#[derive(Debug, Args)]
struct Import {
    /// The .route.csv
    #[arg(value_hint = ValueHint::FilePath)]
    csv: PathBuf,
    /// The trace to write
    #[arg(short, long, value_name = "OUT", value_hint = ValueHint::FilePath)]
    output: PathBuf,
    /// Overwrite OUT
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(arguments: &Trace, global: &Global) -> anyhow::Result<()> {
    match &arguments.action {
        Action::Record(arguments) => record(arguments, global),
        Action::Info(arguments) => info(arguments, global),
        Action::Export(_) if global.json => Err(usage("a trace is exported as CSV or Parquet; leave --json away")),
        Action::Export(arguments) => export(arguments),
        Action::Import(arguments) => import(arguments, global),
    }
}

/// Opens a trace.
pub(super) fn open_trace(path: &Path) -> anyhow::Result<TraceReader<BufReader<File>>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    TraceReader::new(BufReader::new(file)).with_context(|| format!("{} cannot be read as a trace", path.display()))
}

fn record(arguments: &Record, global: &Global) -> anyhow::Result<()> {
    let text_alone = arguments.tokens == 0;
    if !text_alone && (arguments.window.is_some() || arguments.limit.is_some()) {
        return Err(usage("--window and --limit are for a text alone; with -n the text is one prompt"));
    }
    refuse_taken(&arguments.output, arguments.force)?;
    let text = match &arguments.file {
        Some(file) => model_path::read_text(file)?,
        None => arguments.prompt.clone().expect("clap asks for one of them"),
    };
    let window = arguments.window.unwrap_or(PerplexityOptions::default().window);
    let routing_prompt = if text_alone { RoutingPrompt::Same } else { RoutingPrompt::Original };
    let engine = open_engine(arguments.model.as_deref(), &arguments.options, global, routing_prompt, |options| {
        options.spare_slots = true;
        options.capacity.get_or_insert(STUDY_CAPACITY);
        if text_alone && arguments.options.common.ctx.is_none() {
            options.context = Some(window);
        }
    })?;
    if engine.plan().experts.is_empty() {
        return Err(moce_lab::Error::NoExperts.into());
    }
    let mut session = Session::new(&engine)?;
    let precision = if arguments.f16 { Precision::F16 } else { Precision::F32 };
    let scores = Some(StoredScores { kind: ScoreKind::Logits, precision });
    interrupt::listen();
    session.observe(Box::new(RoutingRecorder::create(&arguments.output, &session, scores, arguments.force)?));
    let tokens = if text_alone {
        record_windows(&mut session, &text, (window, arguments.limit), global)?
    } else {
        record_answer(arguments, &engine, &mut session, &text)?
    };
    if interrupt::happened() {
        // Half a trace is none.
        return Ok(());
    }
    if let Some(observer) = session.stop_observing() {
        observer.finish()?;
    }
    let recorded = Recorded::new(tokens, &session, &arguments.output);
    if global.json {
        let mut output = std::io::stdout().lock();
        write_json(&mut output, &recorded)?;
    } else if !global.quiet {
        report::say(report::dim(&recorded.line()));
    }
    Ok(())
}

/// What a record says of itself.
#[derive(Serialize)]
struct Recorded {
    file: String,
    tokens: usize,
    routing: String,
    routing_prompt: String,
    misses: u64,
    miss_rate: f64,
    changed_selections: u64,
    changed_share: f64,
}

impl Recorded {
    fn new(tokens: usize, session: &Session, file: &Path) -> Recorded {
        let routing = session.routing();
        let mut counts = routing.total(Phase::Prompt);
        counts += routing.total(Phase::Generation);
        Recorded {
            file: file.display().to_string(),
            tokens,
            routing: routing.options().policy.to_string(),
            routing_prompt: routing.options().prompt_policy.to_string(),
            misses: counts.misses,
            miss_rate: counts.miss_rate(),
            changed_selections: counts.changed,
            changed_share: counts.changed_share(),
        }
    }

    fn line(&self) -> String {
        let routing = report::routing(&self.routing, &self.routing_prompt);
        let (misses, changed) = (100.0 * self.miss_rate, 100.0 * self.changed_share);
        format!(
            "{} tokens recorded in {} | misses: {misses:.1} % | routing: {routing}, {changed:.1} % of the choices changed",
            self.tokens, self.file
        )
    }
}

/// The text alone, window by window. Gives the number of tokens.
fn record_windows(
    session: &mut Session,
    text: &str,
    (window, limit): (usize, Option<usize>),
    global: &Global,
) -> anyhow::Result<usize> {
    let mut tokens = session.engine().tokenizer().encode(text, SpecialTokens::AsText)?;
    tokens.truncate(limit.unwrap_or(usize::MAX));
    if tokens.is_empty() {
        bail!("the text is empty");
    }
    let bar = report::progress_bar(global.quiet, "{pos}/{len} tokens");
    bar.set_length(tokens.len() as u64);
    record_text(session, &tokens, window, &mut |done, _| {
        bar.set_position(done as u64);
        if interrupt::happened() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    bar.finish_and_clear();
    Ok(tokens.len())
}

/// The text as a prompt and what the model writes behind it. Gives the number of tokens that were run.
fn record_answer(arguments: &Record, engine: &Arc<Engine>, session: &mut Session, text: &str) -> anyhow::Result<usize> {
    let prompt = engine.tokenizer().encode_prompt(text)?;
    // Repeatable unless another seed is asked for.
    let mut sampler = Sampler::new(arguments.sampling.sampler_options(0), engine.hyperparameters().vocabulary)?;
    // The last token is not run, so that one more is asked for.
    let options = GenerateOptions {
        max_tokens: arguments.tokens.saturating_add(1),
        stop: Vec::new(),
        ignore_end: false,
        pace: None,
    };
    let generation = generate(session, &mut sampler, &prompt, &options, &mut |_| {
        if interrupt::happened() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(generation.prompt.tokens + generation.generation.tokens)
}

fn info(arguments: &Info, global: &Global) -> anyhow::Result<()> {
    let info = trace_info(open_trace(&arguments.trace)?).with_context(|| arguments.trace.display().to_string())?;
    let mut output = std::io::stdout().lock();
    if global.json {
        write_json(&mut output, &info)?;
        return Ok(());
    }
    print(&info, &mut output)?;
    Ok(())
}

fn print(info: &TraceInfo, output: &mut impl Write) -> std::io::Result<()> {
    let identity = info.identity.as_deref().unwrap_or("unknown");
    writeln!(output, "model     {} ({}), identity {identity}", info.model, info.architecture)?;
    writeln!(
        output,
        "experts   {} a layer, {} a token, {} layers, {} an expert",
        info.experts,
        info.experts_per_token,
        info.layers,
        range(&info.expert_bytes, |bytes| report::size(*bytes))
    )?;
    writeln!(output, "tokens    {} given, {} generated", info.prompt_tokens, info.generated_tokens)?;
    writeln!(output, "starts    {} sequences, {} windows", info.sequences, info.windows)?;
    match info.precision {
        Some(precision) => writeln!(output, "scores    {}, {precision}", info.scores)?,
        None => writeln!(output, "scores    none: selections alone")?,
    }
    writeln!(output, "routing   {} (prompt: {})", info.routing, info.routing_prompt)?;
    writeln!(
        output,
        "caches    {} experts a layer, {}, {}, start {}",
        range(&info.capacity, |capacity| capacity.to_string()),
        info.eviction,
        info.touch,
        info.start
    )?;
    let mean = info.effective_experts.iter().sum::<f64>() / info.effective_experts.len().max(1) as f64;
    writeln!(output, "usage     {mean:.1} of {} experts in effect, on average", info.experts)?;
    writeln!(output, "file      {}, whole", report::size(info.trace_bytes))
}

/// `A`, or `A to B`.
fn range<T: Ord>(values: &[T], text: impl Fn(&T) -> String) -> String {
    match (values.iter().min(), values.iter().max()) {
        (Some(least), Some(most)) if least == most => text(least),
        (Some(least), Some(most)) => format!("{} to {}", text(least), text(most)),
        _ => "no".to_owned(),
    }
}

fn export(arguments: &Export) -> anyhow::Result<()> {
    let reader = open_trace(&arguments.trace)?;
    match &arguments.output {
        None => {
            export_csv(reader, arguments.all, &mut BufWriter::new(std::io::stdout().lock()))?;
        }
        Some(path) => {
            interrupt::listen(); // before there is a file that Ctrl-C would leave
            let mut file = new_file(path, arguments.force)?;
            let mut output = interrupt::Writer(&mut file);
            if path.extension().is_some_and(|extension| extension == "parquet") {
                export_parquet(reader, arguments.all, &mut output)?;
            } else {
                export_csv(reader, arguments.all, &mut output)?;
            }
            file.finish().with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(not(feature = "parquet"))]
fn export_parquet(_: TraceReader<BufReader<File>>, _: bool, _: &mut impl Write) -> anyhow::Result<u64> {
    bail!("this moce was built without Parquet; build it with --features parquet, or export to a .csv")
}

fn import(arguments: &Import, global: &Global) -> anyhow::Result<()> {
    let input = File::open(&arguments.csv).with_context(|| format!("cannot open {}", arguments.csv.display()))?;
    interrupt::listen();
    let mut file = new_file(&arguments.output, arguments.force)?;
    let (_, tokens) = import_route_csv(BufReader::new(input), &mut interrupt::Writer(&mut file))
        .with_context(|| format!("{} cannot be imported", arguments.csv.display()))?;
    file.finish().with_context(|| format!("cannot write {}", arguments.output.display()))?;
    let imported = Imported { file: arguments.output.display().to_string(), tokens };
    if global.json {
        write_json(&mut std::io::stdout().lock(), &imported)?;
    } else if !global.quiet {
        report::say(report::dim(&format!("{tokens} tokens written to {}", imported.file)));
    }
    Ok(())
}

/// What an import says of itself.
#[derive(Serialize)]
struct Imported {
    file: String,
    tokens: u64,
}

fn new_file(path: &Path, force: bool) -> anyhow::Result<NewFile> {
    refuse_taken(path, force)?;
    NewFile::create(path, force).with_context(|| format!("cannot write {}", path.display()))
}

/// Before any work is done for a file that would not be written.
fn refuse_taken(path: &Path, force: bool) -> anyhow::Result<()> {
    check_target(path)?;
    if !force && path.exists() {
        bail!("{} exists already; give another name or --force", path.display());
    }
    Ok(())
}
