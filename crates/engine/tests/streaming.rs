//! Experts streamed from flash change no bit: every capacity, backend, eviction, chunk size and thread count against everything resident.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers

use moce_engine::routing::{Phase, RoutingOptions};
use moce_engine::{
    Backend, Budget, CacheState, Capacity, CpuOptions, Direct, Engine, EngineOptions, Error, FlashOptions, Prefetch,
    Session,
};
use moce_gguf::Gguf;
use moce_quant::Format;
use moce_testkit::ModelFile;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

fn options(capacity: Option<Capacity>, flash: FlashOptions) -> EngineOptions {
    let cpu = CpuOptions { threads: Some(2), ..CpuOptions::default() };
    EngineOptions { cpu, capacity, flash, logit_rows: 8, ..EngineOptions::default() }
}

/// Logits of every prompt position, then of every token decoded one by one, as bits.
fn bits(path: &Path, tokens: &[u32], options: &EngineOptions) -> Vec<u32> {
    let engine = Arc::new(Engine::open(path, options).unwrap());
    let mut session = Session::new(&engine).unwrap();
    let mut all = Vec::new();
    let (prompt, rest) = tokens.split_at(tokens.len() / 2);
    session.score(prompt, &mut |_, logits| all.extend(logits.iter().map(|x| x.to_bits()))).unwrap();
    for &token in rest {
        session.decode(token).unwrap();
        all.extend(session.logits().iter().map(|x| x.to_bits()));
    }
    all
}

#[test]
fn no_capacity_backend_eviction_or_chunk_changes_a_bit() {
    for (name, experts, per_token) in [("mixtral", 8, 2), ("qwen2moe", 12, 3)] {
        let model = ModelFile::new(name, Format::Q4_0);
        let resident = EngineOptions { memory: Budget::All, ..options(None, FlashOptions::default()) };
        let expected = bits(&model.path, &model.tokens, &resident);
        let run = |what: &str, options: &EngineOptions| {
            assert!(bits(&model.path, &model.tokens, options) == expected, "{name}: {what} changed a bit");
        };
        for capacity in std::iter::once(0).chain(per_token..=experts) {
            let flash = FlashOptions { backend: Backend::Pread, ..FlashOptions::default() };
            run(&format!("capacity {capacity}"), &options(Some(Capacity::Experts(capacity)), flash));
        }
        let some = Some(Capacity::Experts(per_token + 1));
        for direct in [Direct::Auto, Direct::Off] {
            for backend in [Backend::Auto, Backend::Pread] {
                let flash = FlashOptions { backend, direct, depth: Some(2), ..FlashOptions::default() };
                run(&format!("{backend}, {direct:?}"), &options(some.clone(), flash));
            }
        }
        for prefetch in [Prefetch::Off, Prefetch::NextLayer, Prefetch::Speculate] {
            let what = format!("prefetch {prefetch:?}");
            run(&what, &EngineOptions { prefetch, ..options(some.clone(), FlashOptions::default()) });
        }
        for eviction in ["lru", "lfu", "s3fifo", "score"] {
            let routing = RoutingOptions { eviction: eviction.parse().unwrap(), ..RoutingOptions::default() };
            run(eviction, &EngineOptions { routing, ..options(some.clone(), FlashOptions::default()) });
        }
        for (chunk, threads) in [(1, 1), (7, 2), (33, 1)] {
            let cpu = CpuOptions { threads: Some(threads), ..CpuOptions::default() };
            let what = format!("chunks of {chunk}, {threads} threads");
            run(&what, &EngineOptions { cpu, chunk: Some(chunk), ..options(some.clone(), FlashOptions::default()) });
        }
    }
}

#[test]
fn sessions_that_share_an_engine_do_not_disturb_each_other() {
    let model = ModelFile::new("qwen2moe", Format::Q8_0);
    let options = EngineOptions { sessions: 2, ..options(Some(Capacity::Experts(3)), FlashOptions::default()) };
    let alone = bits(&model.path, &model.tokens, &options);
    let engine = Arc::new(Engine::open(&model.path, &options).unwrap());
    let mut sessions = [Session::new(&engine).unwrap(), Session::new(&engine).unwrap()];
    let vocabulary = engine.hyperparameters().vocabulary;
    let offset = model.tokens.len() / 2;
    for (position, &token) in model.tokens.iter().enumerate() {
        for session in &mut sessions {
            session.decode(token).unwrap();
        }
        for session in &sessions {
            if position >= offset {
                let got: Vec<u32> = session.logits().iter().map(|x| x.to_bits()).collect();
                assert!(got == alone[position * vocabulary..(position + 1) * vocabulary], "position {position}");
            }
        }
    }
}

