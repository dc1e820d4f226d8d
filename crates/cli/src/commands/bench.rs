//! `moce bench`: prompt and generation speed over several memory budgets, beside what the machine gives.

use super::plan::{Machine, flash_rates};
use super::{announce, model_context, write_json};
use crate::arguments::{
    CommonOptions, Global, Policies, PolicyOptions, RoutingPrompt, apply_profile, cache_folder, parse_budget,
    parse_capacity, parse_policies, positive, whole, with_default,
};
use crate::report::usage;
use crate::{interrupt, model_path, report};
use anyhow::{Context, bail};
use clap::{Args, ValueHint};
use indicatif::{ProgressBar, ProgressStyle};
use moce_convert::{Shape, Synthetic};
use moce_engine::routing::{RoutingOptions, ScoreReplay};
use moce_engine::{Budget, Capacity, Engine, EngineOptions, MemoryPlan, Meter, packed, read_scores};
use moce_gguf::Gguf;
use moce_lab::{BenchOptions, BenchReport, MachineRates, PhaseSpeed, Profile, Spread, bench, token_seconds};
use moce_quant::Format;
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Files larger than this are not written without being asked for.
const LARGE_FILE_BYTES: u64 = 4_000_000_000;
/// How long a ceiling of flash is measured each time.
const CEILING_TIME: Duration = Duration::from_millis(500);
/// Experts of the largest burst of the ceilings.
const LARGEST_BURST: usize = 8;

#[derive(Debug, Args)]
#[command(mut_arg("ctx", |option| with_default(option, "prompt and answer, at least 1024, at most the model's")))]
pub(crate) struct Bench {
    /// GGUF file (of a split model, any part)
    #[arg(value_hint = ValueHint::FilePath, conflicts_with = "shape")]
    pub(crate) model: Option<PathBuf>,
    /// A model of this shape with random weights, made on this disk: qwen1.5-moe-a2.7b or mixtral-8x7b
    #[arg(long, value_name = "NAME")]
    pub(crate) shape: Option<String>,
    // Beside MODEL, with which --shape conflicts, clap waives `requires`: so each option of a shape conflicts with MODEL itself.
    /// The format of the shape's weights
    #[arg(
        long,
        value_name = "TYPE",
        value_parser = parse_format,
        default_value = "q4_0",
        requires = "shape",
        conflicts_with = "model"
    )]
    pub(crate) r#type: Format,
    /// Where the shape's file goes, and is found again [default: moce/shapes in the user's cache folder]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, requires = "shape", conflicts_with = "model")]
    pub(crate) folder: Option<PathBuf>,
    /// Write large files without asking
    #[arg(long, requires = "shape", conflicts_with = "model")]
    pub(crate) yes: bool,
    /// What everything may take: sizes such as 3GiB, `auto` or `all`; several with commas
    #[arg(long, value_name = "SIZE,...", value_parser = parse_budget, value_delimiter = ',', default_value = "auto")]
    pub(crate) memory: Vec<Budget>,
    /// Experts cached in each layer: a number, a share such as 50%, or a file of one number per layer
    /// [default: what the memory gives]
    #[arg(long, value_name = "SPEC", value_parser = parse_capacity)]
    pub(crate) capacity: Option<Capacity>,
    /// Routing policies to compare, such as `original;cache-prior:lambda=0.1|0.2` [default: that of --routing]
    #[arg(long, value_name = "SPEC", value_parser = parse_policies, conflicts_with = "routing")]
    pub(crate) routing_grid: Option<Policies>,
    /// Measure the routing of a profile that `moce tune` wrote for this model, after those of --routing-grid
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with_all = ["routing", "eviction", "touch", "capacity"])]
    pub(crate) profile: Option<PathBuf>,
    /// Take router scores from a trace of `moce trace record`: random weights then route like the model that was recorded
    #[arg(long, value_name = "TRACE", value_hint = ValueHint::FilePath)]
    pub(crate) replay: Option<PathBuf>,
    /// Tokens of the prompt (drawn by chance)
    #[arg(long, value_name = "N", default_value = "512", value_parser = positive)]
    pub(crate) prompt_tokens: usize,
    /// Tokens to generate
    #[arg(short = 'n', long, value_name = "N", default_value = "64", value_parser = positive)]
    pub(crate) tokens: usize,
    /// How often everything is done; the table shows medians
    #[arg(long, value_name = "N", default_value = "5", value_parser = positive)]
    pub(crate) rounds: usize,
    /// Measure memory first and flash before each round, and say what share of them was reached
    #[arg(long)]
    pub(crate) ceilings: bool,
    /// Seed of the prompt and of the sampler
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole(0..=u64::MAX))]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) policy: PolicyOptions,
    #[command(flatten)]
    pub(crate) options: CommonOptions,
}

