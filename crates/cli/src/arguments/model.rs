//! The options of every command that runs a model, and what they turn into.

use super::{positive, whole};
use crate::size;
use clap::{Arg, Args, ValueEnum, ValueHint};
use moce_engine::routing::{self, EvictionSpec, Policy, RoutingOptions, Start, TouchOrder};
use moce_engine::{Backend, Budget, Capacity, CpuOptions, Direct, EngineOptions, FlashOptions, Isa, KvType, Prefetch};
use moce_lab::Profile;
use std::path::PathBuf;
use std::str::FromStr;

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
    /// Routing, eviction, touch order and capacities from a file that `moce tune` wrote for this model
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with_all = ["routing", "eviction", "touch", "capacity"])]
    pub(crate) profile: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) policy: PolicyOptions,
    #[command(flatten)]
    pub(crate) common: CommonOptions,
}

/// The routing policy; commands that try many have their own ways to name them.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model options")]
pub(crate) struct PolicyOptions {
    /// Which experts run: original, or a policy that leans towards cached ones and changes the text: balanced, fast,
    /// cache-prior:lambda=0.1,j=2, max-rank, cumulative, prune, drop-cold, swap; with except=0:5 (fast:except=0:5) the layers 0 and 5
    /// keep the model's own choice
    #[arg(long, value_name = "POLICY", value_parser = parse_policy, default_value = "original")]
    pub(crate) routing: Policy,
    /// The policy for prompt tokens [default: original]
    #[arg(long, value_enum, value_name = "original|same")]
    pub(crate) routing_prompt: Option<RoutingPrompt>,
}

/// All of them but policy, memory budget and capacity, of which some commands take several.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model options")]
pub(crate) struct CommonOptions {
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
    #[arg(long, value_name = "N", value_parser = whole::<u16>(1..=1024))]
    pub(crate) io_depth: Option<u16>,
    /// Read past the system's page cache [default: where that gives the right bytes]
    #[arg(long, value_enum, value_name = "on|off")]
    pub(crate) direct: Option<Switch>,
    /// Compare what is read of experts with its checksum (packed models)
    #[arg(long)]
    pub(crate) verify_fetches: bool,
    /// Context length in tokens, or `max` for the model's own [default: 4096, or the model's if smaller; 1024 where a third more of the
    /// experts is cached then]
    #[arg(long, value_name = "N|max", value_parser = parse_context)]
    pub(crate) ctx: Option<Context>,
    /// How keys and values are kept
    #[arg(long, value_enum, default_value_t = Kv::F16)]
    pub(crate) kv: Kv,
    /// Compute threads [default: one for each processor of --affinity, else one a physical core]
    #[arg(long, value_name = "N", value_parser = whole::<u16>(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Cores to run on, one a thread, such as `0,2-3`
    #[arg(long, value_name = "LIST", value_parser = parse_affinity)]
    pub(crate) affinity: Option<Affinity>,
    /// Prompt tokens run at once, or `auto`: at most 512 where everything is resident, 4096 where experts are streamed, as memory allows
    #[arg(long, value_name = "N|auto", value_parser = parse_chunk, default_value = "auto")]
    pub(crate) chunk: Chunk,
}

/// The policy of prompt tokens.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum RoutingPrompt {
    Original,
    Same,
}

impl RoutingPrompt {
    /// The policy of prompt tokens where this is that of generated ones.
    pub(crate) fn policy(self, generation: &Policy) -> Policy {
        match self {
            RoutingPrompt::Original => Policy::Original,
            RoutingPrompt::Same => generation.clone(),
        }
    }
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

impl ModelOptions {
    /// The engine's options, and the profile that they come from.
    pub(crate) fn engine_options(
        &self,
        routing_prompt: RoutingPrompt,
        model_context: impl FnOnce() -> anyhow::Result<usize>,
    ) -> anyhow::Result<(EngineOptions, Option<Profile>)> {
        let mut options = self.common.engine_options(self.memory, self.capacity.as_ref(), model_context)?;
        let profile = self.profile.as_deref().map(Profile::read).transpose()?;
        let policy = match &profile {
            Some(profile) => apply_profile(profile, &mut options)?,
            None => self.policy.routing.clone(),
        };
        let routing_prompt = self.policy.routing_prompt.unwrap_or(routing_prompt);
        options.routing.prompt_policy = routing_prompt.policy(&policy);
        options.routing.policy = policy;
        Ok((options, profile))
    }
}

/// Sets what a profile says of caches, and gives its policy.
pub(crate) fn apply_profile(profile: &Profile, options: &mut EngineOptions) -> anyhow::Result<Policy> {
    options.routing.eviction = profile.eviction()?;
    options.routing.touch = profile.touch()?;
    options.capacity = Some(Capacity::PerLayer(profile.capacity.clone()));
    Ok(profile.policy()?)
}

impl CommonOptions {
    /// The engine's options, with original routing. `MOCE_ISA` forces an instruction set.
    pub(crate) fn engine_options(
        &self,
        memory: Budget,
        capacity: Option<&Capacity>,
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
            memory,
            capacity: capacity.cloned(),
            routing: RoutingOptions {
                eviction: self.eviction,
                touch: self.touch,
                start: self.start.clone(),
                ..RoutingOptions::default()
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
                verify: self.verify_fetches,
                profiles: cache_folder().map(|folder| folder.join("flash.json")),
                ..FlashOptions::default()
            },
            ..EngineOptions::default()
        })
    }
}

