//! The binary as users and scripts see it: output, exit status, messages. On the demo model, which ships with the repository.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers

mod support;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use support::{moce, moce_with_input, refused, stdout, text};

const GREEDY: [&str; 8] = ["run", "-q", "--temp", "0", "-n", "16", "-p", "The capital of France,"];

#[test]
fn run_writes_the_models_text_the_same_everywhere() {
    let expected = stdout(&GREEDY);
    assert!(expected.contains("Paris"), "{expected}");
    // The same bits on every instruction set: so the same text.
    let scalar = Command::new(env!("CARGO_BIN_EXE_moce")).args(GREEDY).env("MOCE_ISA", "scalar").output().unwrap();
    assert_eq!(text(&scalar.stdout), expected);
    for options in [["--threads", "1"], ["--capacity", "4"], ["--capacity", "50%"], ["--chunk", "2"]] {
        assert_eq!(stdout(&[&GREEDY[..], &options[..]].concat()), expected, "{options:?}");
    }
}

#[test]
fn a_seed_repeats_a_run() {
    let run = |seed| stdout(&["run", "-q", "-n", "16", "-p", "Once upon a time", "--seed", seed]);
    assert_eq!(run("5"), run("5"));
    assert_ne!(run("5"), run("6"));
}

#[test]
fn run_without_a_prompt_shows_the_model_at_work() {
    let output = moce(&["run", "-n", "8", "--seed", "1"]);
    assert!(output.status.success());
    assert!(!output.stdout.is_empty());
    assert!(text(&output.stderr).contains("Once upon a time"), "{}", text(&output.stderr));
}

#[test]
fn standard_input_and_files_are_prompts() {
    let from_option = stdout(&GREEDY);
    let piped = moce_with_input(&["run", "-q", "--temp", "0", "-n", "16"], b"The capital of France,");
    assert_eq!(text(&piped.stdout), from_option);
    let dashed = moce_with_input(&["run", "-q", "--temp", "0", "-n", "16", "-f", "-"], b"The capital of France,");
    assert_eq!(text(&dashed.stdout), from_option);
    // The line end behind it is `echo`'s or the editor's, one more is the prompt's.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt.txt");
    let from_file = |content: &str| {
        std::fs::write(&file, content).unwrap();
        stdout(&["run", "-q", "--temp", "0", "-n", "16", "-f", file.to_str().unwrap()])
    };
    for end in ["", "\n", "\r\n"] {
        assert_eq!(from_file(&format!("The capital of France,{end}")), from_option, "{end:?}");
    }
    assert_eq!(
        from_file("The capital of France,\n\n"),
        stdout(&["run", "-q", "--temp", "0", "-n", "16", "-p", "The capital of France,\n"])
    );
}

/// A run whose standard input stays open and silent, once it has said that it waits.
fn waiting_run() -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moce"));
    command.args(["run", "-q", "--temp", "0", "-n", "16"]).env_remove("MOCE_MODEL");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains("standard input") && said.contains("-p TEXT"), "{said}");
    child
}

#[test]
fn a_pipe_is_waited_for() {
    let mut child = waiting_run();
    child.stdin.take().unwrap().write_all(b"The capital of France,").unwrap();
    assert_eq!(text(&child.wait_with_output().unwrap().stdout), stdout(&GREEDY));
    // Its writer ends without a word: the built-in prompt.
    let output = waiting_run().wait_with_output().unwrap();
    assert_eq!(output.stdout, moce(&["run", "-q", "--temp", "0", "-n", "16"]).stdout);
}

#[test]
#[cfg(target_os = "linux")]
fn standard_input_without_an_end_is_refused() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moce"));
    command.args(["run", "-q", "--ctx", "64"]).env_remove("MOCE_MODEL");
    let output = command.stdin(std::fs::File::open("/dev/zero").unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("standard input") && text(&output.stderr).contains("64 tokens"));
    let named = moce(&["run", "-q", "--ctx", "64", "-f", "/dev/zero"]);
    assert_eq!(named.status.code(), Some(1));
    assert!(text(&named.stderr).contains("/dev/zero") && text(&named.stderr).contains("64 tokens"));
}

