//! Tuning, and the profile that comes of it.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers

mod support;

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use support::{refused, stdout};

const SENTENCES: [&str; 4] = [
    "The river rises in the hills above the town and runs through it to the sea. ",
    "In the old days the mills along its banks ground the corn of the whole valley. ",
    "Every spring the water came up to the doors of the houses on the lower street. ",
    "The bridges were built of stone from the quarry to the north, and some of them still stand. ",
];

/// A folder with a file `text`, and the paths of files in it.
fn folder_with(text: &str) -> (tempfile::TempDir, impl Fn(&str) -> String + use<>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    std::fs::write(path.join("text"), text).unwrap();
    (folder, move |name| path.join(name).to_str().unwrap().to_owned())
}

#[test]
fn a_profile_keeps_its_limit_and_is_applied_to_its_model_alone() {
    let (_folder, at) = folder_with(&SENTENCES.concat().repeat(2));
    let (text, profile) = (at("text"), at("profile"));
    let tune = [
        "tune",
        "-f",
        &text,
        "--window",
        "8",
        "--limit",
        "64",
        "--capacity",
        "12",
        "--max-loss",
        "20%",
        "-o",
        &profile,
    ];
    let tuned: Value = serde_json::from_str(&stdout(&[&tune[..], &["-q", "--json"]].concat())).unwrap();
    assert_eq!(tuned, serde_json::from_str::<Value>(&std::fs::read_to_string(&profile).unwrap()).unwrap());
    let number = |key: &str| tuned["measured"][key].as_f64().unwrap();
    assert!(number("perplexity_rise_upper") <= 0.2 && number("perplexity_rise") <= number("perplexity_rise_upper"));
    assert!(number("miss_rate") < number("original_miss_rate"), "a fifth of the perplexity buys no miss: {tuned}");
    let capacity: Vec<u64> = tuned["capacity"].as_array().unwrap().iter().map(|c| c.as_u64().unwrap()).collect();
    assert!(capacity.len() == 30 && capacity.iter().sum::<u64>() == 30 * 12, "{capacity:?}");
    let prices = tuned["layer_prices"].as_array().unwrap();
    assert!(prices.iter().all(|price| price["kl"].as_f64().unwrap() > 0.0), "a layer that leaning does not move");
    let mut layers: Vec<u64> = prices.iter().map(|price| price["layer"].as_u64().unwrap()).collect();
    layers.sort_unstable();
    assert_eq!(layers, (0..30).collect::<Vec<u64>>());

    let run = ["run", "-q", "--json", "-n", "8", "--seed", "1", "-p", "The river", "--profile", &profile];
    let output = stdout(&[&run[..], &["--target-tps", "1000000"]].concat());
    let summary: Value = serde_json::from_str(output.lines().last().unwrap()).unwrap();
    assert_eq!((&summary["capacity"], &summary["eviction"]), (&tuned["capacity"], &tuned["eviction"]));
    assert_eq!(summary["routing"], tuned["routing"]);
    // Eight tokens give one look at the clock, which moves lambda by nearly half of its range.
    assert_eq!(summary["target_tps"], 1e6);
    assert!((summary["lambda_share_last"].as_f64().unwrap() - 0.5).abs() < 1e-3, "{summary}");
    // Such a run depends on time; its record repeats it.
    let trace = at("trace");
    let paced: [&[&str]; 3] = [&run, &["--target-tps", "200"], &["--record-routing", &trace]];
    let answer = |output: &str| {
        let summary: Value = serde_json::from_str(output.lines().last().unwrap()).unwrap();
        let answer = (summary["text"].clone(), summary["token_ids"].clone(), summary["misses"].clone());
        (summary["target_tps"].as_f64(), answer)
    };
    let (speed, recorded) = answer(&stdout(&paced.concat()));
    assert_eq!(speed, Some(200.0));
    assert_eq!(answer(&stdout(&[&run[..], &["--replay-routing", &trace]].concat())), (None, recorded));

    let plan = ["plan", "--json", "--flash-bandwidth", "1GB", "--profile", &profile];
    let plan: Value = serde_json::from_str(&stdout(&plan)).unwrap();
    let predictions = plan["predictions"].as_array().unwrap();
    let predicted = predictions[0]["miss_rate"].as_f64().unwrap();
    assert!(predictions.len() == 1 && (predicted - number("miss_rate")).abs() < 1e-9, "{predictions:?}");

    let bench = ["bench", "-q", "--json", "--rounds", "1", "-n", "2", "--prompt-tokens", "8", "--profile", &profile];
    let bench: Value = serde_json::from_str(&stdout(&[&bench[..], &["--routing-grid", "original"]].concat())).unwrap();
    let cells = bench["cells"].as_array().unwrap();
    let routings: Vec<&Value> = cells.iter().map(|cell| &cell["routing"]).collect();
    assert_eq!(routings, [&Value::from("original"), &tuned["routing"]]);
    assert!(cells.iter().all(|cell| cell["capacity"] == tuned["capacity"]));

    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/qwen2moe.gguf");
    assert!(refused(&["run", fixture, "-p", "a", "--profile", &profile], 1).contains("another model"));
    assert!(refused(&["plan", fixture, "--profile", &profile], 1).contains("another model"));
    assert!(refused(&["run", "--profile", &profile, "--routing", "fast"], 2).contains("--routing"));
    for others in [&[][..], &["--routing", "fast"], &["--capacity", "6"]] {
        assert!(refused(&[&["run", "--target-tps", "5"], others].concat(), 2).contains("--profile"));
    }
    assert_eq!(tuned["touch"], "strong-first");
    assert!(refused(&["run", "--profile", &profile, "--touch", "weak-first"], 2).contains("--touch"));
    assert!(refused(&tune, 1).contains("--force"));
    assert!(refused(&[&tune[..], &["--force", "--start", "first"]].concat(), 2).contains("--start"));
    assert!(!Path::new(&format!("{profile}.partial")).exists());
    // Known before a model is opened, not after the search.
    let (nowhere, folder) = (at("no/folder"), at("."));
    for (target, why) in [(&nowhere, "there is no folder"), (&folder, "is a folder")] {
        let said = refused(&["tune", "nosuch.gguf", "-f", &text, "-o", target, "--force"], 1);
        assert!(said.contains(why) && said.contains(target) && !said.contains("nosuch.gguf"), "{said}");
    }
    for (wrong, why) in [("{}", "no profile"), ("{\"version\": 1}", "version 1"), ("{\"version\": 2}", "no profile")] {
        std::fs::write(&profile, wrong).unwrap();
        assert!(refused(&["run", "-p", "a", "--profile", &profile], 1).contains(why));
    }
}

