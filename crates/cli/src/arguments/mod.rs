//! The command line, as clap reads it. What belongs to one command stands in its file.

mod model;
mod numbers;
mod recording;
mod sampling;
mod scoring;

pub(crate) use model::{
    CommonOptions, ModelOptions, Policies, PolicyOptions, RoutingPrompt, STUDY_CAPACITY, STUDY_CAPACITY_TEXT,
    WrittenCapacity, apply_profile, cache_folder, parse_budget, parse_capacity, parse_policies, parse_routing,
    parse_share, parse_start, parse_written_capacity, with_default,
};
pub(crate) use numbers::{positive, whole};
pub(crate) use recording::Recording;
pub(crate) use sampling::{Sampling, parse_positive};
pub(crate) use scoring::{LOGIT_ROWS, Scoring};

use crate::commands::bench::Bench;
use crate::commands::completions::Completions;
use crate::commands::eval::Eval;
use crate::commands::inspect::Inspect;
use crate::commands::logits::Logits;
use crate::commands::man::Man;
use crate::commands::pack::PackArguments;
use crate::commands::perplexity::Perplexity;
use crate::commands::plan::Plan;
use crate::commands::run::Run;
use crate::commands::simulate::Simulate;
use crate::commands::sweep::Sweep;
use crate::commands::tokenize::Tokenize;
use crate::commands::trace::Trace;
use crate::commands::tune::Tune;
use crate::commands::verify::Verify;
use clap::{Args, Parser, Subcommand};