#[test]
fn stop_texts_end_the_answer() {
    let whole = stdout(&GREEDY);
    let (before, _) = whole.split_once("located").unwrap();
    let stopped = stdout(&[&GREEDY[..], &["--stop", "located"]].concat());
    assert_eq!(stopped.trim_end_matches('\n'), before);
}

#[test]
fn json_ends_with_one_object_that_repeats_the_text() {
    let lines = stdout(&[&GREEDY[..], &["--json"]].concat());
    let values: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (summary, pieces) = values.split_last().unwrap();
    let streamed: String = pieces.iter().map(|piece| piece["piece"].as_str().unwrap()).collect();
    assert_eq!(summary["text"].as_str().unwrap(), streamed);
    assert_eq!(summary["token_ids"].as_array().unwrap().len(), 16);
    assert_eq!(summary["stop_reason"], "max_tokens");
    assert_eq!(summary["prompt"]["tokens"], 5);
    for field in [
        "version",
        "model",
        "kv",
        "touch",
        "start",
        "isa",
        "io",
        "threads",
        "ctx",
        "memory_plan_bytes",
        "routing",
        "eviction",
    ] {
        assert!(!summary[field].is_null(), "{field}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_budget_is_kept() {
    let budget = 200 << 20;
    let lines = stdout(&[&GREEDY[..], &["--json", "--memory", "200MiB"]].concat());
    let summary: serde_json::Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    let number = |field: &str| summary[field].as_u64().unwrap();
    let (peak, plan) = (number("peak_memory_bytes"), number("memory_plan_bytes"));
    assert!(peak <= plan && plan <= budget, "peak {peak}, plan {plan}, budget {budget}");
    assert!(number("memory_budget_bytes") == budget);
    assert!(summary["generation"]["flash_bytes"].as_u64().unwrap() > 0);
    for phase in ["prompt", "generation"] {
        let count = |field: &str| summary[phase][field].as_u64().unwrap();
        // Every expert of the demo model has as many bytes.
        assert!(count("misses") > 0 && count("logical_bytes") == 31_104 * count("misses"), "{}", summary[phase]);
    }
}

#[test]
fn what_cannot_be_is_refused_in_one_line_that_says_what_to_do() {
    let lines = |message: &str| message.trim_end().lines().count();
    for (arguments, status, parts) in [
        (&["run", "nosuch.gguf", "-p", "x"][..], 1, &["nosuch.gguf"][..]),
        (&["trace", "record", "-p", "x", "-o", env!("CARGO_MANIFEST_DIR"), "--force"], 1, &["is a folder"]),
        (&["run", "-p", "x", "--cache-state", "nosuch/x"], 1, &["no folder nosuch"]),
        (&["run", "Once upon a time"], 1, &["Once upon a time", "behind -p"]),
        (&["run", "-p", "x", "--ctx", "100000"], 2, &["100000", "8192"]),
        (&["run", "-p", "x", "--memory", "1MiB"], 1, &["1 MiB", "--memory"]),
        (&["run", "-p", "x", "--capacity", "3"], 2, &["capacity 3", "4", "60"]),
        (&["run", "-p", "x", "--routing", "fast:except=0:30"], 2, &["except", "`30`", "below 30"]),
        (&["tokenize", "--decode", "49152"], 1, &["49152"]),
        (&["tokenize", "--decode", "1.5"], 1, &["\"1.5\" is no token id"]),
        (&["tokenize", "--decode", "5 -3"], 1, &["\"-3\" is no token id"]),
        (&["tokenize", "a", "b"], 2, &["'a'", "quote"]),
        (&["bench", "--prompt-tokens", "9000"], 2, &["9000", "8192"]),
        (&["perplexity", "-f", "nosuch.txt"], 1, &["nosuch.txt"]),
    ] {
        let message = refused(arguments, status);
        assert!(parts.iter().all(|part| message.contains(part)), "{arguments:?}: {message}");
        assert!(lines(&message) <= 2, "{arguments:?}: {message}");
    }
    for (arguments, part) in [
        (&["run", "--temp", "-1"][..], "--temp"),
        (&["run", "--memory", "3G"], "--memory"),
        (&["run", "--ctx", "0"], "--ctx"),
        (&["run", "--top-p", "1.5"], "--top-p"),
        (&["run", "--eviction", "fifo"], "--eviction"),
        (&["run", "-p", "x", "-f", "y"], "--file"),
        (&["bench", "--shape", "mixtral-8x7b", "--type", "x"], "'x'"),
        (&["simulate", "nosuch.trace", "--capacity", "abc"], "abc"),
        (&["plan", "--flash-bandwidth", "0"], "more than 0"),
        (&["bench", "--routing", "fast", "--routing-grid", "balanced"], "--routing-grid"),
        (&["run", "--start", "first", "--cache-state", "x"], "--start"),
        (&["trace", "record", "-p", "x", "-o", "nosuch/x", "--temp", "1"], "--tokens"),
        (&["trace", "record", "-p", "x", "-o", "nosuch/x", "--seed", "1"], "--tokens"),
        (&["bench", "--yes"], "--shape"),
        (&["bench", "model.gguf", "--yes"], "--yes"),
        (&["bench", "model.gguf", "--type", "q8_0"], "--type"),
        (&["bench", "model.gguf", "--folder", "x"], "--folder"),
        (&["trace", "export", "x.trace", "--force"], "--output"),
        (&["man", "--force"], "--output"),
        (&["sing"], "sing"),
    ] {
        let message = refused(arguments, 2);
        assert!(message.contains(part), "{arguments:?}: {message}");
    }
    let dense = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama.gguf");
    let output = moce(&["run", dense, "-p", "a", "-n", "1", "--routing", "fast"]);
    assert!(text(&output.stderr).contains("has no experts, so"), "{}", text(&output.stderr));
    let isa = Command::new(env!("CARGO_BIN_EXE_moce")).args(GREEDY).env("MOCE_ISA", "abacus").output().unwrap();
    assert_eq!(isa.status.code(), Some(1));
    assert!(text(&isa.stderr).contains("MOCE_ISA"), "{}", text(&isa.stderr));
    let named =
        Command::new(env!("CARGO_BIN_EXE_moce")).args(GREEDY).env("MOCE_MODEL", "nosuch.gguf").output().unwrap();
    assert_eq!(named.status.code(), Some(1));
    assert!(text(&named.stderr).contains("nosuch.gguf (from MOCE_MODEL)"), "{}", text(&named.stderr));
}

#[test]
fn a_prompt_that_does_not_fit_is_refused_and_a_full_context_is_said() {
    let message = moce(&["run", "-q", "--ctx", "4", "-p", "one two three four five six"]);
    assert_eq!(message.status.code(), Some(1));
    assert!(text(&message.stderr).contains("--ctx"), "{}", text(&message.stderr));
    let full = moce(&["run", "--ctx", "12", "--temp", "0", "--ignore-eos", "-p", "one two three"]);
    assert!(full.status.success());
    assert!(text(&full.stderr).contains("context full"), "{}", text(&full.stderr));
}

#[test]
fn text_becomes_tokens_and_tokens_become_text() {
    let ids = stdout(&["tokenize", "Hello, wörld 🙂", "--ids"]);
    let back = moce_with_input(&["tokenize", "--decode"], ids.as_bytes());
    assert_eq!(text(&back.stdout), "Hello, wörld 🙂\n");
    // The demo model's vocabulary has no token for this one.
    let lossy = moce(&["tokenize", "Hello\u{4}, wörld 🙂", "--ids"]);
    assert_eq!(text(&lossy.stdout), ids);
    assert!(text(&lossy.stderr).contains("left out: 1"), "{}", text(&lossy.stderr));
}

#[test]
fn logits_are_those_that_run_picks_from() {
    let all: serde_json::Value =
        serde_json::from_str(&stdout(&["logits", "-q", "-p", "The capital of France,", "--json"])).unwrap();
    let logits = all["logits"].as_array().unwrap();
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].as_f64().unwrap().total_cmp(&logits[b].as_f64().unwrap()));
    let summary = stdout(&[&GREEDY[..], &["--json"]].concat());
    let summary: serde_json::Value = serde_json::from_str(summary.lines().last().unwrap()).unwrap();
    assert_eq!(summary["token_ids"][0].as_u64().unwrap() as usize, best.unwrap());
    // All of its tokens are the prompt's, so a policy is theirs unless it is kept from them.
    let logits = |more: &[&str]| -> serde_json::Value {
        let lossy = ["logits", "-q", "--json", "-p", "The capital of France,", "--routing", "prune:k=1"];
        serde_json::from_str(&stdout(&[&lossy[..], more].concat())).unwrap()
    };
    let (lossy, kept) = (logits(&[]), logits(&["--routing-prompt", "original"]));
    assert!(lossy["routing"] == "prune:k=1" && lossy["changed_share"].as_f64().unwrap() > 0.5);
    assert_eq!((&kept["routing"], &kept["logits"]), (&"original".into(), &all["logits"]));
}

