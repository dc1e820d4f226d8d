//! `moce sweep`: perplexity and misses over a grid of policies and capacities, with a report; `moce sweep merge` joins shards.

use super::simulate::parse_time;
use super::{announce, model_context, write_json};
use crate::arguments::{
    CommonOptions, Global, Policies, STUDY_CAPACITY_TEXT, Scoring, WrittenCapacity, parse_budget, parse_policies,
    parse_written_capacity, with_default,
};
use crate::{interrupt, model_path, report, size};
use anyhow::bail;
use clap::{Args, Subcommand, ValueHint};
use moce_engine::{Budget, Capacity, Engine, EngineOptions};
use moce_gguf::Gguf;
use moce_lab::{CellSummary, Shard, SweepGrid, SweepOptions, TimingModel, merge, sweep};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(mut_arg("ctx", |option| with_default(option, Scoring::CONTEXT)))]
pub(crate) struct Sweep {
    #[command(subcommand)]
    pub(crate) merge: Option<Action>,
    /// GGUF file (of a split model, any part)
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) model: Option<PathBuf>,
    /// The text to score; `-` is standard input
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath, required = true)]
    pub(crate) file: Option<PathBuf>,
    /// Policies: `;` between them, lists `a|b` and ranges `from..to/steps` as parameters; the original is always added
    #[arg(long, value_name = "SPEC", value_parser = parse_policies, required = true)]
    pub(crate) routing_grid: Option<Policies>,
    /// Experts cached in each layer, several between commas: numbers, shares such as 50%, or files of one number per layer
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        value_parser = parse_written_capacity,
        default_value = STUDY_CAPACITY_TEXT
    )]
    pub(crate) capacity: Vec<WrittenCapacity>,
    /// The folder that takes results, plots and report; a sweep that was broken off goes on where it was
    #[arg(short, long, value_name = "DIR", value_hint = ValueHint::DirPath, required = true)]
    pub(crate) output: Option<PathBuf>,
    /// Run only the i-th of n parts of the cells
    #[arg(long, value_name = "I/N")]
    pub(crate) shard: Option<Shard>,
    #[command(flatten)]
    pub(crate) scoring: Scoring,
    #[command(flatten)]
    pub(crate) timing: TimingOptions,
    /// What everything may take: a size such as 3GiB; `auto`: what is free; `all`: every expert stays in memory
    #[arg(long, value_name = "SIZE|auto|all", value_parser = parse_budget, default_value = "auto")]
    pub(crate) memory: Budget,
    #[command(flatten)]
    pub(crate) options: CommonOptions,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Join the folders of shards and write the report of the whole
    Merge(Merge),
}

#[derive(Debug, Args)]
pub(crate) struct Merge {
    /// Folders of shards
    #[arg(value_name = "DIR", required = true, value_hint = ValueHint::DirPath)]
    pub(crate) folders: Vec<PathBuf>,
    /// The folder that takes the whole; it may be one of them
    #[arg(short, long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) timing: TimingOptions,
}

/// The timing model of the report's speeds: nothing of reading is hidden behind computing.
#[derive(Debug, Args)]
pub(crate) struct TimingOptions {
    /// Bytes a second from flash, such as 1.5GB: the report then has tokens/s too
    #[arg(long, value_name = "SIZE", value_parser = size::parse_rate)]
    pub(crate) flash_bandwidth: Option<u64>,
    /// Milliseconds of computing a token, for tokens/s
    #[arg(long, value_name = "MS", value_parser = parse_time, requires = "flash_bandwidth", default_value = "0")]
    pub(crate) compute_ms: f64,
}

impl TimingOptions {
    fn timing(&self) -> Option<TimingModel> {
        let TimingOptions { flash_bandwidth, compute_ms } = *self;
        flash_bandwidth.map(|bytes| TimingModel { flash_bandwidth: bytes as f64, flash_latency_us: 0.0, compute_ms })
    }
}

