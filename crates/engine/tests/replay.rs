//! Recorded runs come out the same whatever the policy, capacity and chunk now; recorded scores route other text as they did the first.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers

use moce_engine::routing::{
    Phase, Precision, RoutingOptions, ScoreKind, ScoreReplay, StoredScores, TextStart, TraceReader, TraceToken,
};
use moce_engine::{
    Capacity, CpuOptions, Engine, EngineOptions, Error, Faults, FlashOptions, RoutingRecorder, Session, read_scores,
    read_selections,
};
use moce_quant::Format;
use moce_testkit::ModelFile;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};

const SCORES: Option<StoredScores> = Some(StoredScores { kind: ScoreKind::Logits, precision: Precision::F32 });

fn engine(model: &ModelFile, policy: &str, capacity: usize, chunk: usize) -> Arc<Engine> {
    let options = EngineOptions {
        cpu: CpuOptions { threads: Some(2), ..CpuOptions::default() },
        capacity: Some(Capacity::Experts(capacity)),
        sessions: 3,
        routing: RoutingOptions {
            policy: policy.parse().unwrap(),
            prompt_policy: policy.parse().unwrap(),
            ..RoutingOptions::default()
        },
        chunk: Some(chunk),
        ..EngineOptions::default()
    };
    Arc::new(Engine::open(&model.path, &options).unwrap())
}

/// Half of the tokens as a prompt, the rest one by one; the logits at the ends as bits.
fn run(session: &mut Session, tokens: &[u32]) -> Vec<u32> {
    let (prompt, rest) = tokens.split_at(tokens.len() / 2);
    session.prompt(prompt).unwrap();
    let mut all: Vec<u32> = session.logits().iter().map(|x| x.to_bits()).collect();
    for &token in rest {
        session.decode(token).unwrap();
        all.extend(session.logits().iter().map(|x| x.to_bits()));
    }
    all
}

fn record(session: &mut Session, path: &Path, scores: Option<StoredScores>) {
    session.observe(Box::new(RoutingRecorder::create(path, session, scores, false).unwrap()));
}

fn finish(session: &mut Session) {
    session.stop_observing().unwrap().finish().unwrap();
}

/// The tokens of a trace.
fn read(path: &Path) -> Vec<TraceToken> {
    let mut reader = TraceReader::new(File::open(path).unwrap()).unwrap();
    let mut tokens = Vec::new();
    while let Some(token) = reader.next_token().unwrap() {
        tokens.push(token.clone());
    }
    tokens
}

/// A model, and its lossy run recorded at `run.trace`: the logits.
fn recorded(model: &ModelFile) -> Vec<u32> {
    let mut session = Session::new(&engine(model, "cache-prior:lambda=0.5,j=1", 4, 7)).unwrap();
    record(&mut session, &model.folder().join("run.trace"), None);
    let bits = run(&mut session, &model.tokens);
    assert!(session.routing().total(Phase::Prompt).changed > 0, "the policy changed nothing");
    finish(&mut session);
    bits
}

#[test]
fn a_recorded_lossy_run_comes_out_the_same_under_any_policy() {
    let model = ModelFile::new("qwen2moe", Format::Q4_0);
    let expected = recorded(&model);
    for (policy, capacity, chunk) in [("original", 12, 80), ("original", 3, 7), ("max-rank", 5, 1)] {
        let engine = engine(&model, policy, capacity, chunk);
        let mut session = Session::new(&engine).unwrap();
        assert!(run(&mut session, &model.tokens) != expected, "{policy} chooses as the record does");
        let mut session = Session::new(&engine).unwrap();
        session.replay_selections(read_selections(&model.folder().join("run.trace")).unwrap()).unwrap();
        let again = model.folder().join(format!("{policy}-{capacity}.trace"));
        record(&mut session, &again, None);
        assert!(run(&mut session, &model.tokens) == expected, "{policy}, {capacity} cached, chunks of {chunk}");
        finish(&mut session);
        assert_eq!(read(&again), read(&model.folder().join("run.trace")));
        let header = TraceReader::new(File::open(&again).unwrap()).unwrap().header().clone();
        assert_eq!(
            (header.policy.as_str(), header.prompt_policy),
            ("cache-prior:lambda=0.5,j=1", header.policy.clone())
        );
    }
}