/// Misses are counted for the capacity that was asked for, and what was measured has to run in the same budget.
#[test]
fn a_budget_that_a_capacity_does_not_fit_is_refused_by_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (text, output) = (at("text"), at("output"));
    std::fs::write(&text, "Once upon a time").unwrap();
    // In MiB.
    let least = |command: &[&str], capacity: &str| -> u64 {
        let said = refused(&[command, &["--memory", "1MiB", "--capacity", capacity]].concat(), 1);
        let (_, rest) = said.split_once("needs at least ").unwrap();
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    for (command, several) in [
        (&["run", "-p", "x"][..], false),
        (&["logits", "-p", "x"], false),
        (&["bench"], false),
        (&["plan"], false),
        (&["perplexity", "-f", &text], false),
        (&["trace", "record", "-f", &text, "-o", &output], false),
        (&["tune", "-f", &text, "-o", &output], false),
        (&["sweep", "-f", &text, "-o", &output, "--routing-grid", "original"], true),
    ] {
        let (few, many) = (least(command, "4"), least(command, if several { "4,75%,8" } else { "75%" }));
        // 41 experts of 31,104 bytes in each of 30 layers: 36 MiB.
        assert!(many >= few + 30, "{command:?}: {few} MiB for 4 experts a layer, {many} MiB for 45");
    }
}

