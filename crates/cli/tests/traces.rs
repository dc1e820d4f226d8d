//! Recorded routing as users and scripts see it: replayed runs, traces, simulations. On the demo model, which ships with the repository.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers

mod support;

use std::path::Path;

/// The arguments, with `@NAME` as a file in the folder.
fn placed(folder: &Path, arguments: &[&str]) -> Vec<String> {
    let place = |argument: &&str| match argument.strip_prefix('@') {
        Some(name) => folder.join(name).to_str().unwrap().to_owned(),
        None => (*argument).to_owned(),
    };
    arguments.iter().map(place).collect()
}

fn stdout(folder: &Path, arguments: &[&str]) -> String {
    let arguments = placed(folder, arguments);
    support::stdout(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

fn refused(folder: &Path, arguments: &[&str], status: i32) -> String {
    let arguments = placed(folder, arguments);
    support::refused(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), status)
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

#[test]
fn a_lossy_run_is_repeated_from_its_record() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let run = ["run", "-p", "The old lighthouse keeper", "--seed", "3", "-n", "24", "--ignore-eos", "--capacity", "8"];
    let lossy = ["--routing", "cache-prior:lambda=0.6", "--routing-prompt", "same", "--record-routing", "@run.trace"];
    let expected = stdout(folder, &[&run[..], &lossy].concat());
    let replay = ["--replay-routing", "@run.trace", "--json"];
    let summary = json(&stdout(folder, &[&run[..], &replay].concat()));
    assert_eq!(summary["text"].as_str().unwrap(), expected.trim_end_matches('\n'));
    assert_eq!(summary["routing"], "original");
    assert!(summary["replayed_routing"].as_str().unwrap().starts_with("cache-prior:lambda=0.6"));
    assert!(summary["changed_selections"].as_u64().unwrap() > 0);
    assert_ne!(stdout(folder, &run), expected, "original routing writes the same");

    // What was recorded is written; then there is no more.
    let longer = placed(folder, &[&run[..5], &["-n", "40", "--ignore-eos", "-q"], &replay[..2]].concat());
    let output = support::moce(&longer.iter().map(String::as_str).collect::<Vec<_>>());
    let message = support::text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("-n") && message.contains("recorded"), "{message}");
    assert!(support::text(&output.stdout).starts_with(expected.trim_end_matches('\n')));
    let other = refused(folder, &["run", "-q", "-p", "Another text", "--replay-routing", "@run.trace"], 1);
    assert!(other.contains("same text"), "{other}");
    let exists = refused(folder, &["logits", "-q", "-p", "x", "--record-routing", "@run.trace"], 1);
    assert!(exists.contains("run.trace") && exists.contains("exists"), "{exists}");
    for ignored in [["--routing", "fast"], ["--routing-prompt", "same"]] {
        let said = refused(folder, &[&run[..8], &replay[..], &ignored].concat(), 2);
        assert!(said.contains(ignored[0]), "{said}");
    }
    let scores = refused(folder, &["simulate", "@run.trace", "--routing-grid", "max-rank"], 1);
    assert!(scores.contains("max-rank") && scores.contains("moce trace record"), "{scores}");
}