pub(crate) fn run(arguments: &Bench, global: &Global) -> anyhow::Result<()> {
    let path = match &arguments.shape {
        Some(shape) => shape_file(shape, arguments, global)?,
        None => model_path::resolve(arguments.model.as_deref())?,
    };
    interrupt::listen();
    let gguf = Gguf::open(&path)?;
    let architecture = packed::architecture(&gguf)?;
    let mut base =
        arguments.options.engine_options(Budget::Auto, arguments.capacity.as_ref(), || model_context(&path))?;
    let routing_prompt = arguments.policy.routing_prompt.unwrap_or(RoutingPrompt::Original);
    let profile = arguments.profile.as_deref().map(Profile::read).transpose()?;
    let mut policies = arguments.routing_grid.as_ref().map_or_else(Vec::new, |grid| grid.0.clone());
    if let Some(profile) = &profile {
        profile.check(Engine::identity_of(&gguf)?)?;
        policies.push(apply_profile(profile, &mut base)?);
    } else if policies.is_empty() {
        policies.push(arguments.policy.routing.clone());
    }
    base.routing.policy = policies[0].clone();
    base.routing.prompt_policy = routing_prompt.policy(&base.routing.policy);
    let context = base.context.map_or_else(|| context(arguments, &gguf, architecture), Ok)?;
    let layers = gguf.metadata().u32(&format!("{architecture}.block_count"))? as usize;
    // Both are opened first, so that every plan counts their memory too.
    let scores = arguments.replay.as_deref().map(|trace| read_scores(trace, layers, context)).transpose()?;
    let mut ceilings = if arguments.ceilings { Ceilings::open(&gguf, &base)? } else { None };
    let mut cells = Vec::new();
    for &memory in &arguments.memory {
        let options = EngineOptions { memory, context: Some(context), ..base.clone() };
        let engine = Arc::new(Engine::load(&gguf, &options)?);
        announce(&engine, profile.as_ref().filter(|_| policies.len() == 1), global);
        let routings = policies.iter().cloned().map(|policy| {
            let prompt_policy = routing_prompt.policy(&policy);
            let routing = RoutingOptions { policy, prompt_policy, ..base.routing.clone() };
            engine.resolve_routing(&routing, &engine.plan().capacity)
        });
        // All policies are known to fit before the first is measured.
        let routings: Vec<RoutingOptions> = routings.collect::<Result<_, _>>()?;
        report::reset_peak_memory();
        let measured = measure(&engine, &routings, scores.clone(), arguments, ceilings.as_mut(), global)?;
        cells.extend(routings.iter().zip(measured).map(|(routing, measured)| Cell::new(&engine, routing, measured)));
    }
    let machine = ceilings.map(|ceilings| ceilings.machine());
    if let Some(machine) = &machine {
        cells.iter_mut().for_each(|cell| cell.compare(machine));
    }
    let replay = arguments.replay.as_ref().map(|trace| trace.display().to_string());
    let document =
        Document { version: env!("CARGO_PKG_VERSION"), model: path.display().to_string(), replay, cells, machine };
    let mut output = std::io::stdout().lock();
    if global.json {
        write_json(&mut output, &document)?;
        return Ok(());
    }
    document.print(&mut output)?;
    Ok(())
}