/// What files say is shown, but moves no cursor and forges no line.
#[test]
fn inspect_shows_any_architecture_and_escapes_what_a_file_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.gguf");
    let mut writer = moce_gguf::Writer::new();
    for (key, value) in [
        ("general.architecture", moce_gguf::Value::from("abacus")),
        ("general.name", "x\u{1b}[2Jy\nidentity      0000".into()),
        ("abacus.attention.head_count_kv", moce_gguf::Value::Array(moce_gguf::Array::I32(vec![0, 2]))),
        ("abacus.expert_count", 1_u32.into()),
        ("abacus.expert_used_count", (1_u64 << 63).into()),
    ] {
        writer.set(key, value).unwrap();
    }
    let tensor = "blk.0.ffn_up\u{1b}_exps.weight";
    writer.add_tensor(tensor, moce_gguf::TensorType::F32, &[64]).unwrap();
    writer.create(&path, |_, out| out.write_all(&[0; 256])).unwrap();
    let shown = stdout(&["inspect", path.to_str().unwrap(), "--tensors", "--metadata"]);
    assert!(shown.contains("x\\u{1b}[2Jy\\nidentity") && shown.contains("ffn_up\\u{1b}_exps"), "{shown}");
    assert!(!shown.contains('\u{1b}') && shown.matches("\nidentity").count() == 1, "{shown}");
    assert!(shown.contains("256 B a token"), "{shown}");
}