/// "Clear the session and give the whole text again": the one that failed, with its windows, not the one before or after it.
#[test]
fn a_replay_that_failed_goes_on_with_the_text_at_hand() {
    let model = ModelFile::new("qwen2moe", Format::Q4_0);
    let path = model.folder().join("run.trace");
    let (first, second) = (&model.tokens[..9], &model.tokens[..]);
    let mut session = Session::new(&engine(&model, "cache-prior:lambda=0.5,j=1", 4, 7)).unwrap();
    record(&mut session, &path, None);
    run(&mut session, first);
    session.clear().unwrap();
    run(&mut session, first);
    session.restart();
    let expected = run(&mut session, second);
    session.clear().unwrap();
    let last = run(&mut session, first);
    finish(&mut session);

    let faults = Arc::new(Mutex::new(Faults::default()));
    let options = EngineOptions {
        cpu: CpuOptions { threads: Some(2), ..CpuOptions::default() },
        capacity: Some(Capacity::Experts(3)),
        flash: FlashOptions { faults: Some(Arc::clone(&faults)), ..FlashOptions::default() },
        ..EngineOptions::default()
    };
    let mut session = Session::new(&Arc::new(Engine::open(&model.path, &options).unwrap())).unwrap();
    session.replay_selections(read_selections(&path).unwrap()).unwrap();
    run(&mut session, first);
    session.clear().unwrap();
    // Once at the start of a window, once after it.
    for done in [0, 9] {
        run(&mut session, first);
        session.restart();
        if done > 0 {
            session.prompt(&second[..done]).unwrap();
        }
        *faults.lock().unwrap() = Faults { bad_ranges: vec![(0, 0..u64::MAX)], ..Faults::default() };
        assert!(matches!(session.prompt(&second[done..]), Err(Error::Flash(_))));
        *faults.lock().unwrap() = Faults::default();
        session.clear().unwrap();
    }
    run(&mut session, first);
    session.restart();
    assert!(run(&mut session, second) == expected);
    session.clear().unwrap();
    assert!(run(&mut session, first) == last);
}

#[test]
fn a_record_says_what_ran() {
    let model = ModelFile::new("qwen2moe", Format::Q4_0);
    let engine = engine(&model, "fast", 4, 7);
    let mut session = Session::new(&engine).unwrap();
    let path = model.folder().join("run.trace");
    record(&mut session, &path, SCORES);
    assert!(!path.exists(), "a trace that is not whole has its name already");
    session.prompt(&model.tokens[..9]).unwrap();
    session.decode(model.tokens[9]).unwrap();
    session.restart();
    session.prompt(&model.tokens[..2]).unwrap();
    session.clear().unwrap();
    session.prompt(&model.tokens[..1]).unwrap();
    finish(&mut session);

    let reader = TraceReader::new(File::open(&path).unwrap()).unwrap();
    let header = reader.header();
    assert_eq!((header.experts, header.experts_per_token), (12, 3));
    assert_eq!(header.policy, "cache-prior:lambda=0.2,j=1");
    assert_eq!(header.model.fingerprint, engine.identity().fingerprint());
    assert_eq!(header.model.bytes, std::fs::metadata(&model.path).unwrap().len());
    assert!(header.layers.iter().all(|layer| layer.capacity == 4 && layer.expert_bytes > 0));

    let tokens = read(&path);
    let ids: Vec<u32> = tokens.iter().map(|token| token.id.unwrap()).collect();
    assert_eq!(ids, [&model.tokens[..10], &model.tokens[..2], &model.tokens[..1]].concat());
    for (index, token) in tokens.iter().enumerate() {
        assert_eq!(token.phase == Phase::Generation, index == 9);
        let start = match index {
            0 | 12 => Some(TextStart::Sequence),
            10 => Some(TextStart::Window),
            _ => None,
        };
        assert_eq!(token.start, start, "{index}");
        assert!((0..header.layers.len()).all(|layer| token.selection(layer).count() == 3));
    }
    let again = RoutingRecorder::create(&path, &session, None, false);
    assert!(again.err().unwrap().to_string().contains("exists already"));
}