/// Each has a KV cache, and the budget is for the whole process.
#[test]
fn no_more_sessions_are_open_than_memory_was_planned_for() {
    let model = ModelFile::new("mixtral", Format::Q4_0);
    let open = |sessions| {
        let options = EngineOptions { sessions, ..options(None, FlashOptions::default()) };
        Arc::new(Engine::open(&model.path, &options).unwrap())
    };
    let (one, two) = (open(1), open(2));
    assert_eq!(two.plan().kv_bytes, 2 * one.plan().kv_bytes);
    let (first, _second) = (Session::new(&two).unwrap(), Session::new(&two).unwrap());
    let refused = || matches!(Session::new(&two), Err(Error::SessionsFull { planned: 2 }));
    assert!(refused());
    // What does not come about takes no place.
    drop(first);
    assert!(matches!(Session::with_routing(&two, two.routing(), &[]), Err(Error::CapacityLayers { .. })));
    let _third = Session::new(&two).unwrap();
    assert!(refused());
}

#[test]
fn a_file_that_is_cut_or_changed_under_a_running_engine_is_an_error() {
    let model = ModelFile::new("mixtral", Format::Q4_0);
    let options = options(Some(Capacity::Experts(2)), FlashOptions::default());
    let engine = Arc::new(Engine::open(&model.path, &options).unwrap());
    let mut session = Session::new(&engine).unwrap();
    session.prompt(&model.tokens[..10]).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&model.path).unwrap();
    let whole = file.metadata().unwrap().len();
    file.set_len(whole / 2).unwrap();
    let error = session.prompt(&model.tokens[10..]).unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, Error::Flash(_)) && message.contains("model.gguf"), "{message}");
    // The engine lives on; so does the refusal, with the file's name.
    drop(session);
    let mut other = Session::new(&engine).unwrap();
    assert!(matches!(other.prompt(&model.tokens), Err(Error::Flash(_))));
}

#[test]
fn a_file_renamed_over_does_not_matter() {
    let model = ModelFile::new("mixtral", Format::Q4_0);
    let options = options(Some(Capacity::Experts(2)), FlashOptions::default());
    let expected = bits(&model.path, &model.tokens, &options);
    let engine = Arc::new(Engine::open(&model.path, &options).unwrap());
    let other = model.folder().join("other.gguf");
    std::fs::write(&other, b"something else").unwrap();
    std::fs::rename(&other, &model.path).unwrap();
    let mut session = Session::new(&engine).unwrap();
    session.prompt(&model.tokens).unwrap();
    let got: Vec<u32> = session.logits().iter().map(|x| x.to_bits()).collect();
    assert!(got == expected[expected.len() - got.len()..]);
}

#[test]
fn no_budget_above_the_smallest_is_refused() {
    let model = ModelFile::new("qwen2moe", Format::Q4_0);
    let gguf = Gguf::open(&model.path).unwrap();
    for capacity in [None, Some(Capacity::Experts(4))] {
        let options = |bytes| EngineOptions {
            memory: Budget::Bytes(bytes),
            ..options(capacity.clone(), FlashOptions::default())
        };
        let works = |extra| {
            let Err(Error::Budget { smallest, .. }) = Engine::plan_for(&gguf, &options(1 << 20)).map(|_| ()) else {
                panic!("1 MiB is not enough for a process");
            };
            Engine::plan_for(&gguf, &options(smallest + extra)).is_ok()
        };
        for extra in (1..40).map(|step| (step * step) << 14) {
            // Other tests make the process larger meanwhile; a few tries outlast them.
            assert!((0..20).any(|_| works(extra)), "{extra} bytes above the smallest budget were refused");
        }
    }
}

#[test]
fn a_budget_that_is_too_small_names_the_smallest_that_works() {
    let model = ModelFile::new("qwen2moe", Format::Q4_0);
    let too_small = EngineOptions { memory: Budget::Bytes(1 << 20), ..options(None, FlashOptions::default()) };
    let Err(Error::Budget { smallest, .. }) = Engine::open(&model.path, &too_small).map(|_| ()) else {
        panic!("a budget of 1 MiB should be refused");
    };
    // The process grows between two measurements, so a little more is given.
    let enough =
        EngineOptions { memory: Budget::Bytes(smallest + (8 << 20)), ..options(None, FlashOptions::default()) };
    let engine = Engine::open(&model.path, &enough).unwrap();
    assert!(engine.plan().total_bytes() <= smallest + (8 << 20));
}

#[test]
fn capacities_that_cannot_be_are_refused() {
    let model = ModelFile::new("qwen2moe", Format::Q4_0);
    for capacity in [Capacity::Experts(2), Capacity::Experts(13), Capacity::PerLayer(vec![3])] {
        let error = Engine::open(&model.path, &options(Some(capacity.clone()), FlashOptions::default()));
        assert!(matches!(error, Err(Error::CapacityRange { .. } | Error::CapacityLayers { .. })), "{capacity:?}");
    }
    // Nor may a session's own list be too short or too long.
    let engine = Arc::new(Engine::open(&model.path, &options(None, FlashOptions::default())).unwrap());
    for given in [0, 1, 3] {
        let session = Session::with_routing(&engine, engine.routing(), &vec![6; given]).map(|_| ());
        assert!(matches!(session, Err(Error::CapacityLayers { given: g, layers: 2 }) if g == given), "{given} layers");
    }
}

