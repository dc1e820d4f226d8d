//! The simulator counts what the engine counts, agrees with published replays, and refuses what a trace cannot tell.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers

use moce_engine::routing::{
    Phase, Policy, Precision, RoutingOptions, ScoreKind, Start, StoredScores, TextStart, TouchOrder, TraceReader,
};
use moce_engine::{Capacity, CpuOptions, Engine, EngineOptions, RoutingRecorder, Session};
use moce_lab::{
    GlobalOptions, SimulateOptions, SimulatedCell, SimulationReport, export_csv, import_route_csv, parse_grid,
    record_text, simulate, simulate_global, trace_info,
};
use moce_testkit::{data_bytes, demo_model};
use std::ops::ControlFlow;
use std::sync::Arc;

/// A trace in memory of the demo model, and the session that it was recorded of: two windows of text, then a generated token or two.
fn recorded(policy: &str, precision: Option<Precision>) -> (Vec<u8>, Session) {
    let policy: Policy = policy.parse().unwrap();
    let options = EngineOptions {
        cpu: CpuOptions { threads: Some(2), ..CpuOptions::default() },
        capacity: Some(Capacity::Experts(20)),
        spare_slots: true,
        routing: RoutingOptions { policy: policy.clone(), prompt_policy: policy, ..RoutingOptions::default() },
        context: Some(128),
        ..EngineOptions::default()
    };
    let engine = Arc::new(Engine::open(&demo_model(), &options).unwrap());
    let mut session = Session::new(&engine).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("demo.trace");
    let scores = precision.map(|precision| StoredScores { kind: ScoreKind::Logits, precision });
    session.observe(Box::new(RoutingRecorder::create(&path, &session, scores, false).unwrap()));
    let tokens: Vec<u32> = (0..120).map(|index| 300 + 37 * index % 5000).collect();
    record_text(&mut session, &tokens, 70, &mut |_, _| ControlFlow::Continue(())).unwrap();
    for token in [500, 501, 502] {
        session.decode(token).unwrap();
    }
    session.stop_observing().unwrap().finish().unwrap();
    (std::fs::read(&path).unwrap(), session)
}

fn options(grid: &str, capacities: Vec<Capacity>, evictions: &[&str]) -> SimulateOptions {
    SimulateOptions {
        policies: parse_grid(grid, |_| Err(String::new())).unwrap(),
        prompts_too: true,
        capacities,
        evictions: evictions.iter().map(|eviction| eviction.parse().unwrap()).collect(),
        touch: TouchOrder::StrongFirst,
        start: Start::Empty,
        timing: None,
    }
}

fn run(trace: &[u8], options: &SimulateOptions) -> SimulationReport {
    simulate(TraceReader::new(trace).unwrap(), options).unwrap()
}

fn assert_as_in_session(cell: &SimulatedCell, session: &Session) {
    for (phase, simulated) in [(Phase::Prompt, &cell.prompt), (Phase::Generation, &cell.generation)] {
        let counts = session.routing().total(phase);
        assert_eq!((simulated.hits, simulated.misses), (counts.hits, counts.misses), "{} {phase:?}", cell.routing);
        assert!(simulated.misses > 0 && simulated.hits > 0, "{phase:?} shows nothing");
    }
    let routing = session.routing();
    let changed = routing.total(Phase::Prompt).changed + routing.total(Phase::Generation).changed;
    assert_eq!(cell.changed_selections, Some(changed), "{}", cell.routing);
    let (count, sum) = (0..routing.layer_count())
        .map(|layer| routing.lifetimes(layer))
        .fold((0, 0), |(count, sum), lifetimes| (count + lifetimes.count, sum + lifetimes.sum));
    assert!((cell.lifetime_mean.unwrap() - sum as f64 / count as f64).abs() < 1e-9);
}

