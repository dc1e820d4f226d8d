//! The command line, as clap reads it. Meaning and defaults are those of the options they turn into.

use crate::size;
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use moce_engine::routing::{self, EvictionSpec, Policy, RoutingOptions, Start, TouchOrder};
use moce_engine::{
    Backend, Budget, Capacity, CpuOptions, Direct, EngineOptions, FlashOptions, Isa, KvType, Prefetch, SamplerOptions,
};
use std::path::PathBuf;
use std::str::FromStr;

/// Runs Mixture-of-Experts language models from GGUF files.
#[derive(Debug, Parser)]
#[command(name = "moce", version, about, propagate_version = true, disable_help_subcommand = false)]
#[command(after_help = "Without MODEL every command uses $MOCE_MODEL, else the demo model that ships with moce.\n\
    Start with:  moce run -p \"Once upon a time\"")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Print results as JSON (JSON lines where a command streams)
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// No progress, no summary: only results and errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Say more of what is done (-v, -vv); MOCE_LOG sets levels by module
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Generate text
    #[command(after_help = "Examples:\n  moce run\n  moce run -p \"Once upon a time\" -n 100\n  \
        moce run model.gguf -f prompt.txt --temp 0 --json\n  echo \"The three laws are\" | moce run")]
    Run(Run),
    /// Show what is in a model file, from its headers alone
    #[command(after_help = "Examples:\n  moce inspect\n  moce inspect model-00001-of-00003.gguf --tensors")]
    Inspect(Inspect),
    /// Turn text into token ids, or ids into text
    #[command(
        after_help = "Examples:\n  moce tokenize \"Hello, world\"\n  moce tokenize model.gguf \"Hello\" --ids\n  \
        moce tokenize model.gguf --decode \"1 2 3\"\n  moce tokenize < text.txt"
    )]
    Tokenize(Tokenize),
    /// Show the likeliest next tokens and their logits
    #[command(
        after_help = "Examples:\n  moce logits -p \"The capital of France is\"\n  moce logits model.gguf -p \"1 2 3\" --json"
    )]
    Logits(Logits),
    /// Measure perplexity on a text
    #[command(after_help = "Examples:\n  moce perplexity -f wiki.test.raw\n  \
        moce perplexity model.gguf -f text.txt --limit 65536 --json")]
    Perplexity(Perplexity),
    /// Print a shell completion script
    #[command(after_help = "Example:\n  moce completions bash > ~/.local/share/bash-completion/completions/moce")]
    Completions(Completions),
    /// Print the manual page, or write one page per command
    #[command(after_help = "Examples:\n  moce man | man -l -\n  moce man -o ~/.local/share/man/man1")]
    Man(Man),
}