#[test]
fn a_warm_start_changes_what_is_read_but_no_bit() {
    for eviction in ["lru", "lfu", "score", "s3fifo"] {
        let model = ModelFile::new("qwen2moe", Format::Q4_0);
        let routing = RoutingOptions { eviction: eviction.parse().unwrap(), ..RoutingOptions::default() };
        let options = EngineOptions { routing, ..options(Some(Capacity::Experts(6)), FlashOptions::default()) };
        let expected = bits(&model.path, &model.tokens, &options);
        let engine = Arc::new(Engine::open(&model.path, &options).unwrap());
        let mut first = Session::new(&engine).unwrap();
        first.prompt(&model.tokens).unwrap();
        let cold = first.routing().total(Phase::Prompt).misses;
        let path = model.folder().join("state.json");
        first.cache_state().unwrap().write(&path).unwrap();
        drop((first, engine));

        let engine = Arc::new(Engine::open(&model.path, &options).unwrap());
        let mut second = Session::new(&engine).unwrap();
        let state = CacheState::read(&path).unwrap();
        second.warm_start(&state).unwrap();
        assert_eq!(second.cache_state().unwrap(), state);
        second.prompt(&model.tokens).unwrap();
        let got: Vec<u32> = second.logits().iter().map(|x| x.to_bits()).collect();
        assert!(got == expected[expected.len() - got.len()..], "{eviction}");
        assert!(second.routing().total(Phase::Prompt).misses < cold, "{eviction}: a warm cache misses less");
        assert!(matches!(second.warm_start(&state), Err(Error::CacheStateLate)));
    }
}

#[test]
fn a_cache_state_of_another_model_or_no_state_at_all_is_refused() {
    let model = ModelFile::new("qwen2moe", Format::Q4_0);
    let other = ModelFile::new("mixtral", Format::Q4_0);
    let open = |path| Arc::new(Engine::open(path, &options(None, FlashOptions::default())).unwrap());
    let state = Session::new(&open(&model.path)).unwrap().cache_state().unwrap();
    let mut session = Session::new(&open(&other.path)).unwrap();
    assert!(matches!(session.warm_start(&state), Err(Error::CacheStateModel { .. })));
    let path = model.folder().join("state.json");
    for wrong in ["", "{}", "[1]", r#"{"version":2,"model":"0000000000000000","layers":[]}"#] {
        std::fs::write(&path, wrong).unwrap();
        let message = CacheState::read(&path).unwrap_err().to_string();
        assert!(message.contains("state.json"), "{message}");
    }
}

/// Probes of flash, and reads of what stays in memory, are part of loading.
#[test]
fn traffic_is_counted_from_when_the_model_is_loaded() {
    let model = ModelFile::new("qwen2moe", Format::Q4_0);
    for (capacity, streams) in [(None, false), (Some(Capacity::Experts(3)), true)] {
        let engine = Arc::new(Engine::open(&model.path, &options(capacity, FlashOptions::default())).unwrap());
        let loaded = engine.traffic();
        assert_eq!((loaded.fetches, loaded.flash_bytes, loaded.demand_bytes), (0, 0, 0));
        assert_eq!((loaded.waited, loaded.flash_busy), (Duration::ZERO, Duration::ZERO));
        Session::new(&engine).unwrap().prompt(&model.tokens).unwrap();
        let traffic = engine.traffic();
        assert_eq!(
            (traffic.flash_bytes > 0, traffic.fetches > 0, !traffic.flash_busy.is_zero()),
            (streams, streams, streams)
        );
        assert_eq!(traffic.demand_bytes, traffic.flash_bytes, "a prompt guesses nothing");
    }
}

/// Whoever receives logits is called while the step runs.
#[test]
fn traffic_can_be_asked_for_while_a_step_runs() {
    let (done, ended) = channel();
    std::thread::spawn(move || {
        let model = ModelFile::new("qwen2moe", Format::Q4_0);
        let options = options(Some(Capacity::Experts(3)), FlashOptions::default());
        let engine = Arc::new(Engine::open(&model.path, &options).unwrap());
        let mut session = Session::new(&engine).unwrap();
        let before = engine.traffic().fetches;
        session.score(&model.tokens, &mut |_, _| assert_eq!(engine.traffic().fetches, before)).unwrap();
        done.send((before, engine.traffic().fetches)).unwrap();
    });
    let (before, after) = ended.recv_timeout(Duration::from_secs(60)).expect("a step that waits for itself never ends");
    assert!(after > before);
}
