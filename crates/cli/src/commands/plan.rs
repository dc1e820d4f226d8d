//! `moce plan`: what a model needs in memory, line by line, and how fast it will be on this machine.

use super::{model_context, write_json};
use crate::arguments::{Global, ModelOptions, RoutingPrompt, parse_share};
use crate::{model_path, report, size};
use clap::{Args, ValueHint};
use moce_engine::{Engine, EngineOptions, MemoryPlan, Meter};
use moce_gguf::Gguf;
use moce_lab::{MachineRates, TRAINED_ROUTING, Verdict, misses_by_chance, token_seconds};
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

/// Share of the bound that runs reach, by measurement (bench/RESULTS.md: 0.81 to 0.89).
const REACHED: f64 = 0.85;
/// Positions that a predicted token attends to.
const SHORT_CONTEXT: f64 = 0.0;
/// How long each burst size of flash is measured, and each loop over memory.
const FLASH_TIME: Duration = Duration::from_millis(200);
const WEIGHTS_TIME: Duration = Duration::from_millis(200);
const MEMORY_TIME: Duration = Duration::from_millis(25);

#[derive(Debug, Args)]
#[command(mut_arg("routing", |option| option.help("Which experts run; changes no line of the plan: speeds are predicted for original \
    routing, unless --profile or --miss-rate says what misses")))]
pub(crate) struct Plan {
    /// GGUF file (of a split model, any part)
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) model: Option<PathBuf>,
    /// Bytes a second from flash, such as 1.5GB, instead of measuring
    #[arg(long, value_name = "SIZE", value_parser = size::parse_rate)]
    pub(crate) flash_bandwidth: Option<u64>,
    /// Share of the choices that miss, such as 20%, if it is known [default: what a profile measured, else a band from trained routers to
    /// chance]
    #[arg(long, value_name = "SHARE", value_parser = parse_share)]
    pub(crate) miss_rate: Option<f64>,
    #[command(flatten)]
    pub(crate) options: ModelOptions,
}

pub(crate) fn run(arguments: &Plan, global: &Global) -> anyhow::Result<()> {
    let path = model_path::resolve(arguments.model.as_deref())?;
    let (options, profile) = arguments.options.engine_options(RoutingPrompt::Original, || model_context(&path))?;
    let gguf = Gguf::open(&path)?;
    if let Some(profile) = &profile {
        profile.check(Engine::identity_of(&gguf)?)?;
    }
    let plan = Engine::plan_for(&gguf, &options)?;
    let machine = Machine::measure(&gguf, &options, plan.experts_per_token, arguments.flash_bandwidth)?;
    let known = match (arguments.miss_rate, &profile) {
        (Some(miss_rate), _) => Some(("as given", miss_rate)),
        (None, Some(profile)) if plan.streams() => Some(("as the profile measured", profile.measured.miss_rate)),
        _ => None,
    };
    let document = Document::new(&path.display().to_string(), &plan, machine, known);
    let mut output = std::io::stdout().lock();
    if global.json {
        write_json(&mut output, &document)?;
        return Ok(());
    }
    document.print(&mut output)?;
    Ok(())
}

/// What this machine gives, and how flash is read.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    pub(super) flash: String,
    pub(super) rates: MachineRates,
}

impl Machine {
    /// `None` for a model without experts, whose speed is that of memory.
    fn measure(
        gguf: &Gguf,
        options: &EngineOptions,
        most: usize,
        flash_bandwidth: Option<u64>,
    ) -> anyhow::Result<Option<Machine>> {
        let Some(mut meter) = Meter::open(gguf, options, most)? else { return Ok(None) };
        let mut machine = Machine::without_flash(&meter)?;
        machine.rates.flash = match flash_bandwidth {
            Some(bandwidth) => vec![bandwidth as f64],
            None => flash_rates(&mut meter, FLASH_TIME)?,
        };
        Ok(Some(machine))
    }

    /// Rates of memory and kernels.
    pub(super) fn without_flash(meter: &Meter) -> anyhow::Result<Machine> {
        let rates = MachineRates {
            flash: Vec::new(),
            experts: meter.expert_rate(WEIGHTS_TIME)?,
            dense: meter.dense_rate(WEIGHTS_TIME)?,
            memory: meter.memory_rate(MEMORY_TIME)?,
        };
        Ok(Machine { flash: meter.flash(), rates })
    }
}

/// Flash rates of every burst size.
pub(super) fn flash_rates(meter: &mut Meter, time: Duration) -> anyhow::Result<Vec<f64>> {
    let bursts = MachineRates::bursts(meter.most());
    Ok(bursts.map(|burst| meter.flash_rate(burst, time)).collect::<Result<_, _>>()?)
}

#[derive(Serialize)]
struct Document {
    model: String,
    memory_budget_bytes: Option<u64>,
    memory_plan_bytes: u64,
    program_bytes: u64,
    dense_bytes: u64,
    kv_bytes: u64,
    scratch_bytes: u64,
    staging_bytes: u64,
    slot_bytes: u64,
    ctx: usize,
    chunk: usize,
    experts: Vec<usize>,
    capacity: Vec<usize>,
    resident_capacity: Vec<usize>,
    expert_bytes: Vec<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    machine: Option<Machine>,
    predictions: Vec<Prediction>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<Verdict>,
}

/// A generation speed that is expected where so many choices miss.
#[derive(Serialize)]
struct Prediction {
    routing: &'static str,
    miss_rate: f64,
    tokens_per_second: f64,
}