/// Options of every command that runs a model.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model options")]
pub(crate) struct ModelOptions {
    /// What everything may take: a size such as 3GiB; `auto`: what is free; `all`: every expert stays in memory
    #[arg(long, value_name = "SIZE|auto|all", value_parser = parse_budget, default_value = "auto")]
    pub(crate) memory: Budget,
    /// Experts cached in each layer: a number, a share such as 50%, or a file of one number per layer
    /// [default: what the memory gives]
    #[arg(long, value_name = "SPEC", value_parser = parse_capacity)]
    pub(crate) capacity: Option<Capacity>,
    /// Which experts run: original, or a policy that leans towards cached ones and changes the text: balanced, fast,
    /// cache-prior:lambda=0.1,j=2, max-rank, cumulative, prune, drop-cold, swap
    #[arg(long, value_name = "POLICY", value_parser = parse_policy, default_value = "original")]
    pub(crate) routing: Policy,
    /// The policy for prompt tokens [default: original; in perplexity: same]
    #[arg(long, value_enum, value_name = "original|same")]
    pub(crate) routing_prompt: Option<RoutingPrompt>,
    /// In which order a token's experts become most recent (for studies)
    #[arg(long, value_name = "strong-first|weak-first", value_parser = parse_routing::<TouchOrder>, default_value = "strong-first")]
    pub(crate) touch: TouchOrder,
    /// What is cached before the first token: empty, first, random:SEED, or a file of ids, a line a layer (for studies)
    #[arg(long, value_name = "START", value_parser = parse_start, default_value = "empty")]
    pub(crate) start: Start,
    /// Which cached expert leaves: lru, lfu, s3fifo or score, with `:memory=N` for lfu and score
    #[arg(long, value_name = "SPEC", value_parser = parse_routing::<EvictionSpec>, default_value = "lru")]
    pub(crate) eviction: EvictionSpec,
    /// Read experts before the router asks; changes no result (auto: next-layer where experts are under 256 KiB, else off)
    #[arg(long, value_enum, default_value_t = PrefetchMode::Auto)]
    pub(crate) prefetch: PrefetchMode,
    /// How flash is read: auto, uring or pread
    #[arg(long, value_name = "BACKEND", value_parser = parse_backend, default_value = "auto")]
    pub(crate) io: Backend,
    /// Reads at once [default: a short probe finds out]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) io_depth: Option<u16>,
    /// Read past the system's page cache [default: where that gives the right bytes]
    #[arg(long, value_enum, value_name = "on|off")]
    pub(crate) direct: Option<Switch>,
    /// Context length in tokens, or `max` for the model's own [default: 4096, or the model's if smaller]
    #[arg(long, value_name = "N|max", value_parser = parse_context)]
    pub(crate) ctx: Option<Context>,
    /// How keys and values are kept
    #[arg(long, value_enum, default_value_t = Kv::F16)]
    pub(crate) kv: Kv,
    /// Compute threads [default: one a physical core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Cores to run on, one a thread, such as `0,2-3`
    #[arg(long, value_name = "LIST", value_parser = parse_affinity)]
    pub(crate) affinity: Option<Affinity>,
    /// Prompt tokens run at once, or `auto`
    #[arg(long, value_name = "N|auto", value_parser = parse_chunk, default_value = "auto")]
    pub(crate) chunk: Chunk,
}

/// The policy of prompt tokens.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum RoutingPrompt {
    Original,
    Same,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum PrefetchMode {
    Off,
    NextLayer,
    Speculate,
    Auto,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Context {
    Tokens(usize),
    Max,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chunk {
    Tokens(usize),
    Auto,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Affinity(pub(crate) Vec<usize>);

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Kv {
    F16,
    #[value(name = "q8_0")]
    Q8_0,
    F32,
}

/// `$XDG_CACHE_HOME/moce`, or `~/.cache/moce`.
fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let caches = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))?;
    Some(caches.join("moce"))
}

fn parse_budget(text: &str) -> Result<Budget, String> {
    match text {
        "auto" => Ok(Budget::Auto),
        "all" => Ok(Budget::All),
        _ => size::parse(text).map(Budget::Bytes).map_err(|error| format!("{error}, or auto, or all")),
    }
}

/// A number, a share, or a file of one number per layer.
fn parse_capacity(text: &str) -> Result<Capacity, String> {
    if let Ok(experts) = text.parse() {
        return Ok(Capacity::Experts(experts));
    }
    let share = match text.strip_suffix('%') {
        Some(percent) => percent.parse::<f64>().ok().map(|percent| percent / 100.0),
        None => text.parse::<f64>().ok(),
    };
    match share {
        Some(share) if (0.0..=1.0).contains(&share) => Ok(Capacity::Share(share)),
        Some(_) => Err("expected a number of experts, or a share from 0 % to 100 %".to_owned()),
        None => {
            let list = std::fs::read_to_string(text)
                .map_err(|error| format!("expected a number, a share such as 50%, or a file of numbers ({error})"))?;
            let numbers = list.split_whitespace().map(str::parse);
            let numbers = numbers.collect::<Result<_, _>>();
            numbers.map(Capacity::PerLayer).map_err(|_| "the file must hold one whole number per layer".to_owned())
        }
    }
}

fn parse_routing<T: FromStr<Err = routing::Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: routing::Error| error.to_string())
}

fn parse_policy(text: &str) -> Result<Policy, String> {
    let read = |path: &str| std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
    Policy::parse(text, read).map_err(|error| error.to_string())
}

fn parse_start(text: &str) -> Result<Start, String> {
    match text.parse() {
        Ok(start) => Ok(start),
        Err(error) => {
            let error: routing::Error = error;
            let lists = std::fs::read_to_string(text).map_err(|_| error.to_string())?;
            Start::from_lists(&lists).map_err(|error| error.to_string())
        }
    }
}