pub(crate) fn run(arguments: &Sweep, global: &Global) -> anyhow::Result<()> {
    if let Some(Action::Merge(Merge { folders, output, timing })) = &arguments.merge {
        let rows = merge(folders, output, timing.timing())?;
        return print(&rows, output, global);
    }
    let required = "clap asks for it";
    let output = arguments.output.as_deref().expect(required);
    if output.exists() && !output.is_dir() {
        bail!("{} is a file; give the name of a folder", output.display());
    }
    let text = model_path::read_text(arguments.file.as_deref().expect(required))?;
    let capacities = arguments.capacity.iter().map(|WrittenCapacity(text, capacity)| (text.clone(), capacity.clone()));
    let engine = open(arguments, global)?;
    let options = SweepOptions {
        grid: SweepGrid {
            policies: arguments.routing_grid.clone().expect(required).0,
            capacities: capacities.collect(),
            evictions: vec![arguments.options.eviction],
            base: engine.routing().clone(),
        },
        shard: arguments.shard.unwrap_or(Shard::WHOLE),
        perplexity: arguments.scoring.options(),
        timing: arguments.timing.timing(),
    };
    interrupt::listen();
    let bar = report::progress_bar(global.quiet, "{msg}");
    let rows = sweep(&engine, &text, &options, output, &mut |at| {
        bar.set_length((at.cells * at.tokens) as u64);
        bar.set_position((at.number * at.tokens + at.scored) as u64);
        bar.set_message(format!("cell {} of {}: {}", at.number + 1, at.cells, at.cell));
        if interrupt::happened() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .map_err(|error| interrupt::resumable(error, false))?;
    bar.finish_and_clear();
    print(&rows, output, global)
}

/// The engine of all cells: what is logically cached belongs to each cell's session, so as much as possible is resident, and at least what the
/// largest of them caches.
fn open(arguments: &Sweep, global: &Global) -> anyhow::Result<Arc<Engine>> {
    let path = model_path::resolve(arguments.model.as_deref())?;
    let mut options = arguments.options.engine_options(arguments.memory, None, || model_context(&path))?;
    arguments.scoring.prepare(&mut options);
    let gguf = Gguf::open(&path)?;
    options.capacity = Some(largest(&arguments.capacity, &gguf, &options)?);
    let engine = Arc::new(Engine::load(&gguf, &options)?);
    announce(&engine, None, global);
    Ok(engine)
}

/// In each layer, the most that any of the capacities says.
fn largest(capacities: &[WrittenCapacity], gguf: &Gguf, options: &EngineOptions) -> anyhow::Result<Capacity> {
    // Asked only what layers there are, which no budget changes.
    let plan = Engine::plan_for(gguf, &EngineOptions { memory: Budget::All, ..options.clone() })?;
    let mut largest = vec![0; plan.experts.len()];
    for WrittenCapacity(_, capacity) in capacities {
        for (largest, experts) in largest.iter_mut().zip(plan.resolve_capacity(capacity)?) {
            *largest = experts.max(*largest);
        }
    }
    Ok(Capacity::PerLayer(largest))
}

fn print(rows: &[CellSummary], folder: &Path, global: &Global) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    if global.json {
        write_json(&mut output, rows)?;
        return Ok(());
    }
    writeln!(
        output,
        "capacity  eviction  perplexity  {:<26} misses  changed  routing (*: not beaten)",
        "rise (95 % interval)"
    )?;
    for row in rows {
        let kl = match (row.kl_mean, row.top1_agreement) {
            (Some(kl), Some(agreement)) => format!(" (KL {kl:.4}, same likeliest token {:.1} %)", 100.0 * agreement),
            _ => String::new(),
        };
        writeln!(
            output,
            "{:<9} {:<9} {:>10.4}  {:<25} {:>5.1} % {:>6.1} %  {}{}{kl}",
            row.capacity,
            row.eviction,
            row.perplexity,
            row.rise_text(),
            100.0 * row.miss_rate,
            100.0 * row.changed_share,
            row.routing,
            if row.on_front { " *" } else { "" },
        )?;
    }
    // All cells are of one text.
    if let Some(why) = rows.iter().find_map(CellSummary::why_no_interval) {
        writeln!(output, "({why})")?;
    }
    if !global.quiet {
        report::say(format_args!("the report is {}", folder.join("report.html").display()));
    }
    Ok(())
}
