//! Sweeps: resuming, shards and the report, on a text of a few short windows.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers

mod support;

use std::path::Path;
use support::{refused, stdout};

const TEXT: &str = "The river rises in the hills above the town and runs through it to the sea. In the old days the mills along its \
    banks ground the corn of the whole valley, and the bridges were built of stone from the quarry to the north. Every spring the \
    water came up to the doors of the houses on the lower street, and every summer the children swam where the wheel had been.";

fn sweep(text: &Path, grid: &str, output: &Path, more: &[&str]) -> String {
    let (text, output) = (text.to_str().unwrap(), output.to_str().unwrap());
    let fixed =
        ["sweep", "-q", "-f", text, "--window", "8", "--routing-grid", grid, "--capacity", "15,50%", "-o", output];
    stdout(&[&fixed[..], more].concat())
}

#[test]
fn shards_make_the_same_report_as_the_whole_and_finished_cells_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("text"), TEXT).unwrap();
    let grid = "cache-prior:lambda=0.1|0.4";
    let whole = sweep(&at("text"), grid, &at("whole"), &["--flash-bandwidth", "1GB", "--compute-ms", "5"]);
    assert_eq!(whole.lines().count(), 1 + 2 * 3, "{whole}");
    assert!(whole.contains(" *"), "some point is not beaten by another: {whole}");
    for shard in ["1/2", "2/2"] {
        sweep(&at("text"), grid, &at(&shard.replace('/', "-")), &["--shard", shard]);
    }
    let paths = [at("1-2"), at("2-2"), at("merged")];
    let [one, two, merged] = paths.each_ref().map(|path| path.to_str().unwrap());
    let timing = ["--flash-bandwidth", "1GB", "--compute-ms", "5"];
    let joined = stdout(&[&["sweep", "merge", "-q", one, two, "-o", merged], &timing[..]].concat());
    assert_eq!(joined, whole);
    for file in ["results.json", "report.html", "pareto-50p-lru.svg", "layers-15-lru.svg", "usage.svg"] {
        let read = |name: &str| std::fs::read_to_string(at(name).join(file)).unwrap();
        assert!(read("merged") == read("whole"), "{file}");
    }
    // What is there is not run again: a result that was changed by hand stays.
    let cell = at("whole").join("cells/15_lru_original.json");
    let changed = std::fs::read_to_string(&cell).unwrap().replacen("\"tokens\":", "\"tokens\": ", 1);
    std::fs::write(&cell, &changed).unwrap();
    assert_eq!(sweep(&at("text"), grid, &at("whole"), &timing), whole);
    assert_eq!(std::fs::read_to_string(&cell).unwrap(), changed);
}