fn parse_backend(text: &str) -> Result<Backend, String> {
    text.parse().map_err(|_| "expected auto, uring or pread".to_owned())
}

fn parse_context(text: &str) -> Result<Context, String> {
    if text == "max" {
        Ok(Context::Max)
    } else {
        positive(text).map(Context::Tokens).map_err(|e| format!("{e}, or max"))
    }
}

fn parse_chunk(text: &str) -> Result<Chunk, String> {
    if text == "auto" {
        Ok(Chunk::Auto)
    } else {
        positive(text).map(Chunk::Tokens).map_err(|e| format!("{e}, or auto"))
    }
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=16_777_216) => Ok(number),
        _ => Err("expected a whole number from 1 to 16777216".to_owned()),
    }
}

fn parse_affinity(text: &str) -> Result<Affinity, String> {
    let wrong = || "expected core numbers and ranges, such as 0,2-3".to_owned();
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u16, u16) = (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?);
        if first > last {
            return Err(wrong());
        }
        cores.extend((first..=last).map(usize::from));
    }
    Ok(Affinity(cores))
}

impl ModelOptions {
    /// The engine's options. `MOCE_ISA` forces an instruction set.
    pub(crate) fn engine_options(
        &self,
        routing_prompt: RoutingPrompt,
        model_context: impl FnOnce() -> anyhow::Result<usize>,
    ) -> anyhow::Result<EngineOptions> {
        let isa = match std::env::var("MOCE_ISA") {
            Ok(name) => Some(Isa::parse(&name).map_err(|error| anyhow::anyhow!("MOCE_ISA: {error}"))?),
            Err(_) => None,
        };
        Ok(EngineOptions {
            cpu: CpuOptions {
                isa,
                threads: self.threads.map(usize::from),
                affinity: self.affinity.as_ref().map(|affinity| affinity.0.clone()),
            },
            context: match self.ctx {
                None => None,
                Some(Context::Tokens(tokens)) => Some(tokens),
                Some(Context::Max) => Some(model_context()?),
            },
            kv: match self.kv {
                Kv::F16 => KvType::F16,
                Kv::Q8_0 => KvType::Q8_0,
                Kv::F32 => KvType::F32,
            },
            chunk: match self.chunk {
                Chunk::Auto => None,
                Chunk::Tokens(tokens) => Some(tokens),
            },
            memory: self.memory,
            capacity: self.capacity.clone(),
            routing: RoutingOptions {
                policy: self.routing.clone(),
                prompt_policy: match self.routing_prompt.unwrap_or(routing_prompt) {
                    RoutingPrompt::Original => Policy::Original,
                    RoutingPrompt::Same => self.routing.clone(),
                },
                eviction: self.eviction,
                touch: self.touch,
                start: self.start.clone(),
            },
            prefetch: match self.prefetch {
                PrefetchMode::Auto => Prefetch::Auto,
                PrefetchMode::Off => Prefetch::Off,
                PrefetchMode::NextLayer => Prefetch::NextLayer,
                PrefetchMode::Speculate => Prefetch::Speculate,
            },
            flash: FlashOptions {
                backend: self.io,
                direct: match self.direct {
                    None => Direct::Auto,
                    Some(Switch::On) => Direct::Required,
                    Some(Switch::Off) => Direct::Off,
                },
                depth: self.io_depth.map(usize::from),
                profiles: cache_folder().map(|folder| folder.join("flash.json")),
            },
            ..EngineOptions::default()
        })
    }
}

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)] // so that `--temp -1` is refused by its name
pub(crate) struct Run {
    /// GGUF file (of a split model, any part)
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) model: Option<PathBuf>,
    /// The text to go on from
    #[arg(short, long, value_name = "TEXT", conflicts_with = "file")]
    pub(crate) prompt: Option<String>,
    /// A file with the text to go on from; `-` is standard input
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    /// Most tokens to generate
    #[arg(short = 'n', long, value_name = "N", default_value_t = 256)]
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
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) cache_state: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) options: ModelOptions,
}