/// `$XDG_CACHE_HOME/moce`, or `~/.cache/moce`.
pub(crate) fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let caches = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))?;
    Some(caches.join("moce"))
}

pub(crate) fn parse_budget(text: &str) -> Result<Budget, String> {
    match text {
        "auto" => Ok(Budget::Auto),
        "all" => Ok(Budget::All),
        _ => size::parse(text).map(Budget::Bytes).map_err(|error| format!("{error}, or auto, or all")),
    }
}

/// Experts logically cached in studies where nothing else is said: in `perplexity`, `eval`, `sweep`, `tune`, `trace record` and `simulate`.
pub(crate) const STUDY_CAPACITY: Capacity = Capacity::Share(0.5);
/// The same as people write it.
pub(crate) const STUDY_CAPACITY_TEXT: &str = "50%";

/// The option with another default in its help, for commands that differ in it.
pub(crate) fn with_default(option: Arg, default: &str) -> Arg {
    let help = option.get_help().map(ToString::to_string).unwrap_or_default();
    let text = help.split(" [default:").next().unwrap_or_default();
    option.help(format!("{text} [default: {default}]"))
}

/// A capacity and how it was written.
#[derive(Clone, Debug)]
pub(crate) struct WrittenCapacity(pub(crate) String, pub(crate) Capacity);

pub(crate) fn parse_written_capacity(text: &str) -> Result<WrittenCapacity, String> {
    Ok(WrittenCapacity(text.to_owned(), parse_capacity(text)?))
}

/// A number, a share, or a file of one number per layer.
pub(crate) fn parse_capacity(text: &str) -> Result<Capacity, String> {
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

pub(crate) fn parse_routing<T: FromStr<Err = routing::Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: routing::Error| error.to_string())
}

fn parse_policy(text: &str) -> Result<Policy, String> {
    let read = |path: &str| std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
    Policy::parse(text, read).map_err(|error| error.to_string())
}

/// What a grid of policies stands for.
#[derive(Clone, Debug)]
pub(crate) struct Policies(pub(crate) Vec<Policy>);

pub(crate) fn parse_policies(text: &str) -> Result<Policies, String> {
    let read = |path: &str| std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
    moce_lab::parse_grid(text, read).map(Policies).map_err(|error| error.to_string())
}

pub(crate) fn parse_start(text: &str) -> Result<Start, String> {
    match text.parse() {
        Ok(start) => Ok(start),
        Err(error) => {
            let error: routing::Error = error;
            let lists =
                std::fs::read_to_string(text).map_err(|cause| format!("{error}, or a file of ids ({cause})"))?;
            Start::from_lists(&lists).map_err(|error| error.to_string())
        }
    }
}

/// A share, as a fraction or in percent.
pub(crate) fn parse_share(text: &str) -> Result<f64, String> {
    let share = match text.strip_suffix('%') {
        Some(percent) => percent.parse::<f64>().map(|percent| percent / 100.0),
        None => text.parse::<f64>(),
    };
    share.ok().filter(|share| (0.0..=1.0).contains(share)).ok_or_else(|| "expected a share from 0 % to 100 %".into())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_are_read_strictly() {
        assert_eq!(parse_affinity("0,2-4").unwrap().0, [0, 2, 3, 4]);
        for wrong in ["", "a", "3-1", "1,,2", "-1", "1-"] {
            assert!(parse_affinity(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_capacity_of_studies_is_what_it_is_called() {
        assert_eq!(parse_capacity(STUDY_CAPACITY_TEXT), Ok(STUDY_CAPACITY));
    }

    #[test]
    fn numbers_are_read_strictly() {
        assert_eq!(parse_context("max"), Ok(Context::Max));
        assert_eq!(parse_context("1024"), Ok(Context::Tokens(1024)));
        for wrong in ["0", "-1", "1k", "1e3", "", "99999999999"] {
            assert!(parse_context(wrong).is_err(), "{wrong}");
        }
    }
}