/// The order in which experts become most recent is a part of what was measured.
#[test]
fn a_profile_applies_the_touch_order_that_it_was_tuned_with() {
    let (_folder, at) = folder_with(&SENTENCES.concat().repeat(2));
    let (text, profile, trace) = (at("text"), at("profile"), at("trace"));
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/qwen2moe.gguf");
    stdout(&[
        "tune",
        model,
        "-q",
        "-f",
        &text,
        "--window",
        "8",
        "--limit",
        "64",
        "--touch",
        "weak-first",
        "-o",
        &profile,
    ]);
    stdout(&["run", model, "-q", "-n", "1", "-p", "a", "--profile", &profile, "--record-routing", &trace]);
    let info: Value = serde_json::from_str(&stdout(&["trace", "info", &trace, "--json"])).unwrap();
    assert_eq!(info["touch"], "weak-first");
}

/// The second half is another kind of text, on which policies cost more: what was strongest on the first is refused, weaker ones follow.
#[test]
fn a_dearer_second_half_is_met_by_a_weaker_policy() {
    let other = "Thomas Jefferson wrote in 1785 that 43 percent of ships carried tobacco , wheat and flax . \
                 Question: Kim has 12 pens and buys 7 more. How many? Answer: 19. def main(): print(3) ";
    let (_folder, at) = folder_with(&(SENTENCES.concat() + other + other));
    let (text, profile) = (at("text"), at("profile"));
    let tune = ["tune", "-f", &text, "-o", &profile, "--window", "8", "--limit", "64", "--capacity", "12"];
    let output = support::moce(&[&tune[..], &["--max-loss", "4%", "--json"]].concat());
    let tuned: Value = serde_json::from_slice(&output.stdout).unwrap();
    // The last one asked was refused, and the one before it is the profile's.
    let said = support::text(&output.stderr);
    assert!(said.contains("perplexity may rise by at most 4 %"), "{said}");
    let asked: Vec<&str> = said.lines().filter(|line| line.starts_with("second half")).collect();
    let routing = tuned["routing"].as_str().unwrap();
    assert!(asked.len() > 2 && !asked[asked.len() - 1].ends_with(routing), "{said}");
    assert!(asked[asked.len() - 2].ends_with(routing), "{said}");
    let measured = &tuned["measured"];
    assert!(measured["perplexity_rise_upper"].as_f64().unwrap() <= 0.04, "{tuned}");
    assert!(
        measured["miss_rate"].as_f64().unwrap() < 0.95 * measured["original_miss_rate"].as_f64().unwrap(),
        "{tuned}"
    );
    assert_ne!(tuned["routing"], "original");
}