#[test]
fn a_trace_is_recorded_described_simulated_and_exported() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let words = "the cat sat on the mat and looked at the sea ".repeat(40);
    std::fs::write(folder.join("text.txt"), words).unwrap();
    let record = ["trace", "record", "-q", "-f", "@text.txt", "--window", "100", "--limit", "200", "-o", "@text.trace"];
    stdout(folder, &record);
    assert!(refused(folder, &record, 1).contains("--force"));
    refused(folder, &["trace", "record", "-p", "x", "-n", "3", "--limit", "9", "-o", "@other.trace"], 2);
    refused(folder, &["trace", "export", "@text.trace", "--json"], 2);
    let recorded = json(&stdout(folder, &[&record[..], &["--force", "--f16", "--json"]].concat()));
    assert_eq!((&recorded["tokens"], &recorded["routing"]), (&200.into(), &"original".into()));
    assert!(recorded["misses"].as_u64().unwrap() > 0 && recorded["changed_share"] == 0.0, "{recorded}");

    let info = json(&stdout(folder, &["trace", "info", "@text.trace", "--json"]));
    assert_eq!((&info["tokens"], &info["precision"]), (&200.into(), &"f16".into()));
    assert_eq!(info["sequences"].as_u64().unwrap() + info["windows"].as_u64().unwrap(), 2);
    assert!(stdout(folder, &["trace", "info", "@text.trace"]).contains("whole"));
    let identity = info["identity"].as_str().unwrap();
    assert_eq!(identity.len(), 16);
    assert_eq!(json(&stdout(folder, &["inspect", "--json"]))["identity"], identity);

    let perplexity = ["perplexity", "-q", "-f", "@text.txt", "--window", "100", "--limit", "200", "--json"];
    let measured = json(&stdout(folder, &[&perplexity[..], &["--capacity", "20"]].concat()));
    assert_eq!((&measured["window"], &measured["touch"]), (&100.into(), &"strong-first".into()));
    let simulate = ["simulate", "-q", "@text.trace", "--routing-grid", "original;cache-prior:lambda=0.1..0.3/2"];
    let options =
        ["--capacity", "20,50%", "--eviction", "lru,lfu", "--flash-bandwidth", "1GB", "--compute-ms", "5", "--json"];
    let report = json(&stdout(folder, &[&simulate[..], &options].concat()));
    let cells = report["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 2 * (2 * 4 + 1));
    let share = |value: &serde_json::Value| value.as_f64().unwrap();
    assert!((share(&cells[0]["total"]["miss_rate"]) - share(&measured["miss_rate"])).abs() < 1e-12);
    assert!(share(&cells[0]["total"]["tokens_per_second"]) < 200.0);
    let table = stdout(folder, &simulate);
    assert!(table.lines().count() == 6 && table.contains("belady") && table.contains("lambda=0.2"), "{table}");

    let csv = stdout(folder, &["trace", "export", "@text.trace"]);
    let rows = info["selections"].as_u64().unwrap() as usize;
    assert_eq!(csv.lines().count(), rows + 1);
    stdout(folder, &["trace", "export", "@text.trace", "--all", "-o", "@all.csv"]);
    let all = std::fs::read_to_string(folder.join("all.csv")).unwrap();
    assert_eq!(all.lines().count(), rows / 4 * 60 + 1);

    let not = refused(folder, &["trace", "info", "@text.txt"], 1);
    assert!(not.contains("text.txt"), "{not}");
    for (arguments, part) in [
        (&["simulate", "@text.trace", "--scope", "global"][..], "--capacity"),
        (&["simulate", "@text.trace", "--scope", "global", "--capacity", "4GiB", "--eviction", "lfu"], "lru"),
        (&["simulate", "@text.trace", "--scope", "global", "--capacity", "4G"], "--capacity 4G"),
        (&["simulate", "@text.trace", "--capacity", "20,abc"], "--capacity abc"),
        (&["simulate", "@text.trace", "--routing-grid", "nonsense"], "nonsense"),
    ] {
        let message = refused(folder, arguments, 2);
        assert!(message.contains(part), "{arguments:?}: {message}");
    }
    for (arguments, part) in [
        (&["--capacity", "61"][..], "capacity 61"),
        (&["--routing-grid", "prune:k=5"], "routing prune: k is 5"),
        (&["--flash-bandwidth", "1GB", "--compute-ms", "-5"], "--compute-ms"),
    ] {
        let message = refused(folder, &[&["simulate", "@text.trace"][..], arguments].concat(), 2);
        assert!(message.contains(part), "{arguments:?}: {message}");
    }

    // A window is one batch of the one cache, and finds nothing in it.
    let global = ["simulate", "@text.trace", "--scope", "global", "--capacity", "10MiB", "--json"];
    let simulated = |more: &[&str]| {
        let arguments = placed(folder, &[&global[..], more].concat());
        let output = support::moce(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        (json(&support::text(&output.stdout))["cells"][0]["total"]["hits"].as_u64(), support::text(&output.stderr))
    };
    let (hits, said) = simulated(&[]);
    assert!(hits == Some(0) && said.contains("1.0 times") && said.contains("--prompt-batch 1 "), "{hits:?}: {said}");
    let (hits, said) = simulated(&["--prompt-batch", "1"]);
    assert!(hits > Some(0) && !said.contains("--prompt-batch"), "{hits:?}: {said}");

    let scoring = [&perplexity[..6], &["--limit", "100"]].concat();
    let lossy =
        ["--json", "--routing", "cache-prior:lambda=0.6", "--capacity", "8", "--record-routing", "@lossy.trace"];
    let lossy = json(&stdout(folder, &[&scoring[..], &lossy].concat()));
    assert!(lossy["replayed_routing"].is_null());
    let replay = [&scoring[..], &["--capacity", "8", "--replay-routing", "@lossy.trace"]].concat();
    let replayed = json(&stdout(folder, &[&replay[..], &["--json"]].concat()));
    assert_eq!((&replayed["nll"], &replayed["routing"]), (&lossy["nll"], &"original".into()));
    assert!(replayed["replayed_routing"].as_str().unwrap().starts_with("cache-prior:lambda=0.6"), "{replayed}");
    assert!(stdout(folder, &replay).contains("as recorded (cache-prior:lambda=0.6"));
    // The same tokens in shorter windows are another run.
    let shorter = [&perplexity[..5], &["50", "--limit", "100"], &replay[8..]].concat();
    let shorter = refused(folder, &shorter, 1);
    assert!(shorter.contains("token 50"), "{shorter}");
    // What the model itself would have chosen is not in it.
    let simulated = json(&stdout(folder, &["simulate", "@lossy.trace", "--capacity", "8", "--json"]));
    assert!(simulated["cells"][0]["changed_share"].is_null(), "{simulated}");
    assert!(stdout(folder, &["simulate", "@lossy.trace"]).contains("as recorded"));

    // A warmed session starts with what it was given, not as --start says.
    let warm = ["run", "-q", "-n", "1", "-p", "The river", "--capacity", "8", "--cache-state", "@warm"];
    stdout(folder, &warm);
    stdout(folder, &[&warm[..], &["--record-routing", "@warm.trace"]].concat());
    let start = |trace: &str| json(&stdout(folder, &["trace", "info", trace, "--json"]))["start"].clone();
    assert_eq!(start("@lossy.trace"), "empty");
    assert_eq!(start("@warm.trace"), "given");
    let summary = stdout(folder, &[&warm[..], &["--json"]].concat());
    assert_eq!(json(summary.lines().last().unwrap())["start"], "given");
}
