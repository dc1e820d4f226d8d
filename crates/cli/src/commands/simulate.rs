//! `moce simulate`: what caches and policies would do with a recorded trace.

use super::trace::open_trace;
use super::write_json;
use crate::arguments::{
    Global, Policies, RoutingPrompt, STUDY_CAPACITY, parse_capacity, parse_policies, parse_routing, parse_start,
    positive,
};
use crate::report::usage;
use crate::{report, size};
use anyhow::Context;
use clap::{Args, ValueEnum, ValueHint};
use moce_engine::routing::{EvictionSpec, Policy, Start, TouchOrder};
use moce_lab::{
    GlobalOptions, SimulateOptions, SimulatedCell, SimulatedPhase, SimulationReport, TimingModel, simulate,
    simulate_global,
};
use std::io::Write;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)] // so that `--compute-ms -1` is refused by its name
pub(crate) struct Simulate {
    /// A trace, as `moce trace record` or `moce trace import` writes it
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) trace: PathBuf,
    /// Routing policies to try, with lists and ranges: `original;cache-prior:lambda=0..0.25/5,j=1|2`. A trace does not react to
    /// changed choices, so what they cost in quality takes `moce perplexity` or `moce sweep`
    #[arg(long, value_name = "SPEC", value_parser = parse_policies)]
    pub(crate) routing_grid: Vec<Policies>,
    /// The policy for prompt tokens
    #[arg(long, value_enum, value_name = "original|same", default_value = "same")]
    pub(crate) routing_prompt: RoutingPrompt,
    /// Experts cached in each layer, several between commas: numbers, shares such as 50%, or files of one number per layer; with
    /// `--scope global` sizes such as 4000MiB [default: 50%]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) capacity: Vec<String>,
    /// Which cached expert leaves, several between commas: lru, lfu, s3fifo, score; Belady's bound comes by itself
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = parse_routing::<EvictionSpec>, default_value = "lru")]
    pub(crate) eviction: Vec<EvictionSpec>,
    /// A cache in each layer, or one for all layers by bytes
    #[arg(long, value_enum, default_value = "layer")]
    pub(crate) scope: Scope,
    /// With `--scope global`: prompt tokens that look up together [default: the whole prompt, or window of a text]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) prompt_batch: Option<usize>,
    /// In which order a token's experts become most recent
    #[arg(long, value_name = "strong-first|weak-first", value_parser = parse_routing::<TouchOrder>, default_value = "strong-first")]
    pub(crate) touch: TouchOrder,
    /// What is cached where a text starts: empty, first, random:SEED, or a file of ids, a line a layer
    #[arg(long, value_name = "START", value_parser = parse_start, default_value = "empty")]
    pub(crate) start: Start,
    /// Bytes a second from flash, such as 1.5GB: predicts tokens per second
    #[arg(long, value_name = "SIZE", value_parser = size::parse_rate)]
    pub(crate) flash_bandwidth: Option<u64>,
    /// Microseconds from asking flash to the first byte
    #[arg(long, value_name = "US", value_parser = parse_time, requires = "flash_bandwidth", default_value = "0")]
    pub(crate) flash_latency_us: f64,
    /// Milliseconds of computing a token
    #[arg(long, value_name = "MS", value_parser = parse_time, requires = "flash_bandwidth", default_value = "0")]
    pub(crate) compute_ms: f64,
}

/// Where caches are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scope {
    /// A cache in each layer.
    Layer,
    /// One cache by bytes.
    Global,
}

pub(super) fn parse_time(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|time: &f64| time.is_finite() && *time >= 0.0)
        .ok_or_else(|| "expected a number of at least 0".into())
}

pub(crate) fn run(arguments: &Simulate, global: &Global) -> anyhow::Result<()> {
    let timing = arguments.flash_bandwidth.map(|bandwidth| TimingModel {
        flash_bandwidth: bandwidth as f64,
        flash_latency_us: arguments.flash_latency_us,
        compute_ms: arguments.compute_ms,
    });
    let cannot = || format!("cannot simulate {}", arguments.trace.display());
    let report = match arguments.scope {
        Scope::Layer => {
            let options = layer_options(arguments, timing)?;
            simulate(open_trace(&arguments.trace)?, &options).with_context(cannot)?
        }
        Scope::Global => {
            let options = global_options(arguments, timing)?;
            simulate_global(open_trace(&arguments.trace)?, &options).with_context(cannot)?
        }
    };
    if !global.quiet && report.busy_seconds > 0.0 {
        let line = format!(
            "{} selections simulated, {:.1} million a second and core",
            report.simulated_selections,
            report.selections_per_second() / 1e6
        );
        report::say(report::dim(&line));
    }
    if !global.quiet && arguments.prompt_batch != Some(1) {
        warn_of_large_batches(&report);
    }
    let original = Policy::Original.to_string();
    let is_original = [&report.recorded_routing, &report.recorded_routing_prompt].iter().all(|&name| *name == original);
    // Another policy than the recorded ones, or the same one beside other caches, is not where the scores come from.
    let is_estimate = |cell: &SimulatedCell| match cell.changed_selections {
        Some(changed) => !is_original || changed > 0,
        None => false,
    };
    if !global.quiet && report.cells.iter().any(is_estimate) {
        report::say(report::dim(
            "misses of other choices than the recorded ones are an estimate: later scores are those of the recorded run",
        ));
    }
    let mut output = std::io::stdout().lock();
    if global.json {
        write_json(&mut output, &report)?;
    } else {
        print(&report, &mut output)?;
    }
    Ok(())
}

