//! What the binary says about memory and speed: plans, benches, the telemetry of runs. On the demo model.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers

mod support;

use support::{refused, stdout};

#[test]
fn the_pieces_of_a_streamed_run_cost_together_what_the_summary_says() {
    let lines = stdout(&["run", "--json", "-q", "-n", "12", "--seed", "3", "--capacity", "8", "-p", "The sea"]);
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (summary, pieces) = lines.split_last().unwrap();
    for (of_piece, of_generation) in
        [("tokens", "tokens"), ("hits", "hits"), ("misses", "misses"), ("flash_bytes", "flash_bytes")]
    {
        let sum: u64 = pieces.iter().map(|piece| piece[of_piece].as_u64().unwrap()).sum();
        assert_eq!(sum, summary["generation"][of_generation].as_u64().unwrap(), "{of_piece}");
    }
    assert!(summary["generation"]["misses"].as_u64().unwrap() > 0);
    let text: String = pieces.iter().map(|piece| piece["piece"].as_str().unwrap()).collect();
    assert_eq!(text, summary["text"].as_str().unwrap());
}

#[test]
fn a_plan_adds_up_and_says_how_fast_it_will_be() {
    let plan: serde_json::Value = serde_json::from_str(&stdout(&["plan", "--json", "--memory", "190MiB"])).unwrap();
    let bytes = |key: &str| plan[key].as_u64().unwrap();
    let parts = ["program_bytes", "dense_bytes", "kv_bytes", "scratch_bytes", "staging_bytes", "slot_bytes"];
    assert_eq!(parts.iter().map(|part| bytes(part)).sum::<u64>(), bytes("memory_plan_bytes"));
    assert!(bytes("memory_plan_bytes") <= bytes("memory_budget_bytes") && bytes("memory_budget_bytes") == 190 << 20);
    let speeds: Vec<f64> =
        plan["predictions"].as_array().unwrap().iter().map(|p| p["tokens_per_second"].as_f64().unwrap()).collect();
    // Where computing takes longer than flash at every miss rate, they are equal but for rounding.
    let rising = speeds.windows(2).all(|pair| pair[1] >= pair[0] * (1.0 - 1e-9));
    assert!(speeds.len() == 4 && rising && speeds[0] > 0.0, "{speeds:?}");
    // A slower flash makes slower text; people get the same figures as a table and a word.
    let slow = stdout(&["plan", "--memory", "190MiB", "--flash-bandwidth", "1MB", "--miss-rate", "50%"]);
    assert!(slow.contains("expert slots") && slow.contains("verdict: slow"), "{slow}");
    // What a policy would miss is not known.
    let policy = stdout(&["plan", "--memory", "190MiB", "--flash-bandwidth", "1GB", "--routing", "fast"]);
    assert!(policy.contains("generation with original routing") && !slow.contains("original routing"), "{policy}");
    assert!(refused(&["plan", "--memory", "20MiB"], 1).contains("needs at least"));
    assert!(refused(&["plan", "--miss-rate", "101%"], 2).contains("0 % to 100 %"));
}

#[test]
fn a_bench_measures_every_budget() {
    let arguments =
        ["bench", "--json", "-q", "--memory", "190MiB,all", "--rounds", "2", "-n", "4", "--prompt-tokens", "16"];
    let report: serde_json::Value = serde_json::from_str(&stdout(&[&arguments[..], &["--ceilings"]].concat())).unwrap();
    let cells = report["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 2);
    let [tight, resident] = [&cells[0], &cells[1]].map(|cell| &cell["generation"]);
    for phase in [tight, resident] {
        assert!(phase["tokens_per_second"]["median"].as_f64().unwrap() > 0.0 && phase["tokens"] == 4);
    }
    assert!(tight["flash_bytes_per_token"].as_f64().unwrap() > 0.0 && resident["flash_bytes_per_token"] == 0.0);
    assert!(cells[0]["flash_share"].as_f64().unwrap() > 0.0 && cells[0]["bound_share"].as_f64().unwrap() > 0.0);
    assert_eq!(report["machine"]["rates"]["flash"].as_array().unwrap().len(), 4);
    let table = stdout(&["bench", "-q", "--rounds", "1", "-n", "2", "--prompt-tokens", "8"]);
    assert!(table.contains("prompt") && table.contains("tokens/s"), "{table}");
}

#[test]
fn a_large_shape_is_not_written_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let said = refused(&["bench", "--shape", "mixtral-8x7b", "--folder", path], 1);
    assert!(said.contains("--yes") || said.contains("free"), "{said}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    assert!(refused(&["bench", "--shape", "no-such"], 2).contains("qwen1.5-moe-a2.7b"));
}

#[test]
fn a_file_of_the_users_is_not_taken_for_a_shapes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("qwen1.5-moe-a2.7b-q4_0.gguf");
    let bench = ["bench", "--shape", "qwen1.5-moe-a2.7b", "--yes", "--folder", folder.path().to_str().unwrap()];
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/qwen2moe.gguf");
    let a_model = std::fs::read(model).unwrap();
    for (bytes, why) in [(&b"precious"[..], "magic"), (&a_model, "no model that moce made")] {
        std::fs::write(&file, bytes).unwrap();
        let said = refused(&bench, 1);
        assert!(
            said.contains("qwen1.5-moe-a2.7b-q4_0.gguf") && said.contains(why) && said.contains("--folder"),
            "{said}"
        );
        assert_eq!(std::fs::read(&file).unwrap(), bytes);
    }
}
