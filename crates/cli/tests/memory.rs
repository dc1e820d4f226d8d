//! The budget is kept: peak resident memory <= plan <= budget, the plan at most a tenth above the peak, in a run of 8 tokens and in one that
//! fills the context. In a memory control group as large as the budget, so that the kernel kills what takes more.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers
#![cfg(target_os = "linux")]

use moce_convert::{Shape, write_shape};
use moce_quant::Format;
use moce_testkit::{MemoryGroup, demo_model};
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Output;

const MIB: u64 = 1 << 20;
/// Of a run that fills it.
const CONTEXT: usize = 192;

/// Runs a model in the group. Its tokens are drawn almost uniformly, so that experts miss as often as they can.
fn run(group: &MemoryGroup, model: &Path, options: &[&str]) -> Output {
    let mut command = group.command(env!("CARGO_BIN_EXE_moce"));
    command.arg("run").arg(model).args(["-q", "--json", "--seed", "1", "--temp", "50", "--ignore-eos"]).args(options);
    command.env_remove("MOCE_ISA").env_remove("MOCE_LOG").output().unwrap()
}

fn summary(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

fn check(name: &str, model: &Path, budget: u64) {
    let Some(group) = MemoryGroup::new(budget) else { return };
    let memory = (budget / MIB).to_string() + "MiB";
    let context = CONTEXT.to_string();
    let prompt = "One token a byte, or more. ".repeat(6);
    let mut plans = Vec::new();
    for (what, tokens) in [("8 tokens", "8"), ("a full context", "1000")] {
        let options = ["-p", &prompt, "-n", tokens, "--memory", &memory, "--ctx", &context];
        let summary = summary(&run(&group, model, &options));
        let number = |field: &str| summary[field].as_u64().unwrap();
        let (peak, plan) = (number("peak_memory_bytes"), number("memory_plan_bytes"));
        let figures = format!(
            "{name}, {what}: peak {:.1}, plan {:.1}, budget {:.1} MiB; the plan is {:.1} % above the peak",
            peak as f64 / MIB as f64,
            plan as f64 / MIB as f64,
            budget as f64 / MIB as f64,
            100.0 * (plan as f64 / peak as f64 - 1.0),
        );
        println!("{figures}");
        assert!(summary["generation"]["flash_bytes"].as_u64().unwrap() > 0, "{figures}: nothing was streamed");
        assert!(peak <= plan && plan <= budget, "{figures}");
        assert!(plan as f64 <= 1.1 * peak as f64, "{figures}");
        plans.push((summary["stop_reason"].as_str().unwrap().to_owned(), plan));
    }
    assert_eq!([&plans[0].0[..], &plans[1].0], ["max_tokens", "context_full"]);
}

#[test]
fn the_demo_model_stays_inside_its_budget() {
    check("demo", &demo_model(), 170 * MIB);
}

/// 440 MB with experts of 0.9 MB.
#[test]
fn a_model_twice_as_large_as_its_budget_stays_inside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let shape = Shape {
        layers: 8,
        hidden: 1024,
        heads: 8,
        kv_heads: 8,
        expert_width: 512,
        shared_width: 1024,
        vocabulary: 8000,
        ..Shape::named("qwen1.5-moe-a2.7b").unwrap()
    };
    write_shape(&shape, Format::Q4_0, 1, &path, &mut |_| ControlFlow::Continue(())).unwrap();
    check("synthetic", &path, 220 * MIB);

    // Without a budget: what the group leaves, less a reserve of 256 MiB.
    let Some(group) = MemoryGroup::new(476 * MIB) else { return };
    let summary = summary(&run(&group, &path, &["-p", "Hello", "-n", "8"]));
    assert_eq!(summary["memory_budget_bytes"], 220 * MIB);
    assert!(summary["generation"]["flash_bytes"].as_u64().unwrap() > 0);
}

/// Scores that are replayed are memory, too.
#[test]
fn a_replayed_trace_counts() {
    let Some(group) = MemoryGroup::new(200 * MIB) else { return };
    let folder = tempfile::tempdir().unwrap();
    let (text, trace) = (folder.path().join("text"), folder.path().join("scores.trace"));
    std::fs::write(&text, "Some words that are said again and again. ".repeat(120)).unwrap();
    let moce = |options: &[&str], paths: &[(&str, &Path)]| {
        let mut command = group.command(env!("CARGO_BIN_EXE_moce"));
        command.args(options).arg(demo_model()).args(["-q", "--json", "--memory", "200MiB"]);
        for (option, path) in paths {
            command.arg(option).arg(path);
        }
        command.env_remove("MOCE_ISA").env_remove("MOCE_LOG").output().unwrap()
    };
    let recorded = moce(&["trace", "record"], &[("-f", &text), ("-o", &trace)]);
    assert!(recorded.status.success(), "{}", String::from_utf8_lossy(&recorded.stderr));
    let options = ["bench", "--rounds", "1", "--prompt-tokens", "900", "-n", "8"];
    let measured = moce(&options, &[("--replay", &trace)]);
    assert!(measured.status.success(), "{}", String::from_utf8_lossy(&measured.stderr));
    let document: Value = serde_json::from_slice(&measured.stdout).unwrap();
    let number = |field: &str| document["cells"][0][field].as_u64().unwrap();
    let (peak, plan) = (number("peak_memory_bytes"), number("memory_plan_bytes"));
    assert!(peak <= plan && plan <= 200 * MIB, "peak {peak}, plan {plan}");
}

/// A refusal names the smallest budget; with that one (and a little, since programs differ from start to start) the model runs.
#[test]
fn the_smallest_budget_that_is_named_works() {
    let Some(group) = MemoryGroup::new(1 << 30) else { return };
    let refused = run(&group, &demo_model(), &["-p", "Hello", "-n", "2", "--memory", "1MiB"]);
    assert_eq!(refused.status.code(), Some(1));
    let message = String::from_utf8(refused.stderr).unwrap();
    let (_, rest) = message.split_once("needs at least ").unwrap();
    let smallest: u64 = rest.split(' ').next().unwrap().parse().unwrap();
    let memory = format!("{}MiB", smallest + 1);
    let summary = summary(&run(&group, &demo_model(), &["-p", "Hello", "-n", "2", "--memory", &memory]));
    assert!(summary["memory_plan_bytes"].as_u64().unwrap() <= (smallest + 1) * MIB);
}