#[test]
fn inspect_knows_the_experts() {
    let overview: serde_json::Value = serde_json::from_str(&stdout(&["inspect", "--json"])).unwrap();
    assert_eq!(overview["architecture"], "qwen2moe");
    assert_eq!(overview["experts"]["count"], 60);
    assert_eq!(overview["experts"]["per_token"], 4);
}

#[test]
fn completions_and_manual_are_there() {
    for shell in ["bash", "zsh", "fish", "powershell"] {
        assert!(stdout(&["completions", shell]).contains("moce"), "{shell}");
    }
    assert!(stdout(&["man"]).contains(".TH"));
    assert!(stdout(&["run", "--help"]).contains("Examples:"));
}

#[test]
fn manual_pages_are_written_whole_and_replaced_only_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    let write = ["man", "-o", pages.to_str().unwrap()];
    let names = || {
        let entries = std::fs::read_dir(&pages).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    stdout(&write);
    let all = names();
    assert!(["moce.1", "moce-run.1", "moce-trace-record.1"].iter().all(|page| all.iter().any(|name| name == page)));
    assert!(all.iter().all(|name| name.ends_with(".1")), "{all:?}");
    let run = pages.join("moce-run.1");
    let page = std::fs::read_to_string(&run).unwrap();
    assert!(page.contains(".TH moce-run 1"), "{page}");
    // One that is there keeps all others from being written.
    std::fs::remove_file(pages.join("moce.1")).unwrap();
    std::fs::write(&run, "precious").unwrap();
    assert!(refused(&write, 1).contains("--force"));
    assert_eq!((names().len(), &std::fs::read(&run).unwrap()[..]), (all.len() - 1, &b"precious"[..]));
    stdout(&[&write[..], &["--force"]].concat());
    assert_eq!((names(), std::fs::read_to_string(&run).unwrap()), (all, page));
}

#[test]
fn help_tells_each_commands_own_defaults() {
    // On one line, however wide the terminal is.
    let help = |command: &[&str]| {
        let text = stdout(&[command, &["--help"]].concat());
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let by_memory = "one number per layer [default: what the memory gives]";
    let half = "one number per layer [default: 50%]";
    for (command, capacity, prompt) in [
        (&["run"][..], by_memory, "[default: original]"),
        (&["plan"], by_memory, "[default: original]"),
        (&["logits"], by_memory, "[default: same]"),
        (&["perplexity"], half, "[default: same]"),
        (&["eval"], half, "[default: same]"),
        (&["trace", "record"], half, "[default: same; with -n: original]"),
    ] {
        let help = help(command);
        assert!(help.contains(capacity), "{command:?}: {help}");
        assert!(help.contains(&format!("The policy for prompt tokens {prompt}")), "{command:?}: {help}");
    }
    let usual = "4096, or the model's if smaller; 1024 where a third more of the experts is cached then";
    let scored = "a window, and its BOS with --bos";
    for (command, context) in [
        (&["run"][..], usual),
        (&["logits"], usual),
        (&["plan"], usual),
        (&["eval"], usual),
        (&["perplexity"], scored),
        (&["sweep"], scored),
        (&["tune"], "a window"),
        (&["trace", "record"], "a window; with -n: 4096, or the model's if smaller"),
        (&["bench"], "prompt and answer, at least 1024, at most the model's"),
    ] {
        let help = help(command);
        assert!(help.contains(&format!("`max` for the model's own [default: {context}]")), "{command:?}: {help}");
    }
    for command in ["sweep", "tune"] {
        let help = help(&[command]);
        assert!(help.contains("[default: 50%]") && !help.contains("--routing-prompt"), "{command}: {help}");
    }
}