#[test]
fn studies_are_not_mixed() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("text"), TEXT).unwrap();
    std::fs::write(at("other"), TEXT.to_uppercase()).unwrap();
    sweep(&at("text"), "original", &at("out"), &[]);
    let same = [at("text"), at("out")];
    let [text, out] = same.each_ref().map(|path| path.to_str().unwrap());
    let again = ["sweep", "-q", "-f", text, "--window", "32", "--routing-grid", "original", "-o", out];
    for other in [&["--touch", "weak-first"][..], &["--start", "first"], &["--kl"], &["--kv", "q8_0"]] {
        assert!(refused(&[&again[..], other].concat(), 1).contains("another study"), "{other:?}");
    }
    let (text, out) = (at("other"), at("out"));
    let (text, out) = (text.to_str().unwrap(), out.to_str().unwrap());
    let fixed = ["sweep", "-q", "-f", text, "--window", "32", "--routing-grid", "original", "-o", out];
    assert!(refused(&fixed, 1).contains("another study"));
    // A file of capacities gives its cells its name, and may change.
    let capacities = format!("{out}.capacities");
    std::fs::write(&capacities, "20 ".repeat(30)).unwrap();
    let listed = ["sweep", "-q", "-f", text, "--window", "32", "--routing-grid", "original", "--capacity", &capacities];
    let folder = format!("{out}-listed");
    let listed = [&listed[..], &["-o", &folder]].concat();
    let before = stdout(&listed);
    assert_eq!(stdout(&listed), before);
    std::fs::write(&capacities, "21 ".repeat(30)).unwrap();
    assert!(refused(&listed, 1).contains("other capacities"));
    assert!(
        refused(&["sweep", "-f", text, "--routing-grid", "cache-prior:lambda=0..1", "-o", out], 2).contains("lambda")
    );
    let again = ["sweep", "-f", text, "--routing-grid", "original", "-o", out];
    for (wrong, named) in [
        (&["--routing", "fast"][..], "--routing"),
        (&["--routing-prompt", "same"], "--routing-prompt"),
        (&["--capacity", "30,abc"], "abc"),
        (&["--flash-bandwidth", "1GB", "--compute-ms", "nan"], "--compute-ms"),
        (&["--flash-bandwidth", "1GB", "--compute-ms", "inf"], "--compute-ms"),
        (&["--flash-bandwidth", "1GB", "--compute-ms=-1"], "--compute-ms"),
    ] {
        let said = refused(&[&again[..], wrong].concat(), 2);
        assert!(said.contains(named), "{wrong:?}: {said}");
    }
    // What cannot run, or would run twice, is known before the first cell runs.
    let (lists, fresh) = (at("lists"), at("fresh"));
    std::fs::write(&lists, "1 2 3 4 5 6 7 8 9 10\n".repeat(30)).unwrap();
    let fresh = fresh.to_str().unwrap();
    let starts = ["--start", lists.to_str().unwrap(), "--capacity", "10,8"];
    let sweep = ["sweep", "-q", "-f", text, "--window", "32", "-o", fresh, "--routing-grid"];
    let said = refused(&[&sweep[..], &["original"], &starts].concat(), 1);
    assert!(said.contains("10 experts for a capacity of 8"), "{said}");
    let said = refused(&["sweep", "nosuch.gguf", "-f", text, "-o", text, "--routing-grid", "original"], 1);
    assert!(said.contains("is a file; give the name of a folder"), "{said}");
    let dense = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama.gguf");
    let said = refused(&["sweep", dense, "-q", "-f", text, "--window", "32", "-o", fresh, "--routing-grid", "fast"], 1);
    assert!(said.contains("no experts"), "{said}");
    assert!(!std::path::Path::new(fresh).exists());
    let merged = at("merged");
    assert!(refused(&["sweep", "merge", text, "-o", merged.to_str().unwrap()], 1).contains("cells"));
}

#[test]
fn too_few_windows_for_an_interval_are_said_once() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("text"), TEXT).unwrap();
    let report = || std::fs::read_to_string(at("out/report.html")).unwrap();
    let why = "(no interval: 2 windows, 8 are needed)";
    let few = |grid: &str| sweep(&at("text"), grid, &at("out"), &["--limit", "16"]);
    // The original's rise over itself needs none.
    assert!(!few("original").contains("interval:") && !report().contains("interval:"));
    let table = few("fast");
    assert!(table.ends_with(&format!("\n{why}\n")) && table.matches(why).count() == 1, "{table}");
    assert_eq!(report().matches(why).count(), 1);
    sweep(&at("text"), "fast", &at("enough"), &[]);
    assert!(!std::fs::read_to_string(at("enough/report.html")).unwrap().contains("no interval"));
}

#[test]
fn original_routing_runs_along_where_it_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("text"), TEXT).unwrap();
    let rows = sweep(&at("text"), "cache-prior:lambda=0.4", &at("out"), &["--kl", "--json"]);
    let rows: Vec<serde_json::Value> = serde_json::from_str(&rows).unwrap();
    let (original, lossy): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row["routing"] == "original");
    assert!(original.iter().all(|row| row["kl_mean"].is_null() && row["perplexity_rise"] == 0.0));
    for row in lossy {
        assert!(row["kl_mean"].as_f64().unwrap() > 0.0 && row["top1_agreement"].as_f64().unwrap() <= 1.0);
        let interval = &row["perplexity_rise_interval"];
        let [low, rise, high] =
            [&interval["low"], &row["perplexity_rise"], &interval["high"]].map(|x| x.as_f64().unwrap());
        assert!(low <= rise && rise <= high, "{row}");
    }
}