/// A prompt is one batch, and so is a window of a text: it finds only what batches before it have left.
fn warn_of_large_batches(report: &SimulationReport) {
    let has_prompts = report.cells.iter().any(|cell| cell.prompt.tokens > 0);
    let Some(batches) = report.batches_per_start.filter(|&batches| has_prompts && batches < 2.0) else { return };
    report::say(format_args!(
        "prompt tokens look up together, so a layer asks the cache {batches:.1} times a text or window and finds next to nothing; \
         --prompt-batch 1 looks up token by token"
    ));
}

fn layer_options(arguments: &Simulate, timing: Option<TimingModel>) -> anyhow::Result<SimulateOptions> {
    if arguments.prompt_batch.is_some() {
        return Err(usage("--prompt-batch belongs to --scope global; caches in each layer are asked token by token"));
    }
    let mut policies: Vec<Policy> = arguments.routing_grid.iter().flat_map(|grid| &grid.0).cloned().collect();
    if policies.is_empty() {
        policies.push(Policy::Original);
    }
    let capacity = |text: &String| parse_capacity(text).map_err(|why| usage(format!("--capacity {text}: {why}")));
    let mut capacities = arguments.capacity.iter().map(capacity).collect::<anyhow::Result<Vec<_>>>()?;
    if capacities.is_empty() {
        capacities.push(STUDY_CAPACITY);
    }
    Ok(SimulateOptions {
        policies,
        prompts_too: matches!(arguments.routing_prompt, RoutingPrompt::Same),
        capacities,
        evictions: arguments.eviction.clone(),
        touch: arguments.touch,
        start: arguments.start.clone(),
        timing,
    })
}

fn global_options(arguments: &Simulate, timing: Option<TimingModel>) -> anyhow::Result<GlobalOptions> {
    if arguments.routing_grid.iter().flat_map(|grid| &grid.0).any(|policy| *policy != Policy::Original) {
        return Err(usage(
            "--scope global takes the choices as they were recorded; leave --routing-grid away, or use --scope layer",
        ));
    }
    if arguments.eviction.iter().any(|eviction| *eviction != EvictionSpec::Lru) {
        return Err(usage("--scope global knows lru (and Belady's eviction beside it); the others need --scope layer"));
    }
    if arguments.start != Start::Empty || arguments.touch != TouchOrder::StrongFirst {
        return Err(usage("--start and --touch belong to --scope layer"));
    }
    if arguments.capacity.is_empty() {
        return Err(usage("--scope global needs --capacity with sizes, such as 500MiB,4000MiB"));
    }
    let capacity = |text: &String| size::parse(text).map_err(|why| usage(format!("--capacity {text}: {why}")));
    Ok(GlobalOptions {
        capacities: arguments.capacity.iter().map(capacity).collect::<anyhow::Result<_>>()?,
        prompt_batch: arguments.prompt_batch.unwrap_or(usize::MAX),
        timing,
    })
}

/// A table with a row for each cell; hits of generated tokens apart where there are prompt tokens too.
fn print(report: &SimulationReport, output: &mut impl Write) -> std::io::Result<()> {
    let cells = &report.cells;
    let both = cells.iter().any(|cell| cell.prompt.tokens > 0 && cell.generation.tokens > 0);
    let width = |text: fn(&SimulatedCell) -> usize, least: usize| cells.iter().map(text).max().unwrap_or(0).max(least);
    let routing_width = width(|cell| cell.routing.len(), "routing".len());
    let eviction_width = width(|cell| cell.eviction.len(), "eviction".len());
    write!(
        output,
        "{:routing_width$}  {:eviction_width$}  {:>16}  {:>7}  {:>7}  {:>12}  {:>11}",
        "routing", "eviction", "cached", "hits %", "miss %", "misses/token", "bytes/token"
    )?;
    if both {
        write!(output, "  {:>14}", "hits % written")?;
    }
    write!(output, "  {:>8}  {:>9}", "lifetime", "changed %")?;
    writeln!(output, "{}", if report.timing.is_some() { "  tokens/s" } else { "" })?;
    for cell in cells {
        let SimulatedPhase { hit_rate, miss_rate, misses_per_token, logical_bytes_per_token, .. } = cell.total;
        write!(
            output,
            "{:routing_width$}  {:eviction_width$}  {:>16}  {:>7.2}  {:>7.2}  {:>12.3}  {:>11}",
            cell.routing,
            cell.eviction,
            cached(cell),
            100.0 * hit_rate,
            100.0 * miss_rate,
            misses_per_token,
            report::size(logical_bytes_per_token as u64),
        )?;
        if both {
            write!(output, "  {:>14.2}", 100.0 * cell.generation.hit_rate)?;
        }
        let lifetime = cell.lifetime_mean.map_or("-".to_owned(), |mean| format!("{mean:.1}"));
        let changed = cell.changed_share.map_or("-".to_owned(), |share| format!("{:.2}", 100.0 * share));
        write!(output, "  {lifetime:>8}  {changed:>9}")?;
        // Writing is what waits token by token; a trace of text alone stands for it.
        let phase = if cell.generation.tokens > 0 { &cell.generation } else { &cell.total };
        match phase.tokens_per_second {
            Some(speed) => writeln!(output, "  {speed:>8.2}")?,
            None => writeln!(output)?,
        }
    }
    Ok(())
}

/// The capacity, in experts a layer or in bytes.
fn cached(cell: &SimulatedCell) -> String {
    match cell.capacity.is_empty() {
        true => report::size(cell.capacity_bytes),
        false => format!("{} a layer", report::capacity(&cell.capacity)),
    }
}