/// How tokens are picked; the defaults are llama.cpp's.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct Sampling {
    /// Temperature; 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.8, value_parser = parse_non_negative)]
    pub(crate) temp: f32,
    /// Only the likeliest K tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = 40)]
    pub(crate) top_k: usize,
    /// The likeliest tokens that together have probability P; 1 for all
    #[arg(long, value_name = "P", default_value_t = 0.95, value_parser = parse_probability)]
    pub(crate) top_p: f32,
    /// Only tokens at least P times as likely as the likeliest; 0 for all
    #[arg(long, value_name = "P", default_value_t = 0.05, value_parser = parse_probability)]
    pub(crate) min_p: f32,
    /// Make tokens of the last 64 less likely; 1 for not at all
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = parse_positive)]
    pub(crate) repeat_penalty: f32,
    /// Seed of the random numbers [default: a new one each time, printed at the end]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

fn parse_real(text: &str, allowed: &str, within: impl FnOnce(f32) -> bool) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(number) if number.is_finite() && within(number) => Ok(number),
        _ => Err(format!("expected a number {allowed}")),
    }
}

fn parse_non_negative(text: &str) -> Result<f32, String> {
    parse_real(text, "of at least 0", |x| x >= 0.0)
}

fn parse_positive(text: &str) -> Result<f32, String> {
    parse_real(text, "above 0", |x| x > 0.0)
}

fn parse_probability(text: &str) -> Result<f32, String> {
    parse_real(text, "from 0 to 1", |x| (0.0..=1.0).contains(&x))
}

impl Sampling {
    /// The sampler's options; `seed` stands in where none was given.
    pub(crate) fn sampler_options(&self, seed: u64) -> SamplerOptions {
        SamplerOptions {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            seed: self.seed.unwrap_or(seed),
            ..SamplerOptions::default()
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// GGUF file (of a split model, any part)
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) model: Option<PathBuf>,
    /// List every tensor
    #[arg(long)]
    pub(crate) tensors: bool,
    /// List every metadata key
    #[arg(long)]
    pub(crate) metadata: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Tokenize {
    /// `[MODEL] [TEXT]`: a first argument that ends in .gguf is the model; without TEXT standard input is read
    #[arg(value_name = "MODEL] [TEXT", num_args = 0..=2, value_hint = ValueHint::FilePath)]
    pub(crate) arguments: Vec<String>,
    /// Print the ids alone, on one line
    #[arg(long)]
    pub(crate) ids: bool,
    /// The other way: TEXT is a list of ids
    #[arg(long, conflicts_with = "ids")]
    pub(crate) decode: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Logits {
    /// GGUF file (of a split model, any part)
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) model: Option<PathBuf>,
    /// The text before the token in question
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) prompt: String,
    /// How many tokens to show (with --json all logits are printed)
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) top: usize,
    #[command(flatten)]
    pub(crate) options: ModelOptions,
}

#[derive(Debug, Args)]
pub(crate) struct Perplexity {
    /// GGUF file (of a split model, any part)
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) model: Option<PathBuf>,
    /// The text to score; `-` is standard input
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
    /// Tokens predicted per window
    #[arg(long, value_name = "N", default_value = "1024", value_parser = positive)]
    pub(crate) window: usize,
    /// Score at most this many tokens (whole windows)
    #[arg(long, value_name = "TOKENS", value_parser = positive)]
    pub(crate) limit: Option<usize>,
    /// Put the BOS token in front of every window
    #[arg(long)]
    pub(crate) bos: bool,
    #[command(flatten)]
    pub(crate) options: ModelOptions,
}

#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Write one page per command into this folder
    #[arg(short, long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) output: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn lists_of_cores_are_read_strictly() {
        assert_eq!(parse_affinity("0,2-4").unwrap().0, [0, 2, 3, 4]);
        for wrong in ["", "a", "3-1", "1,,2", "-1", "1-"] {
            assert!(parse_affinity(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn numbers_are_read_strictly() {
        assert_eq!(parse_context("max"), Ok(Context::Max));
        assert_eq!(parse_context("1024"), Ok(Context::Tokens(1024)));
        for wrong in ["0", "-1", "1k", "1e3", "", "99999999999"] {
            assert!(parse_context(wrong).is_err(), "{wrong}");
        }
        assert!(parse_probability("1.5").is_err() && parse_probability("nan").is_err());
        assert_eq!(parse_probability("0.5"), Ok(0.5));
    }
}