#[test]
fn counts_are_those_of_the_engine() {
    let (trace, session) = recorded("original", Some(Precision::F32));
    let grid = "original;cache-prior:lambda=0.000001|0.2";
    let capacities = vec![Capacity::Experts(20), Capacity::Share(0.75)];
    let report = run(&trace, &options(grid, capacities, &["lru", "lfu", "s3fifo", "score"]));
    assert_eq!(report.cells.len(), 2 * (4 * 3 + 1));
    assert_as_in_session(&report.cells[0], &session);
    // What is written in several ways is simulated once.
    let again = vec![Capacity::Experts(20), Capacity::Experts(20)];
    let again = run(&trace, &options("cache-prior:lambda=0.2;fast;fast", again, &["lru", "lru"]));
    assert_eq!(again.cells.iter().map(|cell| &*cell.routing).collect::<Vec<_>>(), [&*report.cells[2].routing]);
    let (original, harmless, fast) = (&report.cells[0], &report.cells[1], &report.cells[2]);
    assert_eq!((harmless.total.misses, harmless.changed_selections), (original.total.misses, Some(0)));
    assert!(fast.total.misses < original.total.misses && fast.changed_selections > Some(0));
    for cells in report.cells.chunks(13) {
        let bound = &cells[12];
        assert_eq!((bound.eviction.as_str(), bound.routing.as_str()), ("belady", "original"));
        assert_eq!(bound.capacity, cells[0].capacity);
        for cell in cells.iter().filter(|cell| cell.routing == "original") {
            assert!(bound.total.misses <= cell.total.misses, "{}", cell.eviction);
            assert_eq!(bound.total.selections, cell.total.selections);
        }
    }

    let info = trace_info(TraceReader::new(&trace[..]).unwrap()).unwrap();
    assert_eq!((info.prompt_tokens, info.generated_tokens, info.sequences, info.windows), (120, 3, 1, 1));
    assert_eq!(info.trace_bytes, trace.len() as u64);
    let mut table = Vec::new();
    let rows = export_csv(TraceReader::new(&trace[..]).unwrap(), false, &mut table).unwrap();
    assert_eq!(rows, info.selections);
    assert_eq!(table.iter().filter(|byte| **byte == b'\n').count() as u64, rows + 1);
    #[cfg(feature = "parquet")]
    says_the_same_in_parquet(&trace, &String::from_utf8(table).unwrap());
}

#[cfg(feature = "parquet")]
fn says_the_same_in_parquet(trace: &[u8], csv: &str) {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::{Field, Row};
    let mut file = Vec::new();
    moce_lab::export_parquet(TraceReader::new(trace).unwrap(), false, &mut file).unwrap();
    let file = SerializedFileReader::new(bytes::Bytes::from(file)).unwrap();
    let text = |field: &Field| match field {
        Field::Null => String::new(),
        Field::Str(text) => text.clone(),
        Field::Float(score) => score.to_string(),
        other => other.to_string(),
    };
    let line = |row: Row| row.get_column_iter().map(|(_, field)| text(field)).collect::<Vec<_>>().join(",");
    let lines: Vec<String> = file.get_row_iter(None).unwrap().map(|row| line(row.unwrap())).collect();
    assert_eq!(lines, csv.lines().skip(1).collect::<Vec<_>>());
    let names = file.metadata().file_metadata().schema_descr().columns().iter().map(|column| column.name().to_owned());
    assert_eq!(names.collect::<Vec<_>>().join(","), csv.lines().next().unwrap());
}

#[test]
fn a_lossy_record_is_simulated_from_its_scores_or_as_it_was() {
    let (trace, session) = recorded("cache-prior:lambda=0.3", None);
    let report = run(&trace, &options("original", vec![Capacity::Experts(20)], &["lru"]));
    let counts = session.routing().total(Phase::Prompt);
    assert_eq!(report.cells[0].prompt.misses, counts.misses);
    assert!(report.cells[0].routing.starts_with("as recorded: cache-prior:lambda=0.3"), "{}", report.cells[0].routing);
    for (grid, eviction, part) in [("balanced", "lru", "cache-prior"), ("original", "score", "score")] {
        let options = options(grid, vec![Capacity::Share(0.5)], &[eviction]);
        let error = simulate(TraceReader::new(&trace[..]).unwrap(), &options).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("scores"), "{error}");
    }
    // Scores that the policy's own choices led to route as the run did.
    let (with_scores, session) = recorded("cache-prior:lambda=0.3", Some(Precision::F32));
    let report = run(&with_scores, &options("cache-prior:lambda=0.3", vec![Capacity::Experts(20)], &["lru"]));
    assert_as_in_session(&report.cells[0], &session);
    // One cache for all layers takes the choices as they were recorded, with scores or without.
    let (with_scores, _) = recorded("cache-prior:lambda=0.3", Some(Precision::F16));
    let (original, _) = recorded("original", None);
    for (trace, is_lossy) in [(&trace, true), (&with_scores, true), (&original, false)] {
        let options = GlobalOptions { capacities: vec![4 << 20], prompt_batch: usize::MAX, timing: None };
        let report = simulate_global(TraceReader::new(&trace[..]).unwrap(), &options).unwrap();
        // Two windows, and three tokens behind the second.
        assert_eq!(report.batches_per_start, Some((1.0 + 4.0) / 2.0));
        for cell in report.cells {
            let label = if is_lossy { "as recorded: cache-prior:lambda=0.3" } else { "original" };
            assert!(cell.routing.starts_with(label) && cell.routing_prompt.starts_with(label), "{}", cell.routing);
        }
    }
}