/// Just enough positions for prompt and answer, at most the model's.
fn context(arguments: &Bench, gguf: &Gguf, architecture: &str) -> anyhow::Result<usize> {
    let model = gguf.metadata().u32(&format!("{architecture}.context_length"))? as usize;
    let needed = arguments.prompt_tokens + arguments.tokens + 1;
    if needed > model {
        return Err(usage(format_args!(
            "a prompt of {} and {} more tokens do not fit the model's context of {model}; lower --prompt-tokens or -n",
            arguments.prompt_tokens, arguments.tokens
        )));
    }
    // Not less than 1,024, so that the memory plan is that of a usable model.
    Ok(needed.max(1024).min(model))
}

fn measure(
    engine: &Arc<Engine>,
    routings: &[RoutingOptions],
    replay: Option<Arc<ScoreReplay>>,
    arguments: &Bench,
    mut ceilings: Option<&mut Ceilings>,
    global: &Global,
) -> anyhow::Result<Vec<BenchReport>> {
    let vocabulary = engine.hyperparameters().vocabulary as u64;
    let mut state = arguments.seed;
    let prompt = (0..arguments.prompt_tokens).map(|_| {
        // Knuth's MMIX generator.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocabulary) as u32
    });
    let options = BenchOptions {
        prompt: prompt.collect(),
        tokens: arguments.tokens,
        rounds: arguments.rounds,
        seed: arguments.seed,
        routings: routings.to_vec(),
        replay,
    };
    let show = !global.quiet && report::stderr_is_interactive();
    let bar = if show { ProgressBar::new(arguments.rounds as u64) } else { ProgressBar::hidden() };
    bar.set_style(ProgressStyle::with_template("{wide_bar} round {pos}/{len}")?);
    let mut flash = Ok(());
    let measured = bench(engine, &options, &interrupt::happened, &mut |round| {
        bar.set_position(round as u64);
        if let Some(ceilings) = &mut ceilings {
            flash = ceilings.measure_flash();
        }
        if flash.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    flash?;
    Ok(measured?)
}

fn parse_format(text: &str) -> Result<Format, String> {
    let known = || Format::ALL.map(|format| format.name().to_lowercase()).join(", ");
    let format = Format::ALL.into_iter().find(|format| format.name().eq_ignore_ascii_case(text));
    format.ok_or_else(|| format!("expected one of {}", known()))
}

/// The file of a shape: what an earlier run left, or a new one.
fn shape_file(name: &str, arguments: &Bench, global: &Global) -> anyhow::Result<PathBuf> {
    let shape = Shape::named(name).map_err(usage)?;
    let format = arguments.r#type;
    let synthetic = Synthetic::new(&shape, format, 0)?;
    let folder = match &arguments.folder {
        Some(folder) => folder.clone(),
        None => cache_folder().context("no home folder; --folder says where the shape's file goes")?.join("shapes"),
    };
    let path = folder.join(format!("{}-{}.gguf", shape.name, format.name().to_lowercase()));
    if path.exists() {
        match Gguf::open(&path) {
            Ok(gguf) if synthetic.matches(&gguf) => return Ok(path),
            // An earlier recipe's gives way.
            Ok(gguf) if Synthetic::made(&gguf) => {}
            Ok(_) => bail!("{} is no model that moce made; give another --folder", path.display()),
            Err(error) => return Err(error).context("remove the file, or give another --folder"),
        }
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    moce_convert::check_space(&path, synthetic.file_bytes())?;
    if synthetic.file_bytes() > LARGE_FILE_BYTES && !arguments.yes {
        confirm(&path, synthetic.file_bytes())?;
    }
    // Not before the question, at which Ctrl-C is an answer.
    interrupt::listen();
    let show = !global.quiet && report::stderr_is_interactive();
    let bar = if show { ProgressBar::new(synthetic.file_bytes()) } else { ProgressBar::hidden() };
    bar.set_style(ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes}  {eta} left")?);
    synthetic.write(&path, true, &mut |written| {
        bar.set_position(written);
        if interrupt::happened() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    bar.finish_and_clear();
    if !global.quiet {
        report::say(format_args!("{} is kept for later runs; delete it when you are done", path.display()));
    }
    Ok(path)
}

/// Asks on the terminal; without one the answer is no.
fn confirm(path: &Path, bytes: u64) -> anyhow::Result<()> {
    let question = format!("{} will be written to {}", report::size(bytes), path.display());
    if !std::io::stdin().is_terminal() {
        bail!("{question}; --yes agrees to that");
    }
    let _ = write!(std::io::stderr(), "{question}. Go on? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if answer.trim().eq_ignore_ascii_case("y") { Ok(()) } else { bail!("nothing was written") }
}

/// What flash and memory give; flash is measured several times.
struct Ceilings {
    meter: Meter,
    machine: Machine,
    flash: Vec<Vec<f64>>,
}

impl Ceilings {
    fn open(gguf: &Gguf, options: &EngineOptions) -> anyhow::Result<Option<Ceilings>> {
        let Some(meter) = Meter::open(gguf, options, LARGEST_BURST)? else { return Ok(None) };
        let machine = Machine::without_flash(&meter)?;
        Ok(Some(Ceilings { meter, machine, flash: Vec::new() }))
    }

    fn measure_flash(&mut self) -> anyhow::Result<()> {
        self.flash.push(flash_rates(&mut self.meter, CEILING_TIME)?);
        Ok(())
    }

    /// Medians over all measurements.
    fn machine(mut self) -> Machine {
        let sizes = self.flash.first().map_or(0, Vec::len);
        let median = |size: usize| Spread::of(self.flash.iter().map(|rates| rates[size])).median;
        self.machine.rates.flash = (0..sizes).map(median).collect();
        self.machine
    }
}

#[derive(Serialize)]
struct Document {
    version: &'static str,
    model: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    replay: Option<String>,
    cells: Vec<Cell>,
    #[serde(skip_serializing_if = "Option::is_none")]
    machine: Option<Machine>,
}

/// One budget.
#[derive(Serialize)]
struct Cell {
    #[serde(skip)]
    plan: MemoryPlan,
    isa: &'static str,
    io: String,
    threads: usize,
    memory_budget_bytes: Option<u64>,
    memory_plan_bytes: u64,
    peak_memory_bytes: Option<u64>,
    ctx: usize,
    capacity: Vec<usize>,
    resident_capacity: Vec<usize>,
    experts: Vec<usize>,
    routing: String,
    routing_prompt: String,
    eviction: String,
    #[serde(flatten)]
    measured: BenchReport,
    /// Of the flash rate while reading, to bursts of that size without computing.
    #[serde(skip_serializing_if = "Option::is_none")]
    flash_share: Option<f64>,
    /// Of the time that a token takes at least, by the machine's rates and the miss rate, to the time it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    bound_share: Option<f64>,
    /// Tokens/s of that bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    bound_tokens_per_second: Option<f64>,
}

impl Cell {
    fn new(engine: &Engine, routing: &RoutingOptions, measured: BenchReport) -> Cell {
        let plan = engine.plan();
        Cell {
            plan: plan.clone(),
            isa: engine.cpu().isa().name(),
            io: engine.flash().to_owned(),
            threads: engine.cpu().threads(),
            memory_budget_bytes: plan.budget_bytes,
            memory_plan_bytes: plan.total_bytes(),
            peak_memory_bytes: report::peak_memory(),
            ctx: engine.context(),
            capacity: plan.capacity.clone(),
            resident_capacity: plan.resident.clone(),
            experts: plan.experts.clone(),
            routing: routing.policy.to_string(),
            routing_prompt: routing.prompt_policy.to_string(),
            eviction: routing.eviction.to_string(),
            measured,
            flash_share: None,
            bound_share: None,
            bound_tokens_per_second: None,
        }
    }

    /// Puts what was measured beside what the machine gives.
    fn compare(&mut self, machine: &Machine) {
        let (plan, generation) = (&self.plan, &self.measured.generation);
        if generation.flash_rate > 0.0 {
            let burst = generation.mean_burst(plan.experts_per_token);
            self.flash_share = Some(generation.flash_rate / machine.rates.flash_rate(burst));
        }
        let misses = vec![generation.miss_rate; plan.experts.len()];
        let positions = self.measured.prompt.tokens as f64 + generation.tokens as f64 / 2.0;
        let bound = 1.0 / token_seconds(plan, &misses, &machine.rates, positions);
        self.bound_tokens_per_second = Some(bound);
        self.bound_share = Some(generation.tokens_per_second.median / bound);
    }
}

impl Document {
    fn print(&self, output: &mut impl Write) -> std::io::Result<()> {
        writeln!(output, "{}", self.model)?;
        if let Some(trace) = &self.replay {
            writeln!(
                output,
                "router scores replayed from {trace}: speed and misses are those of its routing, the text means nothing"
            )?;
        }
        for cell in &self.cells {
            let budget = cell.memory_budget_bytes.map_or("no budget".to_owned(), report::size);
            let peak =
                cell.peak_memory_bytes.map_or(String::new(), |bytes| format!(", {} at most", report::size(bytes)));
            let cached = cell.resident_capacity.iter().sum::<usize>() as f64 / cell.experts.len().max(1) as f64;
            let experts = cell.experts.iter().max().copied().unwrap_or(0);
            writeln!(
                output,
                "\n{budget}: {} planned{peak}, {cached:.1} of {experts} experts resident a layer, {}, {}",
                report::size(cell.memory_plan_bytes),
                report::routing(&cell.routing, &cell.routing_prompt),
                cell.eviction
            )?;
            phase(output, "prompt", &cell.routing_prompt, &cell.measured.prompt)?;
            phase(output, "generation", &cell.routing, &cell.measured.generation)?;
            if let (Some(bound), Some(share)) = (cell.bound_tokens_per_second, cell.bound_share) {
                write!(output, "  bound      {bound:>8.1} tokens/s, {:.0} % reached", 100.0 * share)?;
                match cell.flash_share {
                    Some(share) => writeln!(output, "; flash while reading: {:.0} % of reading alone", 100.0 * share)?,
                    None => writeln!(output)?,
                }
            }
        }
        if let Some(machine) = &self.machine {
            let rates: Vec<String> = machine.rates.flash.iter().map(|rate| format!("{:.2}", rate / 1e9)).collect();
            let bursts: Vec<String> = MachineRates::bursts(LARGEST_BURST).map(|burst| burst.to_string()).collect();
            let MachineRates { experts, dense, memory, .. } = machine.rates;
            let [experts, dense, memory] = [experts, dense, memory].map(|rate| format!("{:.1} GB/s", rate / 1e9));
            writeln!(output, "\nthis machine")?;
            writeln!(
                output,
                "  flash   {} GB/s in bursts of {} experts ({})",
                rates.join(", "),
                bursts.join(", "),
                machine.flash
            )?;
            writeln!(output, "  memory  {memory} (through the kernels: experts {experts}, dense weights {dense})")?;
        }
        Ok(())
    }
}

fn phase(output: &mut impl Write, name: &str, routing: &str, speed: &PhaseSpeed) -> std::io::Result<()> {
    let Spread { median, least, most } = speed.tokens_per_second;
    write!(output, "  {name:<11}{median:>8.1} tokens/s ({least:.1} to {most:.1}), {} tokens", speed.tokens)?;
    if speed.flash_bytes_per_token > 0.0 {
        write!(
            output,
            "; misses {:.1} %, {} a token at {:.2} GB/s, {:.0} % of the time waiting",
            100.0 * speed.miss_rate,
            report::size(speed.flash_bytes_per_token as u64),
            speed.flash_rate / 1e9,
            100.0 * speed.waiting_share
        )?;
    }
    if routing != "original" {
        write!(output, "; {:.1} % of the choices changed", 100.0 * speed.changed_share)?;
    }
    writeln!(output)
}