/// Runs Mixture-of-Experts language models from GGUF files.
#[derive(Debug, Parser)]
#[command(name = "moce", version, about, propagate_version = true, disable_help_subcommand = false)]
#[command(after_help = "Without MODEL every command uses $MOCE_MODEL, else the demo model that ships with moce.\n\
    Start with:  moce run -p \"Once upon a time\"\n\n\
    Environment:\n  \
    MOCE_MODEL  the model where none is named\n  \
    MOCE_HOME   where models/demo*.gguf is looked for first\n  \
    MOCE_ISA    scalar, avx2 or avx512vnni instead of this CPU's best\n  \
    MOCE_LOG    what is logged, such as debug or moce_engine=debug (-v, -vv)\n  \
    NO_COLOR    no colours")]
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
    /// Show what is in a model file, from its headers and the beginnings of its tensors
    #[command(after_help = "Examples:\n  moce inspect\n  moce inspect model-00001-of-00003.gguf --tensors")]
    Inspect(Inspect),
    /// Turn text into token ids, or ids into text
    #[command(
        after_help = "Examples:\n  moce tokenize \"Hello, world\"\n  moce tokenize model.gguf \"Hello\" --ids\n  \
        moce tokenize model.gguf --decode \"1 2 3\"\n  moce tokenize < text.txt\n\n\
        These are the tokens of the text alone; `run` and `logits` put the token before a prompt that the file wants there."
    )]
    Tokenize(Tokenize),
    /// Show the likeliest next tokens and their logits
    #[command(
        after_help = "Examples:\n  moce logits -p \"The capital of France is\"\n  moce logits model.gguf -p \"1 2 3\" --json"
    )]
    Logits(Logits),
    /// Show what a model needs in memory, how fast it will be here, and what to change if it does not fit
    #[command(after_help = "Examples:\n  moce plan\n  moce plan model.gguf --memory 3GiB\n  \
        moce plan model.gguf --memory 8GiB --flash-bandwidth 1.5GB")]
    Plan(Plan),
    /// Measure speed: prompts and generation, over several memory budgets
    #[command(after_help = "Examples:\n  moce bench\n  moce bench model.gguf --memory 3GiB,6GiB --ceilings\n  \
        moce bench --shape qwen1.5-moe-a2.7b --memory 3GiB --yes")]
    Bench(Bench),
    /// Measure perplexity on a text
    #[command(after_help = "Examples:\n  moce perplexity -f wiki.test.raw\n  \
        moce perplexity model.gguf -f text.txt --limit 65536 --json")]
    Perplexity(Perplexity),
    /// Perplexity and misses of many routing policies and capacities, with plots and a report
    #[command(
        after_help = "Examples:\n  moce sweep -f wiki.valid.raw --limit 65536 --routing-grid \"cache-prior:lambda=0..0.3/6\" -o sweep\n  \
        moce sweep -f text.txt --routing-grid \"max-rank:m=4..16/6;prune:k=2|3\" --capacity 25%,50% --shard 1/4 -o part1\n  \
        moce sweep merge part1 part2 part3 part4 -o sweep\n\n\
        Cells are independent: `--shard $SLURM_ARRAY_TASK_ID/N` (Slurm arrays from 1), `$((JOB_COMPLETION_INDEX + 1))/N` (Kubernetes\n\
        indexed jobs), or one Ray task a shard, all with the same command but for -o: a folder a shard. Then merge the folders."
    )]
    Sweep(Sweep),
    /// Find the routing with the fewest misses within a stated loss of quality, and write a profile
    #[command(
        after_help = "Examples:\n  moce tune -f text.txt --max-loss 1% -o demo.profile\n  moce run --profile demo.profile -p \"Once\"\n\n\
        Parameters, layers that keep the model's own choice because leaning costs too much there, and a λ for each of the others are\n\
        chosen on the first half of the text and accepted by the second."
    )]
    Tune(Tune),
    /// Record what routers say, and look into what was recorded
    Trace(Trace),
    /// Try caches and routing policies on a recorded trace, without the model
    #[command(after_help = "Examples:\n  moce trace record -f text.txt --limit 65536 -o text.trace\n  \
        moce simulate text.trace --routing-grid \"original;cache-prior:lambda=0..0.25/5\" --capacity 25%,50% --eviction lru,score\n  \
        moce simulate text.trace --flash-bandwidth 2GB --flash-latency-us 100 --compute-ms 30\n  \
        moce simulate text.trace --scope global --prompt-batch 1 --capacity 10MiB,40MiB")]
    Simulate(Simulate),
    /// Measure accuracy on MMLU, GSM8K or questions from a file
    #[command(after_help = "Examples:\n  moce eval mmlu --data data/mmlu --limit 20\n  \
        moce eval gsm8k model.gguf --data data --routing cache-prior:lambda=0.1 -o policy.jsonl --baseline original.jsonl\n  \
        moce eval questions.jsonl --shots examples.jsonl --json")]
    Eval(Eval),
    /// Put each expert of a model in one piece, ready for one instruction set, with checksums
    #[command(after_help = "Examples:\n  moce pack model.gguf -o model.packed.gguf\n  \
        moce pack model-00001-of-00003.gguf -o model.packed.gguf --isa avx2")]
    Pack(PackArguments),
    /// Read every byte of a model and say what is damaged
    #[command(after_help = "Examples:\n  moce verify model.gguf\n  moce verify model-00001-of-00003.gguf --json")]
    Verify(Verify),
    /// Print a shell completion script
    #[command(after_help = "Example:\n  moce completions bash > ~/.local/share/bash-completion/completions/moce")]
    Completions(Completions),
    /// Print the manual page, or write one page per command
    #[command(after_help = "Examples:\n  moce man | man -l -\n  moce man -o ~/.local/share/man/man1")]
    Man(Man),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_that_take_whole_numbers_say_which() {
        let parse = |words: &[&str], value: &str| Cli::try_parse_from([&["moce"][..], words, &[value]].concat());
        let from_zero = "expected a whole number from 0 to 18446744073709551615";
        let from_one = "expected a whole number from 1 to 1024";
        for (words, wrong, expected) in [
            (&["run", "-n"][..], "-1", from_zero),
            (&["run", "--seed"], "-1", from_zero),
            (&["run", "--top-k"], "-5", from_zero),
            (&["run", "--threads"], "1025", from_one),
            (&["run", "--io-depth"], "0", from_one),
            (&["logits", "-p", "text", "--top"], "1e3", from_zero),
            (&["eval", "mmlu", "--shot-count"], "x", from_zero),
            (&["bench", "--seed"], "1.5", from_zero),
            (&["trace", "record", "-p", "text", "-o", "trace", "-n"], "-1", from_zero),
        ] {
            for wrong in [wrong, "abc"] {
                let message = parse(words, wrong).unwrap_err().to_string();
                assert!(message.contains(wrong) && message.contains(expected), "{words:?}: {message}");
            }
            assert!(parse(words, "7").is_ok(), "{words:?}");
        }
    }
}