#[test]
fn too_little_text_and_what_tune_ignores_are_refused() {
    let (_folder, at) = folder_with(&SENTENCES.concat());
    let (text, profile) = (at("text"), at("profile"));
    let tune = ["tune", "-f", &text, "-o", &profile, "--window", "16"];
    let said = refused(&tune, 1);
    assert!(said.contains("8 are the least") && said.contains("--window"), "{said}");
    assert!(!Path::new(&format!("{profile}.partial")).exists());
    for ignored in [["--routing", "fast"], ["--routing-prompt", "same"]] {
        assert!(refused(&[&tune[..], &ignored].concat(), 2).contains(ignored[0]));
    }
    // Few want to lose as much as that; who does, says so.
    let with_limit = |limit: &str, status| refused(&[&tune[..], &["--max-loss", limit]].concat(), status);
    assert!(with_limit("1", 2).contains("did you mean 1%?"));
    assert!(with_limit("100%", 1).contains("perplexity may rise by at most 100 %"));
}

/// What is tried is said, and `moce tune ... 2>&1 | head -1` still writes its profile.
#[test]
fn progress_tells_what_is_tried_and_a_reader_that_goes_away_costs_no_profile() {
    let (_folder, at) = folder_with(&SENTENCES.concat().repeat(2));
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/qwen2moe.gguf");
    let mut command = Command::new(env!("CARGO_BIN_EXE_moce"));
    command.args(["tune", model, "--window", "8", "--limit", "64", "-f"]).arg(at("text")).arg("-o").arg(at("profile"));
    let said = String::from_utf8(command.output().unwrap().stderr).unwrap();
    // Two layers are priced, then the dearest is left out, and each has a λ of its own.
    assert_eq!(said.matches("alone: ").count(), 2, "{said}");
    let mut lambdas = said.split("lambda=").skip(1).filter_map(|behind| behind.split([',', '\n']).next());
    assert!(lambdas.any(|lambda| lambda.contains(':')), "{said}");
    assert!(said.contains("leaning in layer  1 alone: ") && said.contains(",except="), "{said}");
    std::fs::remove_file(at("profile")).unwrap();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && Path::new(&at("profile")).exists(), "{output:?}");
    assert!(String::from_utf8(output.stdout).unwrap().contains("original "));
}