#[test]
fn imported_traces_give_the_published_hit_rates() {
    // Budget in MiB, and hits in percent over the whole run and over generated tokens alone: LRU, Belady.
    for (name, mib, lru, belady) in [
        ("qwen", 4000, (74.880, 80.287), (86.472, 92.716)),
        ("gemma", 4000, (76.784, 81.910), (87.094, 92.908)),
        ("gptoss", 3000, (32.408, 44.835), (49.004, 67.795)),
    ] {
        let Some(csv) = data_bytes(&format!("traces/driftwood/{name}.route.csv")) else { return };
        let (trace, tokens) = import_route_csv(&csv[..], Vec::new()).unwrap();
        assert!(tokens > 100, "{name}: {tokens}");
        let options = GlobalOptions { capacities: vec![mib << 20], prompt_batch: usize::MAX, timing: None };
        let report = simulate_global(TraceReader::new(&trace[..]).unwrap(), &options).unwrap();
        // The published clairvoyant eviction spares the batch at hand; ours need not, and so is up to a point above it.
        for (cell, published, above) in [(&report.cells[0], lru, 0.001), (&report.cells[1], belady, 1.0)] {
            let found = (100.0 * cell.total.hit_rate, 100.0 * cell.generation.hit_rate);
            let near = |found: f64, published: f64| (-0.001..above).contains(&(found - published));
            let is_near = near(found.0, published.0) && near(found.1, published.1);
            assert!(is_near, "{name}, {}: {found:?}, published {published:?}", cell.eviction);
        }
    }
}

#[test]
fn what_is_no_route_csv_is_refused_with_its_line() {
    let preamble =
        "# route_trace v1\n# model=/a/b.gguf arch=x n_layer=1 n_expert=4 n_expert_used=2\n# layer=0 expert_bytes=10\n";
    let columns = "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes\n";
    let good = format!("{preamble}{columns}0,0,0,0,0,3,0.6,0,10\n0,0,0,0,1,1,0.4,0,10\n0,1,1,0,0,1,1.0,1,0\n");
    let (trace, tokens) = import_route_csv(good.as_bytes(), Vec::new()).unwrap();
    assert_eq!(tokens, 2);
    let mut reader = TraceReader::new(&trace[..]).unwrap();
    assert_eq!(reader.header().model.name, "b");
    let first = reader.next_token().unwrap().unwrap();
    assert!(first.start == Some(TextStart::Sequence) && first.selection(0).eq([3, 1]));
    for (row, part) in [
        ("0,0,0,0,0,4,1,0,0", "line 5"),
        ("0,0,0,1,0,0,1,0,0", "layer 1"),
        ("0,0,0,0,2,0,1,0,0", "line 5"),
        ("0,2,0,0,0,0,1,0,0", "line 5"),
        ("0,0,0,0,0,0,1,0", "line 5"),
        ("0,0,x,0,0,0,1,0,0", "step"),
        ("0,0,0,0,0,1,1,0,0\n0,0,0,0,1,1,1,0,0", "line 6"),
        ("", "turn"),
    ] {
        let error = import_route_csv(format!("{preamble}{columns}{row}\n").as_bytes(), Vec::new()).unwrap_err();
        assert!(error.to_string().contains(part), "{row}: {error}");
    }
    // What the choices were checked against does not change behind them.
    let smaller = format!("{good}# model=/a/b.gguf arch=x n_layer=1 n_expert=2 n_expert_used=2\n");
    let error = import_route_csv(smaller.as_bytes(), Vec::new()).unwrap_err();
    assert!(error.to_string().contains("line 8"), "{error}");
    for wrong in ["", "a,b,c\n", preamble] {
        assert!(import_route_csv(wrong.as_bytes(), Vec::new()).is_err());
    }
}