#[test]
fn recorded_scores_route_other_text_as_they_did_the_first() {
    let model = ModelFile::new("qwen2moe", Format::Q4_0);
    let engine = engine(&model, "fast", 4, 7);
    let path = model.folder().join("scores.trace");
    let mut first = Session::new(&engine).unwrap();
    record(&mut first, &path, SCORES);
    let expected = run(&mut first, &model.tokens);
    finish(&mut first);
    let recorded = read(&path);

    let replay = read_scores(&path, engine.plan().experts.len(), engine.context()).unwrap();
    let mut same = Session::new(&engine).unwrap();
    same.replay_scores(replay.clone()).unwrap();
    assert!(run(&mut same, &model.tokens) == expected, "the model's own scores change a bit");

    let other: Vec<u32> = model.tokens.iter().rev().copied().collect();
    let mut replayed = Session::new(&engine).unwrap();
    let again = model.folder().join("again.trace");
    replayed.replay_scores(replay).unwrap();
    record(&mut replayed, &again, SCORES);
    assert!(run(&mut replayed, &other) != expected);
    finish(&mut replayed);
    assert_eq!(replayed.routing().total(Phase::Generation), first.routing().total(Phase::Generation));
    let again = read(&again);
    assert_eq!(again.len(), recorded.len());
    for (before, now) in recorded.iter().zip(&again) {
        for layer in 0..replayed.routing().layer_count() {
            assert!(before.selection(layer).eq(now.selection(layer)) && before.scores(layer) == now.scores(layer));
        }
    }

    let short = TraceReader::new(File::open(&path).unwrap()).unwrap();
    let short = Arc::new(ScoreReplay::read(short, 2, 5).unwrap());
    assert!(matches!(same.replay_scores(short), Err(Error::ReplayCover { .. })));
}

#[test]
fn a_replay_of_another_model_or_text_or_length_is_refused() {
    let model = ModelFile::new("qwen2moe", Format::Q4_0);
    recorded(&model);
    let path = model.folder().join("run.trace");
    let own = engine(&model, "original", 4, 80);
    let replay = read_selections(&path).unwrap();

    let mut session = Session::new(&own).unwrap();
    session.replay_selections(replay.clone()).unwrap();
    let changed: Vec<u32> =
        model.tokens.iter().map(|&token| if token == model.tokens[5] { 0 } else { token }).collect();
    assert!(matches!(session.prompt(&changed), Err(Error::ReplayToken { index: 5, given: 0, .. })));
    // A refused text has done no harm.
    session.prompt(&model.tokens).unwrap();
    let error = session.decode(model.tokens[0]).unwrap_err();
    assert!(matches!(error, Error::ReplayEnd { .. }) && error.to_string().contains("-n"), "{error}");

    let requantised = ModelFile::new("qwen2moe", Format::Q8_0);
    let other = engine(&requantised, "original", 4, 80);
    let mut session = Session::new(&other).unwrap();
    assert!(matches!(session.replay_selections(replay), Err(Error::ReplayModel { .. })));
    assert!(matches!(read_scores(&path, 2, 80), Err(Error::Trace { .. })), "there are no scores in it");
    let error = read_selections(&requantised.path).err().unwrap();
    assert!(error.to_string().contains("model.gguf"), "{error}");
}