impl Document {
    fn new(model: &str, plan: &MemoryPlan, machine: Option<Machine>, known: Option<(&'static str, f64)>) -> Document {
        let predictions = machine.as_ref().map_or(Vec::new(), |machine| predict(plan, &machine.rates, known));
        // With a band, the word is that of its middle.
        let middle = predictions.get(if predictions.len() > 1 { 2 } else { 0 });
        Document {
            model: model.to_owned(),
            memory_budget_bytes: plan.budget_bytes,
            memory_plan_bytes: plan.total_bytes(),
            program_bytes: plan.program_bytes,
            dense_bytes: plan.dense_bytes,
            kv_bytes: plan.kv_bytes,
            scratch_bytes: plan.scratch_bytes,
            staging_bytes: plan.staging_bytes,
            slot_bytes: plan.slot_bytes,
            ctx: plan.context,
            chunk: plan.chunk,
            experts: plan.experts.clone(),
            capacity: plan.capacity.clone(),
            resident_capacity: plan.resident.clone(),
            expert_bytes: plan.expert_bytes.clone(),
            verdict: middle.map(|prediction| Verdict::of(prediction.tokens_per_second)),
            machine,
            predictions,
        }
    }

    fn print(&self, output: &mut impl Write) -> std::io::Result<()> {
        writeln!(output, "{}\n\nmemory", self.model)?;
        let mut line = |name: &str, bytes: u64, note: &str| {
            writeln!(output, "  {name:<18}{:>10}  {note}", report::size(bytes)).map(|()| bytes)
        };
        line("program", self.program_bytes, "tokenizer included")?;
        line("dense weights", self.dense_bytes, "what every token uses")?;
        line("KV cache", self.kv_bytes, &format!("{} tokens", self.ctx))?;
        line("scratch", self.scratch_bytes, &format!("prompts in chunks of {} tokens", self.chunk))?;
        line("staging", self.staging_bytes, "experts that pass through")?;
        line("expert slots", self.slot_bytes, &self.slots())?;
        line("together", self.memory_plan_bytes, "")?;
        match self.memory_budget_bytes {
            Some(bytes) => drop(line("budget", bytes, "")?),
            None => writeln!(output, "  budget                  none")?,
        }
        let Some(machine) = &self.machine else { return Ok(()) };
        writeln!(output, "\nthis machine")?;
        let rate = |rate: f64| format!("{:.2} GB/s", rate / 1e9);
        let flash: Vec<String> = machine.rates.flash.iter().map(|&bytes| rate(bytes)).collect();
        let bursts: Vec<String> = MachineRates::bursts(1 << (flash.len() - 1)).map(|burst| burst.to_string()).collect();
        writeln!(output, "  flash   {}  ({} experts at once; {})", flash.join(", "), bursts.join(", "), machine.flash)?;
        let (experts, dense) = (rate(machine.rates.experts), rate(machine.rates.dense));
        let memory = rate(machine.rates.memory);
        writeln!(output, "  memory  {memory}  (through the kernels: experts {experts}, dense weights {dense})")?;
        let routing = if self.predictions.len() > 1 { " with original routing" } else { "" };
        writeln!(output, "\ngeneration{routing}, expected in a short context")?;
        for prediction in &self.predictions {
            writeln!(
                output,
                "  {:>6.1} tokens/s  {:.0} % misses: {}",
                prediction.tokens_per_second,
                100.0 * prediction.miss_rate,
                prediction.routing
            )?;
        }
        if let Some(verdict) = self.verdict {
            writeln!(output, "\nverdict: {}", verdict.name())?;
        }
        Ok(())
    }

    fn slots(&self) -> String {
        let Some(&experts) = self.experts.first() else { return "no experts".to_owned() };
        let (least, most) = (self.resident_capacity.iter().min(), self.resident_capacity.iter().max());
        let (least, most) = (least.copied().unwrap_or(0), most.copied().unwrap_or(0));
        let expert = report::size(self.expert_bytes.iter().copied().max().unwrap_or(0));
        let layers = self.experts.len();
        let range = if least == most { least.to_string() } else { format!("{least} to {most}") };
        format!("{range} of {experts} experts in each of {layers} layers, {expert} an expert")
    }
}

/// One prediction where the miss rate is `known`, from where the text says, or there is nothing to miss; else a band for original routing.
fn predict(plan: &MemoryPlan, rates: &MachineRates, known: Option<(&'static str, f64)>) -> Vec<Prediction> {
    let prediction = |routing, misses: Vec<f64>| Prediction {
        routing,
        miss_rate: misses.iter().sum::<f64>() / misses.len().max(1) as f64,
        tokens_per_second: REACHED / token_seconds(plan, &misses, rates, SHORT_CONTEXT),
    };
    let chance = misses_by_chance(plan);
    if let Some((routing, miss_rate)) = known {
        return vec![prediction(routing, vec![miss_rate; chance.len()])];
    }
    if !plan.streams() {
        return vec![prediction("everything resident", chance)];
    }
    let share = |share: f64| chance.iter().map(|&rate| rate * share).collect();
    let [most, middle, least] = TRAINED_ROUTING;
    vec![
        prediction("routing by chance, about the worst once the caches are full", share(1.0)),
        prediction("routing that changes much", share(most)),
        prediction("usual routing", share(middle)),
        prediction("routing that changes little", share(least)),
    ]
}
